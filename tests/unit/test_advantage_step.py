"""Advantages that look beyond their group: `batch_norm` and `reinforce_pp` in steps of several
groups, against hand-computed numbers and a computation token by token.
"""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from grpo.algo.advantage import ADVANTAGES, StepRewards
from grpo.registry import call
from tests.examples import examples

few = examples(50)
both_baselines = pytest.mark.parametrize("baseline", ["group", "none"])


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def step(*groups: tuple[list[float], list[int]]) -> StepRewards:
    """Of (rewards, lengths) per group."""
    return StepRewards(
        [f64(*rewards) for rewards, _ in groups], [torch.tensor(n) for _, n in groups]
    )


def advantages(name: str, facts: StepRewards, **options: Any) -> list[Tensor]:
    part = ADVANTAGES.bind(name, options)
    return [call(part, rewards_G, step=facts) for rewards_G in facts.rewards]


def close(left: Tensor, right: Tensor) -> None:
    torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-9)


def whitened_by_token(facts: StepRewards, baseline: str, eps: float) -> list[Tensor]:
    """Every response is written out as its tokens, as a whitening of the token mask has it."""
    values, rows = [], []
    for rewards_G, lengths_G in zip(facts.rewards, facts.lengths, strict=True):
        centre = sum(rewards_G.tolist()) / len(rewards_G) if baseline == "group" else 0.0
        for reward, length in zip(rewards_G.tolist(), lengths_G.tolist(), strict=True):
            rows.append(len(values))
            values += [reward - centre] * length
    tokens_S = f64(*values)
    variance = tokens_S.var(correction=1)
    whitened_S = (tokens_S - tokens_S.mean()) * torch.rsqrt(variance + eps)
    return list(whitened_S[rows].split([len(rewards) for rewards in facts.rewards]))


@st.composite
def steps(draw: st.DrawFn, max_groups: int = 4) -> StepRewards:
    """Groups of their own sizes, some of them flat, and at least one of them mixed."""
    groups: list[tuple[list[float], list[int]]] = []
    for number in range(draw(st.integers(1, max_groups))):
        size = draw(st.integers(2, 6))
        rewards = [draw(st.integers(-300, 300)) / 100 for _ in range(size)]
        if draw(st.booleans()):
            rewards = [rewards[0]] * size
        if number == 0:
            rewards[0] = rewards[1] + 1
        groups.append((rewards, [draw(st.integers(1, 30)) for _ in range(size)]))
    return step(*groups)


TWO_GROUPS = step(([1, 0], [1, 3]), ([1, 1], [2, 2]))


@pytest.mark.parametrize(
    ("options", "mixed"),
    [
        # rewards 1 0 1 1: mean 3/4, squares 3/4 in all; centred 1/2 and -1/2
        ({"eps": 0.0}, [1, -1]),
        ({"eps": 0.0, "ddof": 0}, [2 / math.sqrt(3), -2 / math.sqrt(3)]),
        ({"eps": 0.5}, [0.5, -0.5]),
        ({}, [0.5 / 0.5001, -0.5 / 0.5001]),
    ],
)
def test_batch_norm_divides_by_the_deviation_of_all_rewards(
    options: dict[str, float], mixed: list[float]
):
    mixed_G, flat_G = advantages("batch_norm", TWO_GROUPS, **options)
    close(mixed_G, f64(*mixed))
    assert flat_G.tolist() == [0, 0]


@few
@given(steps(), st.sampled_from([0, 1]), st.sampled_from([0.0, 1e-4, 1.0]))
def test_batch_norm_scales_every_group_alike(facts: StepRewards, ddof: int, eps: float):
    """I4: a flat group beside others gives exactly 0."""
    deviation = float(torch.cat(facts.rewards).std(correction=ddof))
    centred = advantages("group_center", facts)
    for mine_G, centred_G in zip(
        advantages("batch_norm", facts, ddof=ddof, eps=eps), centred, strict=True
    ):
        close(mine_G, centred_G / (deviation + eps))
        assert mine_G.any() == centred_G.any()


@few
@given(steps(max_groups=1), st.sampled_from([0, 1]), st.sampled_from([0.0, 1e-4]))
def test_batch_norm_of_one_group_is_its_group_norm(facts: StepRewards, ddof: int, eps: float):
    batch = advantages("batch_norm", facts, ddof=ddof, eps=eps)
    close(batch[0], advantages("group_norm", facts, ddof=ddof, eps=eps)[0])


