"""The generated tasks: right answers, worked solutions, splits that never meet."""

import itertools
import re
from collections import Counter
from fractions import Fraction

import pytest

from grpo.data.tasks import TASKS
from grpo.errors import UserError
from grpo.types import Row
from grpo.verify import VERIFIERS


def test_a_row_shows_its_work_from_left_to_right():
    row = next(r for r in TASKS["arithmetic"](rows=200, max_terms=3) if r.problem.count("+") == 2)
    a, b, c = map(int, row.problem.split("+"))
    assert row.answer == str(a + b + c)
    assert row.solution == f"{a}+{b}={a + b}\n{a + b}+{c}={a + b + c}\n\\boxed{{{a + b + c}}}"


def test_equal_seeds_give_equal_rows_and_rows_are_distinct():
    rows = TASKS["arithmetic"](rows=500, seed=4)
    assert rows == TASKS["arithmetic"](rows=500, seed=4)
    assert rows != TASKS["arithmetic"](rows=500, seed=5)
    assert len({row.problem for row in rows}) == 500


def test_training_and_held_out_problems_never_meet():
    train = {row.problem for row in TASKS["arithmetic"](split="train", rows=3000)}
    held_out = {row.problem for row in TASKS["arithmetic"](split="heldout", rows=300, seed=9)}
    assert not train & held_out


def test_more_rows_than_exist_are_refused_with_the_number():
    with pytest.raises(UserError, match=r"only \d+ distinct train problems"):
        TASKS["arithmetic"](rows=1000, max_terms=2, largest=5)


def numbers_of(row: Row) -> tuple[int, list[int]]:
    target, numbers = row.answer.split(" from ")
    return int(target), [int(number) for number in numbers.split(" ")]


def puzzle_of(row: Row) -> tuple[int, tuple[int, ...]]:
    target, numbers = numbers_of(row)
    return target, tuple(sorted(numbers))


def reachable(parts: list[Fraction]) -> set[Fraction]:
    """Every value that all the parts together can give."""
    if len(parts) == 1:
        return {parts[0]}
    values: set[Fraction] = set()
    for i, j in itertools.permutations(range(len(parts)), 2):
        a, b = parts[i], parts[j]
        rest = [part for k, part in enumerate(parts) if k not in (i, j)]
        for value in [a + b, a - b, a * b, *([a / b] if b else [])]:
            values |= reachable([*rest, value])
    return values


def test_a_puzzle_shows_target_numbers_and_the_steps_of_a_solution():
    for row in TASKS["countdown"](rows=200):
        target, numbers = numbers_of(row)
        assert row.problem == f"Make {target} from the numbers {', '.join(map(str, numbers))}."
        *steps, box = row.solution.splitlines()
        assert len(steps) == len(numbers) - 1
        for step in steps:
            a, sign, b, value = re.fullmatch(r"(\d+)([-+*/])(\d+)=(\d+)", step).groups()  # type: ignore
            signs = {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}
            assert int(value) == signs.get(sign, Fraction(int(a), int(b))) >= 1
        assert int(value) == target
        assert VERIFIERS["countdown"](box, row.answer).reason == "correct"


def test_every_puzzle_can_be_solved_by_trying_everything():
    for row in TASKS["countdown"](rows=24, seed=2):
        target, numbers = numbers_of(row)
        assert Fraction(target) in reachable([Fraction(number) for number in numbers])


def test_puzzles_are_in_bounds_distinct_and_of_each_count_equally_many():
    rows = TASKS["countdown"](rows=101, seed=1, largest=30, largest_target=40)
    assert len({puzzle_of(row) for row in rows}) == 101
    counts = [len(numbers_of(row)[1]) for row in rows]
    assert Counter(counts) == {3: 51, 4: 50}
    assert 3 in counts[:20] and 4 in counts[:20]  # mixed, not one after the other
    for target, numbers in map(numbers_of, rows):
        assert 1 <= target <= 40 and all(1 <= number <= 30 for number in numbers)
    assert rows == TASKS["countdown"](rows=101, seed=1, largest=30, largest_target=40)
    assert rows != TASKS["countdown"](rows=101, seed=2, largest=30, largest_target=40)


def test_no_puzzle_is_in_both_splits_whatever_its_order_and_the_options():
    """So few puzzles that the two splits would meet by chance if nothing kept them apart."""
    train: set[tuple[int, tuple[int, ...]]] = set()
    for seed in range(3):
        rows = TASKS["countdown"](rows=200, max_numbers=3, largest=7, seed=seed)
        train |= {puzzle_of(row) for row in rows}
    rows = TASKS["countdown"](
        split="heldout", rows=60, max_numbers=3, largest=8, largest_target=50, seed=7
    )
    held_out = {puzzle_of(row) for row in rows}
    assert not train & held_out
    assert len(train) > 300


def test_where_puzzles_run_out_the_number_found_is_all_there_are():
    """Two ones make 2 and 1, and no other whole number from 1."""
    found = 0
    for split in ("train", "heldout"):
        with pytest.raises(UserError) as error:
            TASKS["countdown"](split=split, rows=9, min_numbers=2, max_numbers=2, largest=1)
        found += int(re.search(r"only (\d) distinct", str(error.value))[1])  # type: ignore
    assert found == 2


def test_longer_puzzles_fill_up_where_short_ones_run_out():
    rows = TASKS["countdown"](rows=60, min_numbers=2, max_numbers=3, largest=3)
    counts = Counter(len(numbers_of(row)[1]) for row in rows)
    assert counts[2] < 30 and counts.total() == 60


@pytest.mark.parametrize(
    ("option", "value"), [("rows", 0), ("min_numbers", 1), ("max_numbers", 2), ("largest", 0)]
)
def test_a_countdown_option_that_is_too_small_is_named(option: str, value: int):
    with pytest.raises(UserError, match=f"task 'countdown': {option} is {value}, expected"):
        TASKS["countdown"](**{option: value})
