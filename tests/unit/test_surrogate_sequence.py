"""Surrogates about whole sequences (gspo, gspo_token, gmpo): I10-I12, I33, and numbers by hand."""

import math
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from grpo.algo.aggregate import AGGREGATORS
from grpo.algo.surrogate import SURROGATES, ppo_clip
from tests.examples import examples
from tests.unit.test_surrogate import Rows, close, evaluate, row_index, rows

few = examples(50)
fewer = examples(20)
SEQUENCE = ["gspo", "gspo_token", "gmpo"]
FREE: dict[str, Any] = {"clip_low": 1.0, "clip_high": 1e9}  # no ratio is clipped
every_sequence = pytest.mark.parametrize("name", SEQUENCE)
sequence_ratio = pytest.mark.parametrize("name", ["gspo", "gspo_token"])
row = st.lists(st.floats(-2, 2), min_size=1, max_size=5)
advantages = st.floats(0.1, 5) | st.floats(-5, -0.1)


def weighted(rule: str, objective_T: Tensor, log_ratios: list[list[float]]) -> float:
    """The objective of one group of these responses under a rule."""
    row_T = row_index(log_ratios)
    lengths_N = torch.bincount(row_T)
    nothing_N = torch.zeros_like(lengths_N)
    weights_N = AGGREGATORS[rule](lengths_N, nothing_N, nothing_N, max_tokens=10)
    return float((weights_N[row_T] * objective_T).sum())


def sequence_ratios(log_ratios: list[list[float]]) -> list[float]:
    return [math.exp(math.fsum(row) / len(row)) for row in log_ratios]


@sequence_ratio
@pytest.mark.parametrize(
    ("log_ratios", "advantage", "value", "gradient"),
    [
        ([0.0004, 0.0002], 2, 2 * math.exp(0.0003), 2 * math.exp(0.0003)),
        ([0.6, -0.2], 2, 2.0008, 0),  # s = e^0.2: above 1.0004, both tokens die
        ([0.6, -1.0], 2, 2 * math.exp(-0.2), 2 * math.exp(-0.2)),
        ([-0.6, 0.2], -2, -1.9994, 0),  # s = e^-0.2: below 0.9997
        ([-0.6, 1.0], -2, -2 * math.exp(0.2), -2 * math.exp(0.2)),
        ([5.0, -5.0], 2, 2, 2),  # far out one by one, on the policy together
    ],
)
def test_gspo_clips_a_sequence_as_a_whole(
    name: str, log_ratios: list[float], advantage: float, value: float, gradient: float
):
    """I11."""
    objective_T, gradient_T = evaluate(name, [log_ratios], [advantage])
    assert objective_T.tolist() == pytest.approx([value] * 2, rel=1e-9)
    assert gradient_T.tolist() == pytest.approx([gradient] * 2, rel=1e-9)


@pytest.mark.parametrize(
    ("log_ratios", "advantage", "log_ratio", "alive"),
    [
        ([0.2, 0.3], 2, 0.25, [True, True]),
        ([0.2, 0.8], 2, 0.3, [True, False]),  # (0.2 + 0.4) / 2
        ([0.2, -0.8], 2, -0.3, [True, True]),  # A > 0: free below
        ([-0.2, -0.8], -2, -0.3, [True, False]),  # (-0.2 - 0.4) / 2
        ([0.2, 0.8], -2, 0.5, [True, True]),  # A < 0: free above
        ([5.0, -5.0], 2, -2.3, [False, True]),  # (0.4 - 5) / 2
    ],
)
def test_gmpo_clips_token_by_token(
    log_ratios: list[float], advantage: float, log_ratio: float, alive: list[bool]
):
    """I11."""
    objective_T, gradient_T = evaluate("gmpo", [log_ratios], [advantage])
    value = advantage * math.exp(log_ratio)
    assert objective_T.tolist() == pytest.approx([value] * 2, rel=1e-9)
    assert gradient_T.tolist() == pytest.approx([value * one for one in alive], rel=1e-9)


@sequence_ratio
@given(log_ratios=row, advantage=advantages)
@fewer
def test_gspo_dies_only_where_the_sequence_went_far_enough(
    name: str, log_ratios: list[float], advantage: float
):
    """I11."""
    (ratio,) = sequence_ratios([log_ratios])
    assume(min(abs(ratio - edge) for edge in (0.9997, 1.0004)) > 1e-9)
    _, gradient_T = evaluate(name, [log_ratios], [advantage])
    clipped = ratio > 1.0004 if advantage > 0 else ratio < 0.9997
    close(gradient_T, torch.full_like(gradient_T, 0 if clipped else advantage * ratio))


