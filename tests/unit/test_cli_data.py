"""`grpo data`: what it prints, and mistakes that end with exit code 2 and words."""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from grpo.cli.data import data_app
from grpo.config.recipe import BuildConfig
from grpo.learner.build import build_tokenizer

DECLARATION = r"""
name: sums
path: raw.jsonl
template: "{problem} = "
decontaminate: {against: []}
"""


@pytest.fixture(autouse=True)
def a_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    Path("data/sums.yaml").write_text(DECLARATION)
    write("raw.jsonl", ("1+1", "2"), ("2+2", "4"), ("2+2", "4"))


def write(name: str, *rows: tuple[str, str | None]) -> None:
    Path(name).write_text("\n".join(json.dumps({"problem": p, "answer": a}) for p, a in rows))


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(data_app, list(arguments))
    assert "Traceback" not in result.output
    return result


def test_prepare_writes_a_file_beside_its_counts_and_the_second_time_finds_it_done():
    first = run("prepare", "sums")
    assert first.exit_code == 0, first.output
    assert "wrote prepared/sums.jsonl: 2 rows" in first.output
    assert "compared with no benchmark" in first.output
    assert json.loads(Path("prepared/sums.jsonl.prepared.json").read_text())["counts"]["read"] == 3
    second = run("prepare", "sums")
    assert (second.exit_code, "prepared already: 2 rows" in second.output) == (0, True)


def test_path_against_and_overrides_change_what_is_read_and_compared():
    write("other.jsonl", ("3+3", "6"), ("4+4", "8"), ("5+5", "10"))
    write("bench.jsonl", ("4+4", "8"))
    result = run(
        *("prepare", "sums", "rows=1", "--path", "other.jsonl", "--against", "bench.jsonl"),
        *("--out", "out.jsonl"),
    )
    assert result.exit_code == 0, result.output
    assert Path("out.jsonl").read_text() == '{"id": "1", "problem": "3+3", "answer": "6"}\n'


def test_show_prints_rows_in_their_template():
    result = run("show", "sums", "--count", "1")
    assert result.exit_code == 0
    assert "--- row 1, answer '2'\n1+1 = \n" in result.output
    assert "2+2" not in result.output
    assert "sums: 2 rows" in result.output


def test_show_prints_roles_where_no_tokenizer_knows_the_chat():
    result = run("show", "sums", "chat=true", "system=Be brief.", "--count", "1")
    assert "[system] Be brief.\n[user] 1+1 = \n" in result.output


def test_show_with_a_tokenizer_prints_what_the_model_sees_and_how_long_it_is():
    build_tokenizer(BuildConfig(alphabet="0123456789+= \n")).save_pretrained("model")
    write("raw.jsonl", *[("1+1" + "+1" * i, str(i + 2)) for i in range(20)])
    result = run("show", "sums", "--tokenizer", "model", "--count", "1")
    assert result.exit_code == 0, result.output
    assert "1+1 = \n(6 tokens)" in result.output
    # 6, 8, ..., 44 tokens: the 10th and the 19th of 20.
    lengths = dict(re.findall(r"^  (\w.*\w) +(\d+)$", result.output, re.MULTILINE))
    assert (lengths["shortest"], lengths["median"], lengths["longest"]) == ("6", "24", "44")
    assert lengths["95 % are no longer than"] == "42"


def test_check_counts_and_ends_well_where_training_would_start():
    result = run("check", "sums")
    assert result.exit_code == 0, result.output
    assert "left out as duplicates (exact)" in result.output
    assert "sums is fine: 2 rows" in result.output


def test_check_lists_every_row_that_would_stop_a_run_and_exits_with_2():
    write("raw.jsonl", ("1+1", "2"), ("2+2", None), ("", "4"), ("3+3", ""))
    result = run("check", "sums")
    assert result.exit_code == 2
    assert "has 3 errors" in result.output
    for place in ("raw.jsonl:2: no answer", "raw.jsonl:3: no problem", "raw.jsonl:4: no answer"):
        assert place in result.output
    forgiven = run("check", "sums", "filters={bad_rows: skip, empty_answer: drop}")
    assert forgiven.exit_code == 0
    assert "left out, 3 in all" in forgiven.output


def test_check_of_many_faults_lists_the_first_ten():
    write("raw.jsonl", *[("p", None)] * 12)
    result = run("check", "sums")
    assert result.exit_code == 2
    assert "raw.jsonl:10:" in result.output
    assert "raw.jsonl:11:" not in result.output
    assert "has 13 errors" in result.output  # no row is left, too
    assert "... and 3 more" in result.output


