"""The benchmarks that come with the project, read from the files that hold them."""

import json
from pathlib import Path

import pytest

from grpo.config.load import load_suite, resolved
from grpo.config.suite import BenchmarkConfig, SuiteConfig
from grpo.errors import UserError
from grpo.eval.rows import benchmark_rows, labels_of
from grpo.verify.code_tests import read_tests

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "data" / "eval"
PAPER = ["math500", "aime24", "aime25", "olympiadbench", "minerva", "livecodebench"]
# A benchmark, the file that holds its rows, and how many they are.
REAL = [
    ("math500", "math500", 500),
    ("aime24", "aime24", 30),
    ("aime25", "aime25", 30),
    ("olympiadbench", "olympiadbench_oe_to_maths_en", 675),
    ("minerva", "minerva_math", 272),
    ("amc23", "amc23", 40),
    ("gsm8k", "gsm8k_test", 1319),
]


@pytest.fixture(autouse=True)
def in_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def only(path: str, *overrides: str) -> BenchmarkConfig:
    (benchmark,) = load_suite(path, overrides).benchmarks
    return benchmark


@pytest.mark.parametrize(("name", "file", "count"), REAL, ids=lambda v: str(v))
def test_a_benchmark_reads_its_real_rows(name: str, file: str, count: int) -> None:
    path = SHARED / f"{file}.jsonl"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    benchmark = only(f"eval/{name}.yaml", f"data.path={path}")
    rows = benchmark_rows(benchmark)
    labels = [labels_of(row, benchmark) for row in rows]
    assert len(rows) == count
    raw = [json.loads(line) for line in path.read_text().splitlines()]
    for column in benchmark.by:
        assert {label[column] for label in labels} == {str(row[column]) for row in raw}


def test_the_papers_six_have_eight_samples_at_temperature_one() -> None:
    suite = load_suite("eval/paper.yaml")
    assert [b.name for b in suite.benchmarks] == PAPER
    assert {(b.samples, b.temperature, b.top_p) for b in suite.benchmarks} == {(8, 1.0, 1.0)}
    alone = [only(f"eval/{name}.yaml") for name in PAPER]
    assert [b.data for b in suite.benchmarks] == [b.data for b in alone]


def test_code_is_judged_by_the_verifier_code_in_a_window_of_dates() -> None:
    benchmark = only("eval/livecodebench.yaml")
    assert benchmark.verifier.name == "code"
    assert benchmark.data.hub_subset == "release_v6"
    assert benchmark.window is not None
    assert (str(benchmark.window.start), str(benchmark.window.end)) == ("2024-08-01", "2025-05-31")


def test_codes_reference_is_its_tests_and_its_problem_ends_with_the_code_to_complete(
    tmp_path: Path,
) -> None:
    path = tmp_path / "rows.jsonl"
    row = {"question_id": "1", "question_content": "Add.", "contest_date": "2024-08-02T00:00:00"}
    row |= {"difficulty": "easy", "platform": "p", "public_test_cases": "[1]", "metadata": "{}"}
    path.write_text(
        json.dumps(row | {"starter_code": "def f():", "private_test_cases": "eJx"}) + "\n"
        + json.dumps(row | {"starter_code": "", "question_id": "2"}) + "\n"
        + json.dumps(row | {"contest_date": "2024-07-31", "question_id": "3"}) + "\n"
    )  # fmt: skip
    benchmark = only("eval/livecodebench.yaml", f"data.path={path}")
    rows = benchmark_rows(benchmark)
    assert [row.problem for row in rows] == ["Add.\n\n```python\ndef f():\n```", "Add."]
    assert [json.loads(row.answer) for row in rows] == [
        {"public_test_cases": "[1]", "private_test_cases": "eJx", "metadata": "{}"},
        {"public_test_cases": "[1]", "metadata": "{}"},
    ]
    labels = {"difficulty": "easy", "platform": "p"}
    assert [labels_of(row, benchmark) for row in rows] == [labels] * 2
    with pytest.raises(UserError, match="row '1': holds none of the columns of reference"):
        keys = ("public_test_cases", "private_test_cases", "metadata")
        gone = [f"reference.{key}=[nowhere]" for key in keys]
        benchmark_rows(only("eval/livecodebench.yaml", f"data.path={path}", *gone))


def test_real_code_problems_have_tests_that_the_verifier_reads() -> None:
    path = SHARED.parent / "code" / "livecodebench_stdin_even.jsonl"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    overrides = [f"data.path={path}", "window.start=2024-01-01", "window.end=2024-02-29"]
    rows = benchmark_rows(only("eval/livecodebench.yaml", *overrides))
    raw = [json.loads(line) for line in path.read_text().splitlines()]
    within = [row for row in raw if row["contest_date"][:7] in ("2024-01", "2024-02")]
    assert [row.id for row in rows] == [row["question_id"] for row in within]
    tests = [read_tests(row.answer) for row in rows]
    assert [len(t.cases) for t in tests] == [len(row["public_tests"]) for row in within]


def test_gsm8ks_worked_solution_ends_in_the_answer(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"question": "3+4?", "answer": "Add them.\n#### 7"}) + "\n")
    rows = benchmark_rows(only("eval/gsm8k.yaml", f"data.path={path}"))
    assert rows[0].answer == "7"


