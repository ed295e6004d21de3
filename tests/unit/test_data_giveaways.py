"""Rows that an audit could have without solving them are left out, wherever they stand by now."""

import io
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo.config.data import DataConfig
from grpo.console import Screen
from grpo.data import load_rows
from grpo.data.giveaways import Giveaway, default_path, fingerprint, write_giveaways
from grpo.data.prepare import prepare
from grpo.data.seal import read_seal
from grpo.errors import UserError
from grpo.types import Row
from tests.examples import examples

ROWS = [Row(f"r{i}", f"Problem {i}", str(i)) for i in range(6)]
DEFAULT = default_path("mine", "math")


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)


def data(filters: Mapping[str, object], rows: list[Row] = ROWS) -> DataConfig:
    lines = [json.dumps({"id": r.id, "problem": r.problem, "answer": r.answer}) for r in rows]
    Path("raw.jsonl").write_text("\n".join(lines))
    values = {"name": "mine", "path": "raw.jsonl", "filters": filters}
    return DataConfig.model_validate(values | {"decontaminate": {"against": []}})


def audited(path: Path = DEFAULT, rows: list[Row] = ROWS) -> None:
    """Row 2 is a giveaway, row 3 a guess."""
    found = [
        Giveaway(2, "r1", fingerprint(ROWS[1]), "giveaway", "a formula of it", r"\boxed{x}"),
        Giveaway(3, "r2", fingerprint(ROWS[2]), "guess", "its last number", r"\boxed{2}"),
    ]
    write_giveaways(path, "mine", rows, found, {"verifier": "math"})


def kept(filters: Mapping[str, object], rows: list[Row] = ROWS) -> list[str]:
    return [row.id for row in load_rows(data(filters, rows))]


def test_giveaways_and_guesses_are_left_out_as_the_filter_says():
    audited()
    assert kept({}) == ["r0", "r1", "r2", "r3", "r4", "r5"]
    assert kept({"giveaways": "drop"}) == ["r0", "r2", "r3", "r4", "r5"]
    assert kept({"giveaways": "drop_guesses"}) == ["r0", "r3", "r4", "r5"]


def test_rows_are_known_by_their_content_and_not_by_their_place_or_id():
    audited()
    moved = [Row("z", row.problem, row.answer) for row in reversed(ROWS[:4])]
    loaded = load_rows(data({"giveaways": "drop"}, moved))
    assert [row.problem for row in loaded] == ["Problem 3", "Problem 2", "Problem 0"]


def test_prepare_counts_them_and_makes_the_file_again_after_another_audit():
    audited()
    config, said = data({"giveaways": "drop"}), io.StringIO()
    seal = prepare(config, Path("out.jsonl"), Screen(said, said))
    assert (seal.counts["giveaways"], seal.counts["kept"], seal.rows) == (1, 5, 5)
    assert "left out as giveaways (drop)" in said.getvalue()
    Path("elsewhere").mkdir()
    DEFAULT.rename("elsewhere/known.jsonl")
    filters = {"giveaways": "drop", "giveaways_file": "elsewhere/known.jsonl"}
    prepare(data(filters), Path("out.jsonl"), Screen(said, said))
    assert "prepared already" in said.getvalue()
    write_giveaways(DEFAULT, "mine", ROWS, [], {})
    assert prepare(config, Path("out.jsonl"), Screen(said, said)).rows == 6
    sealed = read_seal(Path("out.jsonl"))
    assert sealed is not None
    assert sealed.counts["giveaways"] == 0


def test_a_prepared_file_can_be_filtered_again():
    audited()
    prepare(data({"giveaways": "drop"}), Path("out.jsonl"), Screen(io.StringIO(), io.StringIO()))
    config = data({"giveaways": "drop"}).model_copy(update={"path": "out.jsonl"})
    assert len(load_rows(config)) == 5


@pytest.mark.parametrize(
    ("files", "filters", "said"),
    [
        ({}, {}, r"there is no runs/verify/mine\.\*\.giveaways\.jsonl: run grpo verify mine"),
        ({}, {"giveaways_file": "no.jsonl"}, r"giveaways_file 'no\.jsonl': no such file"),
        ({DEFAULT: ROWS, default_path("mine", "exact"): ROWS}, {}, "name one with data.filters"),
        ({DEFAULT: ROWS[:4]}, {}, r"does not know 2 of the 6 rows of data 'mine'.*'r4'"),
        ({DEFAULT: [Row("a", "b", "c")]}, {}, "does not know 6 of the 6 rows.*grpo verify mine"),
    ],
)
def test_a_file_that_is_absent_ambiguous_or_of_other_rows_is_refused_in_words(
    files: dict[Path, list[Row]], filters: Mapping[str, object], said: str
):
    for path, rows in files.items():
        audited(path, rows)
    with pytest.raises(UserError, match=said):
        kept({"giveaways": "drop", **filters})


@pytest.mark.parametrize(
    "content",
    ["", "{}", "[]", "no json", '{"format": 2, "audited": []}', '{"format": 1, "audited": []}\n[]'],
)
def test_what_is_no_file_of_giveaways_is_refused_in_words(content: str):
    Path("other.jsonl").write_text(content)
    with pytest.raises(UserError, match="is no file of giveaways"):
        kept({"giveaways": "drop", "giveaways_file": "other.jsonl"})


def test_where_all_rows_are_giveaways_the_message_says_so():
    audited(rows=ROWS[1:2])
    with pytest.raises(UserError, match="1 gave their answer away"):
        kept({"giveaways": "drop"}, ROWS[1:2])


@given(st.text(max_size=8), st.text(max_size=8), st.text(max_size=8), st.text(max_size=8))
@examples(100)
def test_rows_have_one_fingerprint_exactly_where_problem_and_answer_are_the_same(
    problem: str, answer: str, other: str, another: str
):
    same = (problem, answer) == (other, another)
    marks = fingerprint(Row("a", problem, answer)), fingerprint(Row("b", other, another))
    assert (marks[0] == marks[1]) == same
