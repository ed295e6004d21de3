"""Prepared files: whole or refused, made once, and read again as what they are."""

import hashlib
import io
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from grpo.config.data import DataConfig
from grpo.console import Screen
from grpo.data import load_rows
from grpo.data.inspect import check
from grpo.data.prepare import prepare
from grpo.data.seal import read_seal, seal_path
from grpo.errors import UserError
from grpo.types import Row

PHRASE = "one two three four five six seven eight nine ten eleven twelve thirteen"


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)


def lines(name: str, *rows: tuple[str, str]) -> Path:
    path = Path(name)
    path.write_text("\n".join(json.dumps({"problem": p, "answer": a}) for p, a in rows))
    return path


def sums(*against: str, **settings: object) -> DataConfig:
    decontaminate = {"against": list(against)}
    values = {"name": "sums", "path": "raw.jsonl", "decontaminate": decontaminate, **settings}
    return DataConfig.model_validate(values)


def run(config: DataConfig, out: str | None = None, *, force: bool = False) -> str:
    said = io.StringIO()
    prepare(config, None if out is None else Path(out), Screen(said, said), force=force)
    return said.getvalue()


def test_rows_that_a_benchmark_asks_are_left_out_and_the_seal_counts_them():
    lines(
        "raw.jsonl", ("1+1", "2"), ("1+1", "2"), ("2 + 2", "4"), (f"A {PHRASE}", "1"), ("3+3", "")
    )
    lines("bench.jsonl", ("$2+2$", "4"), (f"B {PHRASE}", "2"))
    said = run(sums("bench.jsonl", filters={"empty_answer": "drop"}))
    out = Path("prepared/sums.jsonl")
    assert out.read_text() == '{"id": "1", "problem": "1+1", "answer": "2"}\n'
    seal = read_seal(out)
    assert seal is not None
    assert seal.sha256 == hashlib.sha256(out.read_bytes()).hexdigest()
    assert seal.benchmarks == [
        {"name": "bench", "problems": 2, "exact": 1, "contained": 0, "ngram": 1}
    ]
    assert seal.counts == {
        "read": 5,
        "unreadable": 0,
        "empty_answer": 1,
        "other_script": 0,
        "exact": 1,
        "normalized": 1,
        "disagreeing": 0,
        "duplicates_left_out": 1,
        "giveaways": 0,
        "kept": 3,
        "contaminated": 2,
        "written": 1,
    }
    assert f"sha256 {seal.sha256}" in said
    assert "data.path=prepared/sums.jsonl" in said


def test_a_prepared_file_is_read_as_the_rows_that_were_kept_in_their_order():
    lines("raw.jsonl", *[(f"{i}+1", str(i + 1)) for i in range(30)])
    run(sums(), "out.jsonl")
    run(sums(), "out.parquet")
    expected = load_rows(sums())
    assert load_rows(sums(path="out.jsonl")) == expected
    assert load_rows(sums(path="out.parquet")) == expected


def test_the_first_rows_are_taken_after_everything_else():
    lines("raw.jsonl", ("2+2", "4"), ("1+1", "2"), ("1+1", "2"), ("3+3", "6"), ("4+4", "8"))
    lines("bench.jsonl", ("2+2", "4"))
    run(sums("bench.jsonl", rows=2), "out.jsonl")
    assert [row.problem for row in load_rows(sums(path="out.jsonl"))] == ["1+1", "3+3"]


def test_what_is_there_already_is_not_done_again():
    lines("raw.jsonl", ("1+1", "2"))
    run(sums(), "out.jsonl")
    before = Path("out.jsonl").stat()
    assert "prepared already: 1 rows" in run(sums(), "out.jsonl")
    after = Path("out.jsonl").stat()
    assert (before.st_mtime_ns, before.st_ino) == (after.st_mtime_ns, after.st_ino)
    run(sums(), "out.jsonl", force=True)
    assert Path("out.jsonl").stat().st_ino != before.st_ino


