"""The generated task: right answers, worked solutions, splits that never meet."""

import pytest

from grpo.errors import UserError
from grpo.tasks import TASKS


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
