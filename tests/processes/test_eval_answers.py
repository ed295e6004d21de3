"""Stored answers are judged without a model, and a file that does not fit is refused in words."""

import ast
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from grpo.cli.commands import app
from grpo.errors import UserError
from grpo.eval.answers import read_stored
from grpo.eval.result import load
from grpo.eval.store import Answered, read_answers, write_answers
from grpo.types import Row, Verdict
from tests.unit.test_layers import modules

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "data" / "eval"
ROWS = [Row("a", "2+2", "4"), Row("b", "2+3", "5"), Row("c", "3+3", "6")]
LABELS = [{"kind": "even"}, {}, {}]


def stored(folder: Path, *items: object) -> Path:
    path = folder / "answers.jsonl"
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return path


def read(path: Path) -> list[Answered]:
    return read_stored(path, ROWS, LABELS)


def test_problems_are_named_by_id_or_by_row_or_by_both_in_any_order(tmp_path: Path) -> None:
    path = stored(
        tmp_path,
        {"row": 2, "answers": ["6", "x"]},
        {"id": "b", "row": 1, "answers": ["5", "y"]},
        {"id": "a", "answers": ["4", "z"]},
    )
    found = read(path)
    assert [group.row_id for group in found] == ["a", "b", "c"]
    assert [group.responses for group in found] == [("4", "z"), ("5", "y"), ("6", "x")]
    assert found[0].labels == {"kind": "even"}
    assert found[0].lengths is None and found[0].finish_reasons is None


def test_one_answer_a_line_keeps_its_length(tmp_path: Path) -> None:
    items = [{"row": n, "response": "r", "length": n + 1, "finish_reason": "stop"} for n in (0, 1)]
    items.append({"row": 2, "response": "r", "length": 3})
    found = read(stored(tmp_path, *items))
    assert [group.lengths for group in found] == [(1,), (2,), (3,)]
    assert [group.finish_reasons for group in found] == [("stop",), ("stop",), None]


def test_numbers_serve_as_ids(tmp_path: Path) -> None:
    rows = [Row("60", "p", "1"), Row("61", "q", "2")]
    path = stored(tmp_path, {"id": 60, "answers": ["1"]}, {"id": "61", "answers": ["2"]})
    assert [g.responses for g in read_stored(path, rows, [{}, {}])] == [("1",), ("2",)]


def test_what_an_evaluation_kept_can_be_judged_again(tmp_path: Path) -> None:
    groups = [
        Answered(n, row.id, row.problem, row.answer, ("x", "y"), (1, 2), ("stop", "length"), None)
        for n, row in enumerate(ROWS)
    ]
    write_answers(tmp_path / "kept.parquet", groups, {})
    found = read(tmp_path / "kept.parquet")
    assert [(g.responses, g.lengths, g.finish_reasons) for g in found] == [
        (("x", "y"), (1, 2), ("stop", "length"))
    ] * 3


def test_answers_may_begin_within_thinking(tmp_path: Path) -> None:
    items = [
        {"row": 0, "answers": ["4"], "thinking": True},
        {"row": 1, "response": "5", "thinking": True},
        {"row": 2, "response": "6", "thinking": False},
    ]
    assert [group.thinking for group in read(stored(tmp_path, *items))] == [True, True, False]
    kept = [
        Answered(n, r.id, r.problem, r.answer, ("x",), thinking=n == 1) for n, r in enumerate(ROWS)
    ]
    write_answers(tmp_path / "kept.parquet", kept, {})
    assert [group.thinking for group in read(tmp_path / "kept.parquet")] == [False, True, False]


def test_a_draft_in_thinking_that_the_prompt_opened_is_no_answer(
    suite: Path, tmp_path: Path
) -> None:
    draft = "so \\boxed{4}, or"
    items = [
        {"row": 0, "answers": [draft], "thinking": True},
        {"row": 1, "answers": [draft.replace("4", "5")]},
        {"row": 2, "answers": ["</think> \\boxed{6}"], "thinking": True},
    ]
    path = stored(tmp_path, *items)
    result = run("samples=1", "verifier=math", "--answers", str(path), "--suite", str(suite))
    assert result.exit_code == 0, result.output
    (saved,) = load(tmp_path / "answers.sums.json")
    assert saved.reasons == {"correct": 2, "no answer": 1}


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ({"answers": ["4"]}, "names no problem: expected id, or row"),
        ({"id": "d", "answers": ["4"]}, "no problem with the id 'd'; its first is 'a'"),
        ({"row": 3, "answers": ["4"]}, "row is 3, expected 0 to 2"),
        ({"row": -1, "answers": ["4"]}, "row is -1, expected 0 to 2"),
        ({"row": True, "answers": ["4"]}, "row is True"),
        ({"row": "0", "answers": ["4"]}, "row is '0'"),
        ({"id": "b", "row": 0, "answers": ["4"]}, "row 0 of the benchmark has the id 'a', not 'b'"),
        ({"id": "a", "answer": "4"}, "expected answers .* it has id, answer"),
        ({"id": "a", "answers": "4"}, "expected answers"),
        ({"id": "a", "answers": [4]}, "expected answers"),
        ({"id": "a", "answers": ["4"], "response": "4"}, "expected answers"),
        ({"id": "a", "answers": ["4"], "thinking": 1}, "thinking is 1, expected true or false"),
        ({"id": "a", "response": "4", "length": "4"}, "length is '4', expected a number of tokens"),
        (["a", "4"], "expected an object"),
    ],
)
def test_a_line_that_does_not_fit_is_named(tmp_path: Path, item: object, said: str) -> None:
    with pytest.raises(UserError, match=f"answers.jsonl:1: .*{said}"):
        read(stored(tmp_path, item))