def test_another_source_filter_or_benchmark_makes_it_stale():
    lines("raw.jsonl", ("1+1", "2"), ("求", "2"))
    lines("bench.jsonl", ("3+3", "6"))
    run(sums("bench.jsonl"), "out.jsonl")
    latin = sums("bench.jsonl", filters={"language": "latin"})
    assert "wrote out.jsonl: 1 rows" in run(latin, "out.jsonl")
    assert "prepared already" in run(latin, "out.jsonl")
    lines("raw.jsonl", ("1+1", "2"), ("4+4", "8"), ("求", "2"))
    assert "wrote out.jsonl: 2 rows" in run(latin, "out.jsonl")
    lines("bench.jsonl", ("4+4", "8"))
    assert "wrote out.jsonl: 1 rows" in run(latin, "out.jsonl")


def test_a_source_in_another_place_is_the_same_source():
    raw = lines("raw.jsonl", ("1+1", "2"))
    run(sums(), "out.jsonl")
    raw.rename("moved.jsonl")
    assert "prepared already" in run(sums(path="moved.jsonl"), "out.jsonl")


def test_a_prepared_file_that_changed_is_refused_with_both_checksums_and_made_again():
    lines("raw.jsonl", ("1+1", "2"), ("2+2", "4"))
    run(sums(), "out.jsonl")
    seal = read_seal(Path("out.jsonl"))
    assert seal is not None
    Path("out.jsonl").write_text('{"problem": "1+1", "answer": "3"}\n')
    found = hashlib.sha256(Path("out.jsonl").read_bytes()).hexdigest()
    with pytest.raises(
        UserError, match=f"sha256 {found}, .* says {seal.sha256}: .*prepare it again"
    ):
        load_rows(sums(path="out.jsonl"))
    assert "wrote out.jsonl: 2 rows" in run(sums(), "out.jsonl")
    assert len(load_rows(sums(path="out.jsonl"))) == 2


def test_a_kill_between_seal_and_file_leaves_what_is_refused_and_mended_by_the_same_command():
    """The seal is renamed first, so the old file then lies beside the new seal."""
    lines("raw.jsonl", ("1+1", "2"), ("求", "2"))
    run(sums(), "out.jsonl")
    old = Path("out.jsonl").read_bytes()
    latin = sums(filters={"language": "latin"})
    run(latin, "out.jsonl")
    Path("out.jsonl").write_bytes(old)
    Path(".out.jsonl.tmp").write_text("half a l")
    with pytest.raises(UserError, match="changed since it was prepared"):
        load_rows(sums(path="out.jsonl"))
    assert "wrote out.jsonl: 1 rows" in run(latin, "out.jsonl")
    assert [row.problem for row in load_rows(sums(path="out.jsonl"))] == ["1+1"]
    assert not Path(".out.jsonl.tmp").exists()


def test_a_kill_before_the_seal_is_written_leaves_nothing(monkeypatch: pytest.MonkeyPatch):
    """A file without a seal would count as somebody else's."""

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    lines("raw.jsonl", ("1+1", "2"))
    monkeypatch.setattr("grpo.data.prepare.write_seal", killed)
    with pytest.raises(KeyboardInterrupt):
        run(sums(), "new/out.jsonl")
    assert list(Path("new").iterdir()) == []


def test_a_first_kill_leaves_a_seal_alone_and_the_same_command_goes_on():
    lines("raw.jsonl", ("1+1", "2"))
    run(sums(), "out.jsonl")
    Path("out.jsonl").unlink()
    assert "wrote out.jsonl" in run(sums(), "out.jsonl")


def test_a_file_of_somebody_else_is_overwritten_only_by_force():
    lines("raw.jsonl", ("1+1", "2"))
    Path("mine.jsonl").write_text("precious")
    with pytest.raises(UserError, match=r"was not written by grpo data prepare.*--force"):
        run(sums(), "mine.jsonl")
    assert Path("mine.jsonl").read_text() == "precious"
    run(sums(), "mine.jsonl", force=True)
    assert len(load_rows(sums(path="mine.jsonl"))) == 1


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("raw.jsonl", "is the file that is read"),
        ("./raw.jsonl", "is the file that is read"),
        ("out.csv", "ends in .jsonl or .parquet"),
        ("out", "ends in .jsonl or .parquet"),
    ],
)
def test_an_impossible_name_for_the_result_is_refused(out: str, said: str):
    lines("raw.jsonl", ("1+1", "2"))
    with pytest.raises(UserError, match=said):
        run(sums(), out)


