"""Flat groups are told from informative ones by the rule that the estimators use."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo.algo.advantage import ADVANTAGES
from grpo.algo.shaping import is_flat, is_informative, overlong_penalty, shape
from grpo.batch.build import with_advantages
from grpo.types import FinishReason, Group, Prompt, Response, Row, ScoredGroup, Verdict
from tests.examples import examples


def scored(serial: int, rewards: list[float]) -> ScoredGroup:
    prompt = Prompt(serial, Row(f"row-{serial}", "problem", "answer"), (1,))
    answer = Response(np.zeros(1, np.int32), np.zeros(1, np.float32), "stop", (), "")
    verdicts = tuple(Verdict(r, "", "correct") for r in rewards)
    return ScoredGroup(Group(prompt, (answer,) * len(rewards)), verdicts)


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


@pytest.mark.parametrize("rewards", [[], [1, math.nan], [math.inf, math.inf]])
def test_rewards_that_say_nothing_are_refused(rewards: list[float]):
    with pytest.raises(ValueError, match="finite"):
        is_flat(rewards)


def test_a_group_is_informative_where_its_verdicts_differ():
    rewards: list[list[float]] = [[1, 0], [1, 1], [0, 1], [0, 0]]
    found = [is_informative(scored(serial, group)) for serial, group in enumerate(rewards)]
    assert found == [True, False, True, False]


@examples(50)
@given(st.lists(st.floats(-1, 1), min_size=1, max_size=8))
def test_flat_groups_are_exactly_those_whose_advantages_are_all_zero(rewards: list[float]):
    """I4: the filter and the estimator share one rule."""
    (group,) = with_advantages([scored(0, rewards)], ADVANTAGES["group_norm"])
    assert is_flat(rewards) == (not any(group.advantages))


def answered(*answers: tuple[float, int, FinishReason]) -> ScoredGroup:
    """A group from (reward, length, finish reason) of each sibling."""
    responses = tuple(
        Response(np.zeros(n, np.int32), np.zeros(n, np.float32), finish, (), "")
        for _, n, finish in answers
    )
    prompt = Prompt(0, Row("row", "problem", "answer"), (1,))
    verdicts = tuple(Verdict(reward, "", "") for reward, _, _ in answers)
    return ScoredGroup(Group(prompt, responses), verdicts)


@pytest.mark.parametrize(
    ("length", "penalty"), [(1, 0), (80, 0), (85, -0.25), (90, -0.5), (100, -1), (120, -1)]
)
def test_the_punishment_grows_through_the_buffer(length: int, penalty: float):
    assert overlong_penalty(length, max_tokens=100, buffer=20) == penalty


def test_without_a_buffer_no_length_is_punished():
    assert overlong_penalty(100, max_tokens=100, buffer=0) == 0


def test_shaping_adds_penalties_to_rewards_and_leaves_the_verdicts():
    group = answered((1, 95, "stop"), (0, 100, "length"))
    shaped = shape(group, max_tokens=100, buffer=10, penalty=2.0, mask_truncated=False)
    assert shaped.penalties == (-1, -2)
    assert shaped.rewards == [0, -2]
    assert shaped.accuracies == [1, 0]
    assert shaped.masked == ()


def test_truncated_answers_are_masked_whatever_their_reward():
    group = answered((1, 95, "stop"), (1, 100, "length"), (0, 100, "length"))
    shaped = shape(group, max_tokens=100, buffer=0, penalty=1.0, mask_truncated=True)
    assert shaped.masked == (False, True, True)
    assert shaped.penalties == ()


def test_lengths_make_no_group_informative():
    """DAPO filters by accuracy: punished lengths differ in almost every group."""
    alike = answered((1, 95, "stop"), (1, 100, "length"))
    shaped = shape(alike, max_tokens=100, buffer=10, penalty=1.0, mask_truncated=False)
    assert not is_flat(shaped.rewards)
    assert not is_informative(shaped)


def test_a_group_that_is_masked_whole_teaches_nothing():
    cut = answered((1, 100, "length"), (0, 100, "length"))
    shaped = shape(cut, max_tokens=100, buffer=0, penalty=1.0, mask_truncated=True)
    assert is_informative(cut) and not is_informative(shaped)