def test_a_line_that_is_not_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_bytes(b'{"row": 0, "answers": ["4"]}\n\n{"row"\n')
    with pytest.raises(UserError, match=r"answers.jsonl:3 is not JSON"):
        read(path)
    path.write_bytes(b"\xff\n")
    with pytest.raises(UserError, match=r"answers.jsonl:1 is not JSON"):
        read(path)


def test_a_missing_and_a_short_problem_are_named_with_their_counts(tmp_path: Path) -> None:
    items = [{"id": "a", "answers": ["4", "4"]}, {"id": "c", "answers": ["6"]}]
    with pytest.raises(UserError) as error:
        read(stored(tmp_path, *items))
    assert "1 of the benchmark's 3 problems have 2 answers" in str(error.value)
    assert "'b' (row 1) has 0, 'c' (row 2) has 1" in str(error.value)


def test_an_empty_file_and_one_of_another_kind_are_refused(tmp_path: Path) -> None:
    (tmp_path / "answers.jsonl").write_text("\n")
    with pytest.raises(UserError, match="holds no answers"):
        read(tmp_path / "answers.jsonl")
    (tmp_path / "answers.csv").write_text("a,4\n")
    with pytest.raises(UserError, match=r"expected a .jsonl or .parquet file"):
        read(tmp_path / "answers.csv")
    (tmp_path / "answers.parquet").write_text("PAR1")
    with pytest.raises(UserError, match="is not a parquet file"):
        read(tmp_path / "answers.parquet")


def test_an_id_that_two_rows_have_needs_row_numbers(tmp_path: Path) -> None:
    rows = [Row("a", "p", "1"), Row("a", "q", "2")]
    with pytest.raises(UserError, match="several problems have the id 'a'"):
        read_stored(stored(tmp_path, {"id": "a", "answers": ["1"]}), rows, [{}, {}])
    path = stored(tmp_path, {"row": 0, "answers": ["1"]}, {"row": 1, "answers": ["2"]})
    assert len(read_stored(path, rows, [{}, {}])) == 2


def test_judging_stored_answers_imports_neither_vllm_nor_ray() -> None:
    trees, seen = modules(), set()
    waiting = ["grpo.eval.answers"]
    while waiting:
        name = waiting.pop()
        if name in seen or name not in trees:
            continue
        seen.add(name)
        for node in trees[name].body:  # what is imported when the module is
            if isinstance(node, ast.Import):
                waiting += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.module is not None
                waiting += [node.module, *(f"{node.module}.{a.name}" for a in node.names)]
                assert node.module.split(".")[0] not in ("vllm", "ray", "deepspeed"), name
    assert "grpo.verify.pool" in seen and "grpo.data.load" in seen
    assert not seen & {"grpo.fleet.cluster", "grpo.eval.run", "grpo.fleet.start"}


# --- the command ---


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["eval", *arguments])


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps({"id": r.id, "problem": r.problem, "answer": r.answer}) + "\n"
                for r in ROWS)
    )  # fmt: skip
    path = tmp_path / "sums.yaml"
    path.write_text(
        f"name: sums\ndata: {{name: sums, path: {tmp_path / 'rows.jsonl'}}}\n"
        "verifier: {name: exact, marked: preferred}\n"
    )
    return path