@few
@given(row, advantages)
def test_gmpo_kills_only_the_tokens_that_went_far_enough(log_ratios: list[float], advantage: float):
    """I11."""
    assume(all(abs(abs(log_ratio) - 0.4) > 1e-9 for log_ratio in log_ratios))
    objective_T, gradient_T = evaluate("gmpo", [log_ratios], [advantage])
    sign = math.copysign(1, advantage)
    alive = [float(sign * log_ratio < 0.4) for log_ratio in log_ratios]
    close(gradient_T, objective_T * torch.tensor(alive, dtype=torch.float64))


@few
@given(rows())
def test_gspo_token_is_gspo_in_value_and_gradient(drawn: Rows):
    """With one advantage per response."""
    for left, right in zip(evaluate("gspo_token", *drawn), evaluate("gspo", *drawn), strict=True):
        close(left, right)


def test_gspo_token_keeps_a_gradient_of_its_own_per_token():
    """Where tokens weigh 1 and 3, gspo spreads the sum evenly, (1 + 3) / 2 each."""
    gradients: list[list[float]] = []
    for name in ("gspo_token", "gspo"):
        logprobs_T = torch.tensor([-1.0, -2.0], dtype=torch.float64, requires_grad=True)
        advantages_N, row_T = torch.tensor([1.0]), torch.tensor([0, 0])
        objective_T = SURROGATES[name](logprobs_T, logprobs_T.detach(), advantages_N, row_T)
        (objective_T * torch.tensor([1.0, 3.0])).sum().backward()
        assert logprobs_T.grad is not None
        gradients.append(logprobs_T.grad.tolist())
    assert gradients == [[1, 3], [2, 2]]


@every_sequence
@given(drawn=rows())
@fewer
def test_without_clips_it_is_the_geometric_mean_of_the_ratios(name: str, drawn: Rows):
    """I12: of gmpo and of gspo, in value and gradient."""
    log_ratios, advantages = drawn
    free: dict[str, Any] = {"clip_low": 1e9, "clip_high": 1e9} if name == "gmpo" else FREE
    objective_T, gradient_T = evaluate(name, log_ratios, advantages, **free)
    ratios_N = torch.tensor(sequence_ratios(log_ratios), dtype=torch.float64)
    expected_N = ratios_N * torch.tensor(advantages, dtype=torch.float64)
    close(objective_T, expected_N[row_index(log_ratios)])
    close(gradient_T, expected_N[row_index(log_ratios)])


@sequence_ratio
@given(
    pairs=st.lists(st.tuples(st.floats(-2, 2), advantages), min_size=1, max_size=4),
    clip_low=st.floats(0, 0.9),
    clip_high=st.floats(0, 2),
)
@fewer
def test_a_response_of_one_token_makes_gspo_the_ppo_clip(
    name: str, pairs: list[tuple[float, float]], clip_low: float, clip_high: float
):
    """I12."""
    log_ratios, advantages = [[pair[0]] for pair in pairs], [pair[1] for pair in pairs]
    clips: dict[str, Any] = {"clip_low": clip_low, "clip_high": clip_high}
    # At the very bound, value and clip are one number and rounding chooses the gradient.
    ratios = [math.exp(row[0]) for row in log_ratios]
    edges = (1 - clip_low, 1 + clip_high)
    assume(all(abs(ratio - edge) > 1e-9 for ratio in ratios for edge in edges))
    mine = evaluate(name, log_ratios, advantages, **clips)
    ppo = evaluate("ppo_clip", log_ratios, advantages, dual_clip=None, **clips)
    for left, right in zip(mine, ppo, strict=True):
        close(left, right)


def test_a_response_of_one_token_makes_gmpo_the_ppo_clip_with_its_bounds():
    """I12."""
    log_ratios, advantages = [[0.3], [0.5], [-0.5], [-0.5]], [2.0, 2.0, -1.0, 1.0]
    clips: dict[str, Any] = {"clip_low": 1 - math.exp(-0.4), "clip_high": math.exp(0.4) - 1}
    mine = evaluate("gmpo", log_ratios, advantages)
    ppo = evaluate("ppo_clip", log_ratios, advantages, dual_clip=None, **clips)
    for left, right in zip(mine, ppo, strict=True):
        close(left, right)