def test_rows_that_stand_in_a_benchmark_are_named_and_are_errors_when_asked_for():
    write("bench.jsonl", ("2 + 2", "4"))
    result = run("check", "sums", "--against", "bench.jsonl")
    assert result.exit_code == 0, result.output
    assert "row 2 equals a problem of bench: 2 + 2" in result.output
    strict = run("check", "sums", "--against", "bench.jsonl", "--strict")
    assert strict.exit_code == 2
    assert "has 1 error:" in strict.output


def test_a_benchmark_out_of_reach_leaves_the_check_of_the_rows_whole():
    """The default compares with suites whose rows are on the hub, and there is no network."""
    Path("eval").mkdir()
    Path("eval/far.yaml").write_text("name: far\nmax_tokens: 8\ndata: {name: far, hub: no/where}\n")
    Path("eval/near.yaml").write_text(
        "name: near\nmax_tokens: 8\ndata: {name: near, path: bench.jsonl}\n"
    )
    write("bench.jsonl", ("2 + 2", "4"))
    result = run("check", "sums", "--against", "eval/*.yaml")
    assert result.exit_code == 0, result.output
    said = result.output
    order = [
        "kept by the filters",
        "row 2 equals a problem of near",
        "warning: not compared with far",
    ]
    assert [said.index(part) for part in order] == sorted(said.index(part) for part in order)
    assert "--against FILE" in said and "sums is fine: 2 rows" in said
    strict = run("check", "sums", "--against", "eval/far.yaml", "--strict")
    assert strict.exit_code == 2 and "far could not be read, and --strict is set" in strict.output
    refused = run("prepare", "sums", "--against", "eval/far.yaml")
    assert refused.exit_code == 2 and "benchmark 'far' cannot be compared with" in refused.output
    assert not Path("prepared").exists()


def test_the_faults_of_rows_are_told_though_a_benchmark_is_out_of_reach():
    Path("far.yaml").write_text("name: far\nmax_tokens: 8\ndata: {name: far, hub: no/where}\n")
    write("raw.jsonl", ("1+1", "2"), ("2+2", None))
    result = run("check", "sums", "--against", "far.yaml")
    assert result.exit_code == 2
    assert "raw.jsonl:2: no answer" in result.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["check", "smus"],
            "neither as a file nor in the package; did you mean 'sums'?",
        ),
        (["check", "data/nowhere.yaml"], "no data set 'data/nowhere.yaml'"),
        (["check", "sums", "filters.langage=latin"], "did you mean 'language'?"),
        (["check", "sums", "filters.language=english"], "got 'english'"),
        (["check", "sums", "copies=[{file: raw.jsonl, sha256: abc, rows: 2}]"], "got 'abc'"),
        (["check", "sums", "--path", "nowhere.jsonl"], "nowhere.jsonl': no such file"),
        (["check", "sums", "--against", "nowhere.jsonl"], "no such suite or file of problems"),
        (["prepare", "sums", "--out", "raw.jsonl"], "is the file that is read"),
        (["show", "sums", "--tokenizer", "./nowhere"], "no such folder"),
        (["show", "sums", "--tokenizer", "data"], "cannot be loaded"),
    ],
)
def test_a_mistake_exits_with_2_and_says_what_to_mend(arguments: list[str], said: str):
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert said in result.output


def test_a_folder_without_declarations_lists_those_of_the_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    result = run("check", "sums")
    assert result.exit_code == 2
    assert "no data set 'sums'" in result.output
    assert "Known: arithmetic, countdown, dapo_math_17k" in result.output


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
def test_benchmarks_of_one_name_are_all_compared_with(order: tuple[str, str]):
    for folder, problem in (("a", "1+1"), ("b", "9+9")):
        Path(folder).mkdir()
        write(f"{folder}/test.jsonl", (problem, "0"))
    against = [part for folder in order for part in ("--against", f"{folder}/test.jsonl")]
    result = run("check", "sums", "--strict", *against)
    assert result.exit_code == 2
    assert "1 rows stand in benchmarks, and --strict is set" in result.output


def test_a_suite_of_the_users_own_is_compared_with_by_its_name():
    Path("eval").mkdir()
    Path("eval/mine.yaml").write_text(
        "name: mine\ndata: {name: mine, path: bench.jsonl, template: '{problem}'}\n"
    )
    write("bench.jsonl", ("1+1", "2"))
    result = run("check", "sums", "--against", "mine")
    assert "1 rows stand in benchmarks" in result.output, result.output
