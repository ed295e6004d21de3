"""The clipped surrogate against hand-computed numbers and the invariants I9-I11."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from grpo.algo.surrogate import SURROGATES, clip_fractions
from grpo.errors import UserError

few = settings(max_examples=50, deadline=None)
ppo_clip = SURROGATES["ppo_clip"]
log_ratios = st.floats(-4, 4)
advantages = st.floats(-5, 5)
bounds = st.sampled_from([None, 3.0, 10.0])


def objective(
    ratios: list[float], advantages: list[float], dual_clip: float | None = 10.0
) -> tuple[list[float], list[float]]:
    """Values and their gradients in the logprobs, one response per token."""
    old_T = torch.linspace(-3, -0.1, len(ratios), dtype=torch.float64)
    logprobs_T = (old_T + torch.tensor(ratios, dtype=torch.float64).log()).requires_grad_()
    advantages_N = torch.tensor(advantages, dtype=torch.float64)
    values_T = ppo_clip(
        logprobs_T, old_T, advantages_N, torch.arange(len(ratios)), dual_clip=dual_clip
    )
    (gradient_T,) = torch.autograd.grad(values_T.sum(), logprobs_T)
    return values_T.tolist(), gradient_T.tolist()


@pytest.mark.parametrize(
    ("ratio", "advantage", "value", "gradient"),
    [
        (1.1, 2, 2.2, 2.2),  # inside
        (1.5, 2, 2.56, 0),  # A > 0 above: held at 1.28
        (0.5, 2, 1.0, 1.0),  # A > 0 below: free
        (0.5, -2, -1.6, 0),  # A < 0 below: held at 0.8
        (1.5, -2, -3.0, -3.0),  # A < 0 above: free ...
        (12, -2, -20.0, 0),  # ... up to the dual clip
        (3, 0, 0, 0),
    ],
)
def test_one_token_by_hand(ratio: float, advantage: float, value: float, gradient: float):
    """I11: the gradient is zero exactly where the clip holds."""
    values, gradients = objective([ratio], [advantage])
    assert values == pytest.approx([value])
    assert gradients == pytest.approx([gradient])


def test_without_dual_clip_a_negative_objective_is_unbounded():
    values, gradients = objective([12], [-2], dual_clip=None)
    assert values == pytest.approx([-24]) == gradients


@few
@given(log_ratios, advantages, st.floats(0, 10), bounds)
def test_the_objective_scales_with_the_advantage(
    log_ratio: float, advantage: float, scale: float, dual_clip: float | None
):
    """I9."""
    ratio = math.exp(log_ratio)
    value, gradient = objective([ratio], [advantage], dual_clip)
    scaled_value, scaled_gradient = objective([ratio], [scale * advantage], dual_clip)
    assert scaled_value == pytest.approx([scale * value[0]], rel=1e-9, abs=1e-12)
    assert scaled_gradient == pytest.approx([scale * gradient[0]], rel=1e-9, abs=1e-12)


@few
@given(st.lists(advantages, min_size=1, max_size=5), bounds)
def test_at_ratio_one_value_and_slope_are_the_advantage(
    values_N: list[float], dual_clip: float | None
):
    """I10."""
    values, gradients = objective([1.0] * len(values_N), values_N, dual_clip)
    assert values == pytest.approx(values_N, rel=1e-9)
    assert gradients == pytest.approx(values_N, rel=1e-9)


@few
@given(log_ratios, advantages)
def test_the_gradient_dies_only_where_the_step_went_far_enough(log_ratio: float, advantage: float):
    """I11."""
    ratio = math.exp(log_ratio)
    assume(abs(advantage) > 1e-6)
    assume(min(abs(ratio - edge) for edge in (0.8, 1.28)) > 1e-6)
    _, gradients = objective([ratio], [advantage], dual_clip=None)
    clipped = ratio > 1.28 if advantage > 0 else ratio < 0.8
    assert gradients == pytest.approx([0 if clipped else advantage * ratio], rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tokens_find_their_response_and_the_dtype_stays(dtype: torch.dtype):
    zeros_T = torch.zeros(4, dtype=dtype)
    row_T = torch.tensor([0, 0, 1, 1])
    values_T = ppo_clip(zeros_T, zeros_T, torch.tensor([2.0, -3.0], dtype=torch.float64), row_T)
    assert values_T.tolist() == [2, 2, -3, -3]
    assert values_T.dtype == dtype


@pytest.mark.parametrize("advantage", [1.0, -1.0, 0.0])
def test_a_ratio_that_overflows_leaves_no_nan(advantage: float):
    logprobs_T = torch.tensor([0.0], requires_grad=True)
    advantages_N = torch.tensor([advantage])
    value_T = ppo_clip(logprobs_T, torch.tensor([-1000.0]), advantages_N, torch.tensor([0]))
    value_T.sum().backward()
    assert torch.isfinite(value_T).all()
    assert logprobs_T.grad is not None and logprobs_T.grad.tolist() == [0.0]


def test_no_gradient_reaches_old_logprobs_or_advantages():
    old_T = torch.zeros(1, requires_grad=True)
    advantages_N = torch.ones(1, requires_grad=True)
    logprobs_T = torch.zeros(1, requires_grad=True)
    ppo_clip(logprobs_T, old_T, advantages_N, torch.tensor([0])).sum().backward()
    assert old_T.grad is None and advantages_N.grad is None


def test_fractions_count_the_tokens_whose_clip_acted():
    ratios: Tensor = torch.tensor([1.5, 1.1, 0.5, 0.5, 1.5])
    row_T = torch.tensor([0, 0, 0, 1, 1])
    low, high = clip_fractions(ratios.log(), torch.zeros(5), torch.tensor([1.0, -1.0]), row_T)
    assert (float(low), float(high)) == pytest.approx((0.2, 0.2))


def test_fractions_of_no_tokens_are_zero():
    nothing = torch.zeros(0)
    low, high = clip_fractions(nothing, nothing, torch.ones(1), torch.zeros(0, dtype=torch.int64))
    assert (float(low), float(high)) == (0, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clip_hi": 0.3}, "did you mean 'clip_high'"),
        ({"clip_low": 2}, "option 'clip_low'.*got 2"),
        ({"dual_clip": 0.5}, "option 'dual_clip'"),
        ({"clip_high": "wide"}, "option 'clip_high'.*got 'wide'"),
    ],
)
def test_a_wrong_option_is_named(options: dict[str, object], message: str):
    with pytest.raises(UserError, match=message):
        SURROGATES.bind("ppo_clip", options)


def test_a_wrong_name_lists_the_nearest():
    with pytest.raises(UserError, match="did you mean 'ppo_clip'"):
        SURROGATES["ppo_clp"]