def test_flat_groups_of_unlike_rewards_get_nothing_from_batch_norm():
    """I4: the step has a deviation, its groups have no winner."""
    facts = step(([1, 1], [1, 1]), ([0, 0], [1, 1]))
    assert [mine_G.tolist() for mine_G in advantages("batch_norm", facts, eps=0)] == [
        [0, 0],
        [0, 0],
    ]


@pytest.mark.parametrize(
    ("baseline", "expected"),
    [
        # tokens 1/2, -1/2 three times, 0 four times: mean -1/8, variance (7/8) / 7 = 1/8;
        # the distances from the mean are 5/8, -3/8 and, for the flat group, 1/8
        ("group", [[5 / math.sqrt(8), -3 / math.sqrt(8)], [1 / math.sqrt(8)] * 2]),
        # tokens 1, 0 three times, 1 four times: mean 5/8, variance (15/8) / 7
        ("none", [[math.sqrt(21 / 40), -math.sqrt(35 / 24)], [math.sqrt(21 / 40)] * 2]),
    ],
)
def test_reinforce_pp_by_hand(baseline: str, expected: list[list[float]]):
    """The flat group has an advantage: whitening moves the mean over tokens, not its own."""
    whitened = advantages("reinforce_pp", TWO_GROUPS, baseline=baseline, eps=0.0)
    for mine_G, expected_G in zip(whitened, expected, strict=True):
        close(mine_G, f64(*expected_G))


def test_eps_is_added_inside_the_root():
    """Tokens 1/2, -1/2 three times: mean -1/4, variance 1/4, and 1/4 + 3/4 has the root 1."""
    facts = step(([1, 0], [1, 3]))
    close(advantages("reinforce_pp", facts, eps=0.75)[0], f64(0.75, -0.25))


def test_a_group_on_the_mean_of_all_tokens_is_not_moved():
    facts = step(([1, 0], [2, 2]), ([1, 1], [3, 5]))
    mixed_G, flat_G = advantages("reinforce_pp", facts, eps=0.0)
    assert flat_G.tolist() == [0, 0]
    # tokens 1/2, 1/2, -1/2, -1/2 and eight zeros: variance 1 / 11
    close(mixed_G, f64(math.sqrt(11) / 2, -math.sqrt(11) / 2))


@both_baselines
@given(facts=steps(), eps=st.sampled_from([None, 0.0, 0.1]))
@few
def test_reinforce_pp_is_the_whitening_of_every_token(
    baseline: str, facts: StepRewards, eps: float | None
):
    options = {} if eps is None else {"eps": eps}
    whitened = advantages("reinforce_pp", facts, baseline=baseline, **options)
    literal = whitened_by_token(facts, baseline, 1e-8 if eps is None else eps)
    for mine_G, literal_G in zip(whitened, literal, strict=True):
        close(mine_G, literal_G)


@both_baselines
@given(facts=steps())
@few
def test_whitened_tokens_have_mean_zero_and_variance_one(baseline: str, facts: StepRewards):
    whitened_N = torch.cat(advantages("reinforce_pp", facts, baseline=baseline, eps=0.0))
    lengths_N = torch.cat(facts.lengths)
    total = int(lengths_N.sum())
    assert float((lengths_N * whitened_N).sum()) / total == pytest.approx(0, abs=1e-9)
    assert float((lengths_N * whitened_N**2).sum()) / (total - 1) == pytest.approx(1, rel=1e-9)


@both_baselines
def test_a_response_without_tokens_moves_no_statistic(baseline: str):
    short, long = step(([1, 0], [1, 3])), step(([1, 0, 0.5], [1, 3, 0]))
    short_G = advantages("reinforce_pp", short, baseline=baseline)[0]
    close(advantages("reinforce_pp", long, baseline=baseline)[0][:2], short_G)


@both_baselines
@pytest.mark.parametrize("reward", [0.0, 0.1, -7.3, 1e6 / 3, 1e9 + 0.1])
@pytest.mark.parametrize("size", [1, 3, 7])
def test_a_step_of_equal_rewards_gives_exactly_zero(baseline: str, reward: float, size: int):
    """I4: the tokens have no variance but rounding, however large the rewards are."""
    group = ([reward] * size, list(range(7, 7 * size + 1, 7)))
    for facts in (step(group), step(group, group)):
        for mine_G in advantages("reinforce_pp", facts, baseline=baseline):
            assert mine_G.tolist() == [0.0] * size


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["batch_norm", "reinforce_pp"])
def test_a_reward_of_another_group_that_is_not_finite_is_refused(name: str, bad: float):
    facts = step(([1, 0], [1, 1]), ([1, bad], [1, 1]))
    with pytest.raises(ValueError, match="finite"):
        call(ADVANTAGES.bind(name, {}), facts.rewards[0], step=facts)
