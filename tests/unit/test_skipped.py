"""Optimizer steps that were not taken: counted, told of, and given up after several in a row."""

import math
from io import StringIO
from typing import Any

import pytest

from grpo.console import Screen
from grpo.errors import Diverged
from grpo.train.groups import Collected
from grpo.train.health import SkippedSteps
from grpo.train.update import Learned, PolicyUpdate, Suspect
from tests.unit.test_step import Learner, group, recipe

GROUPS = [group(serial, [1.0, 0.0], [3, 4]) for serial in range(4)]


class Ill(Learner):
    """Skips the optimizer's attempts whose places are given; `parts` of the loss by sequence."""

    def __init__(self, skips: set[int], parts: dict[int, float] | None = None):
        super().__init__()
        self.skips = skips
        self.parts = parts or {0: 0.5, 1: -0.25}

    def step(self, index: int, number: int) -> dict[str, float]:
        skipped = len(self.steps) in self.skips
        loss = math.nan if skipped else float(number)
        super().step(index, number)
        return {"learn/loss": loss, "learn/skipped": float(skipped)}

    def parts_of_loss(self, index: int) -> dict[int, float]:
        return self.parts


def learned(learner: Ill, number: int = 0, **changes: Any) -> Learned:
    stand_in: Any = learner
    return PolicyUpdate(recipe(**changes), stand_in).learn(Collected(GROUPS, GROUPS), number)


def test_a_skipped_step_counts_for_nothing_and_the_schedule_does_not_move():
    learner = Ill({1, 2})
    found = learned(learner, 10, schedule={"minibatches": 4})
    assert learner.steps == [(0, 10), (1, 11), (2, 11), (3, 11)], "(mini-batch, number of the step)"
    assert found.optimizer_steps == 2 and found.skipped_in_a_row == 0
    assert found.metrics["learn/skipped"] == 2.0
    assert found.metrics["learn/loss"] == (10 + 11) / 2, "means over the steps that were taken"


def test_steps_that_are_skipped_in_a_row_are_counted_across_rollout_steps():
    learner: Any = Ill({0, 1, 2})
    update = PolicyUpdate(recipe(), learner)
    rows = [update.learn(Collected(GROUPS, GROUPS), 0).skipped_in_a_row for _ in range(4)]
    assert rows == [1, 2, 3, 0]


def test_the_count_goes_with_a_checkpoint():
    learner: Any = Ill({0})
    update = PolicyUpdate(recipe(), learner)
    update.learn(Collected(GROUPS, GROUPS), 0)
    resumed = PolicyUpdate(recipe(), learner)
    resumed.load_state_dict(update.state_dict())
    assert resumed.skipped_in_a_row == 1


@pytest.mark.parametrize(
    ("parts", "serial", "index"),
    [
        ({0: 0.5, 1: math.nan, 2: 9.0}, 0, 1),
        ({0: 0.5, 1: 0.1, 2: -9.0}, 1, 0),
        ({5: -math.inf, 3: math.nan, 0: 1e9}, 1, 1),
    ],
)
def test_the_suspect_is_the_first_whose_part_is_not_finite_or_else_the_largest(
    parts: dict[int, float], serial: int, index: int
):
    (suspect,) = learned(Ill({0}, parts)).suspects
    assert (suspect.group.group.prompt.serial, suspect.index) == (serial, index)


# --- what the run makes of it ---


def skipped(row: int, *serials: int) -> Learned:
    suspects = tuple(Suspect(learned(Ill(set())).collected.used[s], 0, math.inf) for s in serials)
    return Learned(Collected([], []), 0, {}, row, suspects)


def taken() -> Learned:
    return Learned(Collected([], []), 1, {}, 0, ())


def looked(most: int) -> tuple[SkippedSteps, StringIO]:
    told = StringIO()
    return SkippedSteps(most, Screen(StringIO(), told)), told


def test_each_is_told_with_the_answer_that_adds_most():
    steps, told = looked(3)
    steps.look(5, skipped(1, 2), lambda: 0)
    text = " ".join(told.getvalue().split())
    assert "step 5: an optimizer step was not taken, since its gradient is not finite" in text
    assert "(inf), to row '2', has 3 tokens, reward 1 and advantage" in text


def test_the_last_in_a_row_gives_up_with_the_groups_of_all_of_them():
    steps, _ = looked(3)
    steps.look(5, skipped(1, 0), lambda: 0)
    steps.look(6, skipped(2, 1), lambda: 0)
    with pytest.raises(Diverged, match=r"step 7: 3 optimizer steps in a row .*max_skipped") as end:
        steps.look(7, skipped(3, 3), lambda: 0)
    assert [group.group.prompt.serial for group in end.value.groups] == [0, 1, 3]


def test_a_step_that_is_taken_clears_the_suspicion():
    steps, _ = looked(2)
    steps.look(5, skipped(1, 0), lambda: 0)
    steps.look(6, taken(), lambda: 0)
    steps.look(7, skipped(1, 0, 1), lambda: 0)  # and one was taken between the two
    with pytest.raises(Diverged) as end:
        steps.look(8, skipped(2, 2), lambda: 0)
    assert [group.group.prompt.serial for group in end.value.groups] == [1, 2]


def test_nobody_is_left_out_whose_own_part_of_the_loss_is_finite():
    """What is not, is elsewhere: in KL or entropy, or in the sum."""
    steps, told = looked(1)
    suspect = Suspect(learned(Ill(set())).collected.used[2], 0, 0.75)
    with pytest.raises(Diverged) as end:
        steps.look(5, Learned(Collected([], []), 0, {}, 1, (suspect,)), lambda: 0)
    assert end.value.groups == () and "(0.75), to row '2'" in " ".join(told.getvalue().split())


def test_weights_that_are_not_finite_give_up_at_once_and_blame_nobody():
    steps, _ = looked(3)
    with pytest.raises(Diverged, match=r"step 5: 1,234 of the learner's weights") as end:
        steps.look(5, skipped(1, 0), lambda: 1234)
    assert end.value.groups == ()


def test_as_long_as_steps_are_taken_nobody_looks_at_the_weights():
    steps, told = looked(3)
    steps.look(5, taken(), lambda: pytest.fail("it takes a pass over all of them"))
    assert told.getvalue() == ""