def test_one_benchmark_alone_is_a_suite_of_its_name() -> None:
    suite = load_suite("eval/aime24.yaml", ["samples=32", "data.rows=3"])
    assert (suite.name, len(suite.benchmarks)) == ("aime24", 1)
    assert (suite.benchmarks[0].samples, suite.benchmarks[0].data.rows) == (32, 3)
    again = SuiteConfig.model_validate(resolved(suite))
    assert again == suite
    window = load_suite("eval/livecodebench.yaml")
    assert SuiteConfig.model_validate(resolved(window)) == window


def test_a_single_benchmark_takes_its_keys_as_those_of_the_first_of_several() -> None:
    suite = only("eval/math500.yaml", "benchmarks.0.data.path=mine.jsonl", "benchmarks.0.samples=2")
    assert (suite.data.path, suite.samples) == ("mine.jsonl", 2)


def test_in_a_suite_of_several_the_key_of_one_needs_its_number() -> None:
    with pytest.raises(
        UserError, match=r"unknown key 'samples': .* benchmarks.0.samples, of the fi"
    ):
        load_suite("eval/paper.yaml", ["samples=1"])


def test_a_wrong_value_in_a_suite_of_one_is_found_at_its_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\ndata: {name: x, path: rows.jsonl}\nsamples: 0\n")
    with pytest.raises(UserError, match=r"mine\.yaml:3: .*samples"):
        load_suite(path)


# --- rows of a window, and labels ---

DATED = [
    {"id": 1, "problem": "a", "answer": "1", "on": "2024-07-31T23:59:00", "level": 1},
    {"id": 2, "problem": "b", "answer": "2", "on": "2024-08-01", "level": None},
    {"id": 3, "problem": "c", "answer": "3", "on": "2024-08-31T10:00:00", "level": 3},
    {"id": 4, "problem": "d", "answer": "4", "on": "2024-09-01", "level": 3},
    {"id": 5, "problem": "e", "answer": "5", "level": 3},
]


def dated(folder: Path, **changes: object) -> BenchmarkConfig:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in DATED))
    settings = {"name": "dated", "data": {"name": "dated", "path": str(path)}, **changes}
    return BenchmarkConfig.model_validate(settings)


def test_both_ends_of_a_window_belong_to_it(tmp_path: Path) -> None:
    window = {"column": "on", "start": "2024-08-01", "end": "2024-08-31"}
    benchmark = dated(tmp_path, window=window, by=["level"])
    rows = benchmark_rows(benchmark)
    assert [row.problem for row in rows] == ["b", "c"]
    assert [labels_of(row, benchmark) for row in rows] == [{}, {"level": "3"}]


def test_an_open_window_takes_all_that_have_a_date(tmp_path: Path) -> None:
    rows = benchmark_rows(dated(tmp_path, window={"column": "on", "start": "2024-08-31"}))
    assert [row.problem for row in rows] == ["c", "d"]


def test_a_window_without_rows_a_strange_column_and_a_generated_row_are_refused(
    tmp_path: Path,
) -> None:
    empty = {"column": "on", "start": "2030-01-01"}
    with pytest.raises(UserError, match="no row has a on from 2030-01-01"):
        benchmark_rows(dated(tmp_path, window=empty))
    with pytest.raises(UserError, match="no row of 'dated' has a column 'subject'"):
        benchmark_rows(dated(tmp_path, by=["level", "subject"]))
    task = {"name": "sums", "task": {"name": "arithmetic", "rows": 4}}
    with pytest.raises(UserError, match="no row of 'sums' has a column 'level'"):
        benchmark_rows(dated(tmp_path, data=task, by=["level"]))


def test_rows_of_the_same_text_keep_labels_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "twice.jsonl"
    row = {"id": 1, "problem": "a", "answer": "1"}
    path.write_text("".join(json.dumps(row | {"level": level}) + "\n" for level in (1, 2)))
    data = {"name": "twice", "path": str(path)}
    for duplicates, labels in (("exact", ["1"]), ("keep", ["1", "2"])):
        of_data = data | {"filters": {"duplicates": duplicates}}
        benchmark = dated(tmp_path, data=of_data, by=["level"])
        found = [labels_of(row, benchmark) for row in benchmark_rows(benchmark)]
        assert found == [{"level": label} for label in labels]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("window: {column: on, start: 2024-09-01, end: 2024-08-01}", "is after end"),
        ("window: {column: on, start: soon}", "window.start"),
        ("window: {start: 2024-09-01}", "'benchmarks.0.window.column' is missing"),
        ("name: a/b", "name"),
        ("smples: 4", "did you mean 'samples'"),
    ],
)
def test_a_mistake_in_a_benchmark_is_named(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "suite.yaml"
    name = "" if text.startswith("name") else "name: a\n"
    path.write_text(f"{name}{text}\ndata: {{name: d, path: x.jsonl}}\n")
    with pytest.raises(UserError, match=said):
        load_suite(path)


def test_two_benchmarks_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "suite.yaml"
    path.write_text(f"name: two\nbenchmarks: [{ROOT}/eval/aime24.yaml, {ROOT}/eval/aime24.yaml]\n")
    with pytest.raises(UserError, match="two benchmarks are named 'aime24'"):
        load_suite(path)
