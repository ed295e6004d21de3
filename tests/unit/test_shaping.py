"""Flat groups are told from informative ones by the rule that the estimators use."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo.algo.advantage import ADVANTAGES
from grpo.algo.shaping import is_flat, split_flat
from grpo.batch import with_advantages
from grpo.types import Group, Prompt, ScoredGroup, Verdict


def scored(serial: int, rewards: list[float]) -> ScoredGroup:
    prompt = Prompt(serial, f"row-{serial}", "problem", "answer", (1,))
    return ScoredGroup(Group(prompt, ()), tuple(Verdict(r, "", "correct") for r in rewards))


@pytest.mark.parametrize(
    ("rewards", "flat"),
    [
        ([1, 1, 1], True),
        ([0], True),
        ([0.1 + 0.2, 0.3], True),
        ([1e6, 1e6 + 1e-3], True),
        ([1, 1, 0], False),
        ([0, 1e-6], False),
    ],
)
def test_a_group_is_flat_where_rewards_differ_by_rounding_only(rewards: list[float], flat: bool):
    assert is_flat(rewards) is flat


def test_the_tolerance_can_be_widened():
    assert is_flat([0.9, 1.0], tolerance=0.1)


@pytest.mark.parametrize("rewards", [[], [1, math.nan], [math.inf, math.inf]])
def test_rewards_that_say_nothing_are_refused(rewards: list[float]):
    with pytest.raises(ValueError, match="finite"):
        is_flat(rewards)


def test_groups_are_split_in_their_order():
    rewards: list[list[float]] = [[1, 0], [1, 1], [0, 1], [0, 0]]
    groups = [scored(serial, group) for serial, group in enumerate(rewards)]
    informative, flat = split_flat(groups)
    assert [g.group.prompt.serial for g in informative] == [0, 2]
    assert [g.group.prompt.serial for g in flat] == [1, 3]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=1, max_size=8))
def test_flat_groups_are_exactly_those_whose_advantages_are_all_zero(rewards: list[float]):
    """I4: the filter and the estimator share one rule."""
    (group,) = with_advantages([scored(0, rewards)], ADVANTAGES["group_norm"])
    assert is_flat(rewards) == (not any(group.advantages))