def test_where_a_benchmark_asks_every_row_nothing_is_written():
    lines("raw.jsonl", ("1+1", "2"))
    lines("bench.jsonl", ("1+1", "2"))
    with pytest.raises(UserError, match="every row is asked by a benchmark"):
        run(sums("bench.jsonl"), "out.jsonl")
    assert not Path("out.jsonl").exists()


def test_a_benchmark_that_cannot_be_read_whole_stops_the_work():
    lines("raw.jsonl", ("1+1", "2"))
    lines("bench.jsonl", ("1+2", "2"), ("", "2"))
    with pytest.raises(UserError, match=r"bench.jsonl:2: no problem.*--against FILE"):
        run(sums("bench.jsonl"), "out.jsonl")
    with pytest.raises(UserError, match="no such suite or file of problems"):
        run(sums("nowhere/*.yaml"), "out.jsonl")


def test_suites_are_compared_with_benchmark_by_benchmark_and_the_same_data_once():
    lines("raw.jsonl", ("1+1", "2"), ("2+2", "4"), ("3+3", "6"))
    lines("a.jsonl", ("1+1", "2"))
    lines("b.jsonl", ("2+2", "4"))
    one = "{name: %s, data: {name: %s, path: %s.jsonl}}"
    Path("suite.yaml").write_text(
        "name: s\nbenchmarks:\n- " + one % ("A", "a", "a") + "\n- " + one % ("B", "b", "b") + "\n"
    )
    run(sums("*.yaml", "a.jsonl"), "out.jsonl")
    seal = read_seal(Path("out.jsonl"))
    assert seal is not None
    assert [(b["name"], b["exact"]) for b in seal.benchmarks] == [("A", 1), ("B", 1)]
    assert [row.problem for row in load_rows(sums(path="out.jsonl"))] == ["3+3"]


def test_generated_rows_keep_their_solutions_in_the_file():
    task = {"name": "arithmetic", "rows": 4}
    run(sums(path=None, task=task), "out.parquet")
    values = pq.read_table("out.parquet").to_pylist()
    assert [Row(**value) for value in values] == load_rows(sums(path=None, task=task))
    assert all(value["solution"] for value in values)


def test_a_prepared_file_passes_the_strict_check_although_a_phrase_has_become_rare():
    """11 problems have the phrase, so it is set; 2 of them go for another reason, 9 stay."""
    raw = [(f"{i} {PHRASE}", "1") for i in range(11)]
    lines("raw.jsonl", *raw)
    lines("bench.jsonl", (f"asked {PHRASE}", "1"), raw[3], raw[7])
    run(sums("bench.jsonl"), "out.jsonl")
    rows = load_rows(sums(path="out.jsonl"))
    assert [row.id for row in rows] == ["1", "2", "3", "5", "6", "7", "9", "10", "11"]
    said = io.StringIO()
    check(sums("bench.jsonl", path="out.jsonl"), Screen(said, said), strict=True)
    assert "sums is fine: 9 rows" in said.getvalue()
    seal_path(Path("out.jsonl")).unlink()
    with pytest.raises(UserError, match="9 rows stand in benchmarks"):
        check(sums("bench.jsonl", path="out.jsonl"), Screen(said, said), strict=True)


def test_a_file_that_only_looks_like_a_seal_is_named():
    lines("raw.jsonl", ("1+1", "2"))
    run(sums(), "out.jsonl")
    for text in ("{}", "[]", "{oops"):
        seal_path(Path("out.jsonl")).write_text(text)
        with pytest.raises(UserError, match=r"out.jsonl.prepared.json is no file of grpo data"):
            load_rows(sums(path="out.jsonl"))