def test_stored_answers_become_a_table_a_result_and_a_file_of_verdicts(
    suite: Path, tmp_path: Path
) -> None:
    items = [{"id": r.id, "answers": [r.answer, "0" if n else r.answer]}
             for n, r in enumerate(ROWS)]  # fmt: skip
    path = stored(tmp_path, *items)
    result = run("samples=1", "--answers", str(path), "--suite", str(suite))
    assert result.exit_code == 0, result.output
    row = next(line for line in result.output.splitlines() if "avg@2" in line)
    assert " ".join(row.split()) == "sums avg@2 0.667 0.500 to 1.000 3 ? ? 0.0 %"
    (saved,) = load(tmp_path / "answers.sums.json")
    assert saved.average.value == pytest.approx(2 / 3)
    groups, _ = read_answers(tmp_path / saved.answers)
    assert groups[1].verdicts is not None
    assert [v.reason for v in groups[1].verdicts] == ["correct", "wrong"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "what to evaluate is missing"),
        (["samples=4"], "what to evaluate is missing"),
        (["some/model", "--answers", "x.jsonl"], "give one of them"),
        (["--answers", "nowhere.jsonl"], "no such file or folder"),
        (["--answers", "{folder}"], "no sums.jsonl or sums.parquet in it"),
        (["--answers", "{folder}/answers.jsonl", "verifier=exct"], "did you mean 'exact'"),
        (["--answers", "{folder}/answers.jsonl", "by=[level]"], "has a column 'level'"),
        (["--answers", "{folder}/answers.jsonl", "data.path=no.jsonl"], "no such file"),
        (["--answers", "{folder}/answers.jsonl", "--out", "/proc/x/y.json"], "cannot write"),
        (
            ["--answers", "{folder}/answers.jsonl", "plugins=[no_such]"],
            "'no_such' cannot be imported",
        ),
    ],
)
def test_a_mistake_exits_with_2_and_says_what_to_mend(
    suite: Path, tmp_path: Path, arguments: list[str], said: str
) -> None:
    stored(tmp_path, {"row": 0, "answers": ["4"]})
    filled = [argument.replace("{folder}", str(tmp_path)) for argument in arguments]
    result = run(*filled, "--suite", str(suite))
    assert result.exit_code == 2, result.output
    assert said in result.output
    assert "Traceback" not in result.output


def test_one_file_is_not_for_two_benchmarks(suite: Path, tmp_path: Path) -> None:
    both = tmp_path / "both.yaml"
    both.write_text("name: both\nbenchmarks: [sums.yaml, {extends: sums.yaml, name: other}]\n")
    path = stored(tmp_path, {"row": 0, "answers": ["4"]})
    result = run("--answers", str(path), "--suite", str(both))
    assert result.exit_code == 2
    assert "the suite has 2 benchmarks: give a folder" in result.output


def test_a_folder_has_a_file_for_each_benchmark_and_the_average_stands_below(
    suite: Path, tmp_path: Path
) -> None:
    both = tmp_path / "both.yaml"
    both.write_text("name: both\nbenchmarks: [sums.yaml, {extends: sums.yaml, name: other}]\n")
    folder = tmp_path / "mine"
    folder.mkdir()
    right = [{"id": r.id, "answers": [r.answer]} for r in ROWS]
    stored(folder, *right).rename(folder / "sums.jsonl")
    wrong = [Answered(n, r.id, r.problem, r.answer, ("0",)) for n, r in enumerate(ROWS)]
    write_answers(folder / "other.parquet", wrong, {})
    result = run("--answers", str(folder), "--suite", str(both))
    assert result.exit_code == 0, result.output
    assert [line.split()[:3] for line in result.output.splitlines() if " average " in line] == [
        ["average", "avg", "0.500"],
        ["average", "best", "0.500"],
    ]


@pytest.mark.parametrize(("name", "rows"), [("aime24", 30), ("math500", 30)])
def test_gold_in_every_second_row_of_a_real_benchmark_is_half_right(
    name: str, rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = SHARED / f"{name}.jsonl"
    if not source.exists():
        pytest.skip(f"{source} is not here")
    monkeypatch.chdir(ROOT)
    gold = [json.loads(line)["answer"] for line in source.read_text().splitlines()[:rows]]
    items = [
        {"row": n, "answers": [f"So \\boxed{{{answer if n % 2 == 0 else -77777777}}}."]}
        for n, answer in enumerate(gold)
    ]
    result = run(
        "--answers", str(stored(tmp_path, *items)), "--suite", f"eval/{name}.yaml",
        f"data.path={source}", f"data.rows={rows}",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    (saved,) = load(tmp_path / f"answers.{name}.json")
    groups, _ = read_answers(tmp_path / saved.answers)
    verdicts: list[Verdict] = [v for group in groups for v in group.verdicts or ()]
    assert [v.reward for v in verdicts] == [1.0, 0.0] * (rows // 2)
    assert saved.num_problems == rows
    if name == "math500":
        assert sum(part.num_problems for part in saved.parts["subject"].values()) == rows
        assert set(saved.parts["level"]) <= set("12345")