@every_sequence
@given(drawn=rows())
@fewer
def test_the_sequence_mean_gives_back_the_mean_over_responses(name: str, drawn: Rows):
    """The value repeated on the tokens is that of the response."""
    log_ratios, advantages = drawn
    objective_T, _ = evaluate(name, log_ratios, advantages)
    lengths = [len(row) for row in log_ratios]
    first = [sum(lengths[:index]) for index in range(len(lengths))]
    for start, length in zip(first, lengths, strict=True):
        close(objective_T[start : start + length], objective_T[start].expand(length))
    mean = float(objective_T[first].mean())
    assert weighted("seq_mean_token_mean", objective_T, log_ratios) == pytest.approx(mean)


@every_sequence
@given(drawn=rows(), shift=st.integers(1, 3))
@fewer
def test_the_order_of_tokens_does_not_matter(name: str, drawn: Rows, shift: int):
    log_ratios, advantages = drawn
    turned = [row[shift % len(row) :] + row[: shift % len(row)] for row in log_ratios]
    close(evaluate(name, turned, advantages)[0], evaluate(name, log_ratios, advantages)[0])


def test_luspo_counts_a_sequence_once_per_token():
    """(3 * 1.0004 + 1 * -1) / 2 where gspo alone has (1.0004 - 1) / 2."""
    log_ratios = [[0.3, 0.3, 0.3], [0.0]]
    objective_T, _ = evaluate("gspo", log_ratios, [1.0, -1.0])
    assert weighted("luspo", objective_T, log_ratios) == pytest.approx(1.0006)
    assert weighted("seq_mean_token_mean", objective_T, log_ratios) == pytest.approx(0.0002)


@few
@given(st.integers(1, 6), st.lists(st.tuples(st.floats(-2, 2), advantages), min_size=1, max_size=5))
def test_luspo_of_equal_lengths_is_gspo_times_the_length(
    length: int, pairs: list[tuple[float, float]]
):
    """I33; the same where every length is 1."""
    log_ratios = [[pair[0]] * length for pair in pairs]
    objective_T, _ = evaluate("gspo", log_ratios, [pair[1] for pair in pairs])
    gspo = weighted("seq_mean_token_mean", objective_T, log_ratios)
    luspo = weighted("luspo", objective_T, log_ratios)
    assert luspo == pytest.approx(length * gspo, rel=1e-9, abs=1e-12)


@every_sequence
def test_a_response_without_tokens_harms_no_other(name: str):
    """Row 1 of three has no token."""
    zeros_T = torch.zeros(2, dtype=torch.float64)
    advantages_N = torch.tensor([2.0, 5.0, -1.0])
    objective_T = SURROGATES[name](zeros_T, zeros_T, advantages_N, torch.tensor([0, 2]))
    assert objective_T.tolist() == [2, -1]


def test_tokens_of_a_response_need_not_stand_together():
    """Only row_T says whose a token is: e^0.2 and e^-0.2 whatever the order."""
    ratios = {"gspo": FREE, "gspo_token": FREE, "gmpo": {}}
    logprobs_T = torch.tensor([0.1, -0.3, 0.3, -0.1], dtype=torch.float64)
    zeros_T, row_T = torch.zeros_like(logprobs_T), torch.tensor([0, 1, 0, 1])
    for name, options in ratios.items():
        part = SURROGATES.bind(name, options)
        objective_T = part(logprobs_T, zeros_T, torch.ones(2), row_T)
        expected = [math.exp(0.2), math.exp(-0.2)] * 2
        assert objective_T.tolist() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", ["gspo", "gspo_token"])
def test_a_bound_is_inside(name: str):
    """s = 1 with both clips closed: the gradient lives, as ppo_clip's does at its bounds."""
    closed: dict[str, Any] = {"clip_low": 0.0, "clip_high": 0.0}
    objective_T, gradient_T = evaluate(name, [[0.0, 0.0]], [2.0], **closed)
    zeros_T = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    ppo_T = ppo_clip(zeros_T, zeros_T, torch.tensor([2.0]), torch.tensor([0, 0]), **closed)
    ppo_T.sum().backward()
    assert objective_T.tolist() == ppo_T.tolist() == [2, 2]
    assert zeros_T.grad is not None
    close(gradient_T, zeros_T.grad)
    assert gradient_T.tolist() == pytest.approx([2, 2])
