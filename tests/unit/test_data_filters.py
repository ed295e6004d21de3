"""Which rows are left out: every one counted, and nothing but what the declaration says."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo.config.data import DataConfig, Filters
from grpo.data.filters import Counts, Sieve
from grpo.data.load import sift
from grpo.data.read import Fault, Record, Source
from grpo.data.text import has_cjk, squeezed
from grpo.types import Row
from tests.examples import examples

EVERY = [
    Filters(duplicates=duplicates, language=language)
    for duplicates in ("keep", "exact", "normalized")
    for language in ("any", "latin", "cjk")
]
PROBLEMS = ["Find x.", "find $x$.", " Find  x.", "Find y.", "求 x.", "求 y."]
ROWS = st.lists(st.builds(Row, st.just("i"), st.sampled_from(PROBLEMS), st.sampled_from("12")))


def kept(filters: Filters, *rows: tuple[str, str]) -> tuple[list[int], Counts]:
    counts = Counts()
    sieve = Sieve(filters, counts)
    made = [Row(str(i), problem, answer) for i, (problem, answer) in enumerate(rows)]
    return [int(row.id) for row in made if sieve.keeps(row)], counts


@pytest.mark.parametrize(
    ("duplicates", "left"),
    [("keep", [0, 1, 2, 3, 4]), ("exact", [0, 2, 3, 4]), ("normalized", [0, 4])],
)
def test_the_first_of_several_equal_rows_stays(duplicates: str, left: list[int]):
    rows = [("Find x.", "1"), ("Find x.", "1"), ("find $x$.", "1"), ("Find x.", "2"), ("y?", "1")]
    filters = Filters.model_validate({"duplicates": duplicates})
    numbers, counts = kept(filters, *rows)
    assert numbers == left
    # Three repeat the first: one to the letter, one in other letters, one with another answer.
    assert (counts.exact, counts.normalized, counts.disagreeing) == (1, 3, 1)
    assert counts.duplicates_left_out == 5 - len(left)


@pytest.mark.parametrize(
    ("problem", "cjk"),
    [
        ("Find $x$.", False),
        ("Trouvez le côté d'un carré, en ångström, Ω ≠ ∅", False),
        ("$[10 I]=$, 则", True),
        ("答え", True),
        ("합을 구하라", True),
        ("full-width （1，2）", False),
    ],
)
def test_one_character_tells_the_script(problem: str, cjk: bool):
    assert has_cjk(problem) == cjk
    assert kept(Filters(language="cjk"), (problem, "1"))[0] == [0] * cjk
    numbers, counts = kept(Filters(language="latin"), (problem, "1"))
    assert numbers == [0] * (not cjk)
    assert counts.other_script == cjk


@given(ROWS)
@examples(50)
def test_every_row_is_kept_or_left_out_for_one_reason(rows: list[Row]):
    for filters in EVERY:
        _, counts = kept(filters, *[(row.problem, row.answer) for row in rows])
        assert counts.other_script + counts.duplicates_left_out + counts.kept == len(rows)


@given(ROWS)
@examples(50)
def test_what_was_kept_once_is_kept_again(rows: list[Row]):
    pairs = [(row.problem, row.answer) for row in rows]
    for filters in EVERY:
        numbers, _ = kept(filters, *pairs)
        again, _ = kept(filters, *[pairs[number] for number in numbers])
        assert again == list(range(len(numbers)))


@given(ROWS)
@examples(50)
def test_after_normalized_no_two_problems_are_equal_and_none_is_lost(rows: list[Row]):
    pairs = [(row.problem, row.answer) for row in rows]
    numbers, _ = kept(Filters(duplicates="normalized"), *pairs)
    left = [squeezed(pairs[number][0]) for number in numbers]
    assert len(set(left)) == len(left)
    assert set(left) == {squeezed(problem) for problem, _ in pairs}


@given(st.lists(st.sampled_from(["row", "again", "cjk", "empty", "bad"]), max_size=12))
@examples(50)
def test_the_counts_of_a_source_add_up_to_what_was_read(kinds: list[str]):
    values = {
        "again": {"problem": "same", "answer": "1"},
        "cjk": {"problem": "求", "answer": "1"},
        "empty": {"problem": "p", "answer": None},
        "bad": [],
    }
    items = [
        Record(f"r:{i}", i, values.get(kind, {"problem": f"p{i}", "answer": "1"}))
        for i, kind in enumerate(kinds)
    ]
    filters = Filters(bad_rows="skip", empty_answer="drop", language="latin")
    config = DataConfig(name="d", path="r", filters=filters)
    loaded = sift(Source("r", len(items), None, lambda: iter(items)), config)
    counts = loaded.counts
    assert counts.read == len(kinds)
    assert counts.unreadable == kinds.count("bad")
    assert counts.empty_answer == kinds.count("empty")
    assert counts.other_script == kinds.count("cjk")
    assert counts.duplicates_left_out == max(kinds.count("again") - 1, 0)
    assert counts.kept == len(loaded.rows)
    lost = counts.unreadable + counts.empty_answer + counts.other_script
    assert lost + counts.duplicates_left_out + counts.kept == counts.read
    assert [type(fault) for fault in loaded.faults] == [Fault] * (lost - counts.other_script)
