"""Surrogates against hand-computed numbers and the invariants I9-I11, I31, I36 and I42.

What holds of every surrogate is tested here for all that are registered; what is special to
surrogates about whole sequences has a file of its own.
"""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from grpo.algo.aggregate import AGGREGATORS
from grpo.algo.difficulty import DifficultyAnchor
from grpo.algo.surrogate import SURROGATES, clip_fractions
from grpo.config.recipe import DifficultyConfig
from grpo.errors import UserError
from tests.examples import examples

few = examples(50)
fewer = examples(20)  # for tests that run once per surrogate
every_surrogate = pytest.mark.parametrize("name", list(SURROGATES))
ppo_clip = SURROGATES["ppo_clip"]
log_ratios = st.floats(-4, 4) | st.floats(-6e-4, 6e-4)  # gspo clips at 3e-4 already
advantages = st.floats(-5, 5)
bounds = st.sampled_from([None, 3.0, 10.0])

OLD_LOGPROB = -1.25  # of every token here

# Responses as lists of log ratios, and their advantages.
Rows = tuple[list[list[float]], list[float]]


@st.composite
def rows(draw: st.DrawFn, log_ratios: st.SearchStrategy[float] = log_ratios) -> Rows:
    num_rows = draw(st.integers(1, 3))
    row = st.lists(log_ratios, min_size=1, max_size=4)
    return (
        draw(st.lists(row, min_size=num_rows, max_size=num_rows)),
        draw(st.lists(advantages, min_size=num_rows, max_size=num_rows)),
    )


def row_index(log_ratios: Sequence[Sequence[float]]) -> Tensor:
    """[T] the response of each token."""
    lengths_N = torch.tensor([len(row) for row in log_ratios])
    return torch.arange(len(log_ratios)).repeat_interleave(lengths_N)


def evaluate(
    name: str,
    log_ratios: Sequence[Sequence[float]],
    advantages: Sequence[float],
    dtype: torch.dtype = torch.float64,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """[T] objectives, and [T] the gradient of their sum in the logprobs."""
    flat = [log_ratio for row in log_ratios for log_ratio in row]
    old_T = torch.full((len(flat),), OLD_LOGPROB, dtype=dtype)
    logprobs_T = (old_T + torch.tensor(flat, dtype=dtype)).requires_grad_()
    advantages_N = torch.tensor(advantages, dtype=torch.float64)
    part = SURROGATES.bind(name, options)
    objective_T = part(logprobs_T, old_T, advantages_N, row_index(log_ratios))
    (gradient_T,) = torch.autograd.grad(objective_T.sum(), logprobs_T)
    return objective_T.detach(), gradient_T


def close(left: Tensor, right: Tensor) -> None:
    torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-12)


HALF_LOG_3 = math.log(3) / 2  # sapo's sigmoid(2 * HALF_LOG_3) is 3/4
TIGHT: dict[str, Any] = {"clip_low": 0.2, "clip_high": 0.28}
STEEP: dict[str, Any] = {"tau_positive": 4.0, "tau_negative": 2.0}


@pytest.mark.parametrize(
    ("name", "options", "ratio", "advantage", "value", "gradient"),
    [
        ("ppo_clip", {}, 1.1, 2, 2.2, 2.2),  # inside
        ("ppo_clip", {}, 1.5, 2, 2.56, 0),  # A > 0 above: held at 1.28
        ("ppo_clip", {}, 0.5, 2, 1.0, 1.0),  # A > 0 below: free
        ("ppo_clip", {}, 0.5, -2, -1.6, 0),  # A < 0 below: held at 0.8
        ("ppo_clip", {}, 1.5, -2, -3.0, -3.0),  # A < 0 above: free ...
        ("ppo_clip", {}, 12, -2, -20.0, 0),  # ... up to the dual clip
        ("ppo_clip", {"dual_clip": None}, 12, -2, -24.0, -24.0),
        ("ppo_clip", {}, 3, 0, 0, 0),
        ("gspo", {}, 1.0003, 2, 2.0006, 2.0006),
        ("gspo", {}, 1.5, 2, 2.0008, 0),
        ("gspo", {}, 0.5, 2, 1.0, 1.0),
        ("gspo", {}, 0.5, -2, -1.9994, 0),
        ("gspo", {}, 1.5, -2, -3.0, -3.0),
        ("gspo_token", {}, 1.5, 2, 2.0008, 0),
        ("gspo_token", {}, 0.5, 2, 1.0, 1.0),
        ("gspo_token", {}, 0.5, -2, -1.9994, 0),
        ("gspo_token", {}, 1.5, -2, -3.0, -3.0),
        ("gmpo", {}, 1.4, 2, 2.8, 2.8),
        ("gmpo", {}, 1.5, 2, 2 * math.exp(0.4), 0),  # e^0.4 = 1.4918
        ("gmpo", {}, 0.5, 2, 1.0, 1.0),
        ("gmpo", {}, 0.5, -2, -2 * math.exp(-0.4), 0),  # e^-0.4 = 0.6703
        ("gmpo", {}, 1.5, -2, -3.0, -3.0),
        ("cispo", {}, 1.5, 2, 3.0 * (OLD_LOGPROB + math.log(1.5)), 3.0),
        ("cispo", {}, 8, 2, 10.0 * (OLD_LOGPROB + math.log(8)), 10.0),  # held at 5, alive
        ("cispo", {}, 0.1, -2, -0.2 * (OLD_LOGPROB + math.log(0.1)), -0.2),  # open below
        ("cispo", TIGHT, 0.5, -2, -1.6 * (OLD_LOGPROB + math.log(0.5)), -1.6),
        ("cispo", TIGHT, 1.5, -2, -2.56 * (OLD_LOGPROB + math.log(1.5)), -2.56),
        ("sapo", {}, 1, 2, 4.0, 2.0),
        ("sapo", {}, 2, 1, 4 / (1 + math.exp(-1)), 8 * math.e / (1 + math.e) ** 2),
        ("sapo", STEEP, 1 + HALF_LOG_3, -1, -1.5, -0.75 * (1 + HALF_LOG_3)),
        ("sapo", STEEP, 1 + HALF_LOG_3 / 2, 1, 0.75, 0.75 * (1 + HALF_LOG_3 / 2)),
    ],
)
def test_one_token_by_hand(
    name: str,
    options: dict[str, Any],
    ratio: float,
    advantage: float,
    value: float,
    gradient: float,
):
    """I11: the gradient is zero exactly where the clip holds."""
    objective_T, gradient_T = evaluate(name, [[math.log(ratio)]], [advantage], **options)
    assert objective_T.tolist() == pytest.approx([value], rel=1e-9)
    assert gradient_T.tolist() == pytest.approx([gradient], rel=1e-9)


@every_surrogate
@given(drawn=rows(), scale=st.floats(0, 10))
@fewer
def test_value_and_gradient_scale_with_the_advantage(name: str, drawn: Rows, scale: float):
    """I9."""
    log_ratios, advantages = drawn
    objective_T, gradient_T = evaluate(name, log_ratios, advantages)
    scaled_T, scaled_gradient_T = evaluate(name, log_ratios, [scale * a for a in advantages])
    close(scaled_T, scale * objective_T)
    close(scaled_gradient_T, scale * gradient_T)


@few
@given(rows(), st.floats(0, 10), bounds)
def test_the_dual_clip_scales_with_the_advantage(drawn: Rows, scale: float, dual: float | None):
    """I9."""
    log_ratios, advantages = drawn
    objective_T, gradient_T = evaluate("ppo_clip", log_ratios, advantages, dual_clip=dual)
    more = [scale * a for a in advantages]
    scaled_T, scaled_gradient_T = evaluate("ppo_clip", log_ratios, more, dual_clip=dual)
    close(scaled_T, scale * objective_T)
    close(scaled_gradient_T, scale * gradient_T)


@every_surrogate
@given(drawn=rows(log_ratios=st.just(0.0)))
@fewer
def test_at_ratio_one_the_slope_is_the_advantage(name: str, drawn: Rows):
    """I10: also where the objective is one of the whole sequence, repeated on its tokens."""
    log_ratios, advantages = drawn
    _, gradient_T = evaluate(name, log_ratios, advantages)
    close(gradient_T, torch.tensor(advantages, dtype=torch.float64)[row_index(log_ratios)])


@pytest.mark.parametrize(
    ("name", "positive", "negative"),
    [
        ("ppo_clip", 1.0, 1.0),
        ("gspo", 1.0, 1.0),
        ("gspo_token", 1.0, 1.0),
        ("gmpo", 1.0, 1.0),
        ("cispo", OLD_LOGPROB, OLD_LOGPROB),  # A log pi
        ("sapo", 2 / 1.0, 2 / 1.05),  # (4 / tau) sigmoid(0)
    ],
)
@given(drawn=rows(log_ratios=st.just(0.0)))
@fewer
def test_at_ratio_one_the_value_is_the_advantage_times(
    name: str, positive: float, negative: float, drawn: Rows
):
    """I10."""
    log_ratios, advantages = drawn
    objective_T, _ = evaluate(name, log_ratios, advantages)
    values = [a * (positive if a > 0 else negative) for a in advantages]
    close(objective_T, torch.tensor(values, dtype=torch.float64)[row_index(log_ratios)])


@few
@given(log_ratios, advantages)
def test_ppo_dies_only_where_the_step_went_far_enough(log_ratio: float, advantage: float):
    """I11."""
    ratio = math.exp(log_ratio)
    assume(abs(advantage) > 1e-6)
    assume(min(abs(ratio - edge) for edge in (0.8, 1.28)) > 1e-6)
    _, gradient_T = evaluate("ppo_clip", [[log_ratio]], [advantage], dual_clip=None)
    clipped = ratio > 1.28 if advantage > 0 else ratio < 0.8
    expected = 0 if clipped else advantage * ratio
    assert gradient_T.tolist() == pytest.approx([expected], rel=1e-9)


@few
@given(log_ratios, advantages)
def test_cispo_never_dies(log_ratio: float, advantage: float):
    """I11 does not hold of it: outside its bounds a token keeps the gradient at the bound."""
    assume(abs(advantage) > 1e-6)
    _, gradient_T = evaluate("cispo", [[log_ratio]], [advantage], **TIGHT)
    factor = min(1.28, max(0.8, math.exp(log_ratio)))
    assert gradient_T.tolist() == pytest.approx([factor * advantage], rel=1e-9)


@few
@given(st.floats(0, 0.9), advantages, st.floats(0.1, 3))
def test_sapo_fades_by_the_same_gate_above_and_below_one(off: float, advantage: float, tau: float):
    """Its gradient over that of rho A is 4 s (1 - s), even in rho - 1 and 1 at rho = 1."""
    gates: list[float] = []
    for ratio in (1 + off, 1 - off):
        taus: dict[str, Any] = {"tau_positive": tau, "tau_negative": tau}
        _, gradient_T = evaluate("sapo", [[math.log(ratio)]], [advantage], **taus)
        gates.append(float(gradient_T[0]) / ratio)
    assert gates[0] == pytest.approx(gates[1], rel=1e-9, abs=1e-12)
    assert abs(gates[0]) <= abs(advantage) * (1 + 1e-9)


clipped_somewhere = st.sampled_from([-0.9, -0.7, 0.7, 0.9])  # outside of every clip here


@every_surrogate
@given(drawn=rows(log_ratios=clipped_somewhere))
@fewer
def test_weighting_advantages_is_weighting_losses(name: str, drawn: Rows):
    """I31: authors' code multiplies advantages by delta_l's weights, the paper the losses."""
    log_ratios, advantages = drawn
    row_T = row_index(log_ratios)
    advantages_N = torch.tensor(advantages, dtype=torch.float64)
    lengths_N = torch.bincount(row_T)
    groups_N = torch.zeros_like(lengths_N)
    weights_N = AGGREGATORS["delta_l"](lengths_N, advantages_N, groups_N, max_tokens=3)
    objective_T, gradient_T = evaluate(name, log_ratios, advantages)
    inside_T, inside_gradient_T = evaluate(name, log_ratios, (weights_N * advantages_N).tolist())
    close(inside_T.sum(), (weights_N[row_T] * objective_T).sum())
    close(inside_gradient_T, weights_N[row_T] * gradient_T)


@every_surrogate
@given(
    drawn=rows(log_ratios=clipped_somewhere), anchor=st.floats(0, 1), accuracy=st.floats(0.1, 0.9)
)
@fewer
def test_difficulty_factors_commute_with_the_clip(
    name: str, drawn: Rows, anchor: float, accuracy: float
):
    """I42."""
    log_ratios, advantages = drawn
    advantages_N = torch.tensor(advantages, dtype=torch.float64)
    difficulty = DifficultyAnchor(**DifficultyConfig().anchor_options())
    difficulty.observe(anchor)
    factors_N = difficulty.factors(advantages_N, accuracy)
    assert bool((factors_N > 0).all())
    objective_T, gradient_T = evaluate(name, log_ratios, advantages)
    inside_T, inside_gradient_T = evaluate(name, log_ratios, (factors_N * advantages_N).tolist())
    factors_T = factors_N[row_index(log_ratios)]
    close(inside_T, factors_T * objective_T)
    close(inside_gradient_T, factors_T * gradient_T)


def aggregated(
    name: str, rule: str, log_ratios: list[list[float]], advantages: list[float]
) -> Tensor:
    """The objective of one group under a rule."""
    objective_T, _ = evaluate(name, log_ratios, advantages)
    row_T = row_index(log_ratios)
    lengths_N = torch.bincount(row_T)
    advantages_N = torch.tensor(advantages, dtype=torch.float64)
    groups_N = torch.zeros_like(lengths_N)
    weights_N = AGGREGATORS[rule](lengths_N, advantages_N, groups_N, max_tokens=10)
    return (weights_N[row_T] * objective_T).sum()


@every_surrogate
@given(drawn=rows())
@fewer
def test_saying_everything_twice_leaves_the_sequence_mean(name: str, drawn: Rows):
    """I36."""
    log_ratios, advantages = drawn
    twice = [log_ratios[0] * 2, *log_ratios[1:]]
    left = aggregated(name, "seq_mean_token_mean", log_ratios, advantages)
    close(aggregated(name, "seq_mean_token_mean", twice, advantages), left)


def test_saying_everything_twice_moves_the_token_mean():
    """I36: (2.2 - 1) / 2 becomes (2.2 + 2.2 - 1) / 3."""
    log_ratios, twice = [[math.log(1.1)], [0.0]], [[math.log(1.1)] * 2, [0.0]]
    assert float(aggregated("ppo_clip", "token_mean", log_ratios, [2, -1])) == pytest.approx(0.6)
    assert float(aggregated("ppo_clip", "token_mean", twice, [2, -1])) == pytest.approx(3.4 / 3)
    sequence = float(aggregated("ppo_clip", "seq_mean_token_mean", twice, [2, -1]))
    assert sequence == pytest.approx(0.6)


@every_surrogate
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tokens_find_their_response_and_the_dtype_stays(name: str, dtype: torch.dtype):
    objective_T, gradient_T = evaluate(name, [[0.0, 0.0], [0.0]], [2.0, -3.0], dtype)
    assert gradient_T.tolist() == pytest.approx([2, 2, -3], rel=1e-6)
    assert objective_T.dtype == gradient_T.dtype == dtype


@every_surrogate
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("advantage", [1.0, -1.0, 0.0])
@pytest.mark.parametrize(
    "row", [[1000.0], [-1000.0], [1000.0, -1000.0], [1000.0, 0.0], [-1000.0, 0.0]]
)
def test_a_ratio_without_bounds_leaves_no_nan(
    name: str, dtype: torch.dtype, advantage: float, row: list[float]
):
    objective_T, gradient_T = evaluate(name, [row, [0.0]], [advantage, 1.0], dtype)
    assert bool(torch.isfinite(objective_T).all())
    assert bool(torch.isfinite(gradient_T).all())
    assert float(gradient_T[-1]) == pytest.approx(1)  # the response beside it is not touched


@every_surrogate
def test_no_gradient_reaches_old_logprobs_or_advantages(name: str):
    old_T = torch.zeros(2, requires_grad=True)
    advantages_N = torch.ones(1, requires_grad=True)
    logprobs_T = torch.zeros(2, requires_grad=True)
    row_T = torch.tensor([0, 0])
    SURROGATES[name](logprobs_T, old_T, advantages_N, row_T).sum().backward()
    assert logprobs_T.grad is not None and logprobs_T.grad.tolist() == [1, 1]
    assert old_T.grad is None and advantages_N.grad is None


@pytest.mark.parametrize(
    ("name", "options", "fractions"),
    [
        ("ppo_clip", {}, (0.25, 0.25)),
        ("ppo_clip", {"clip_high": 0.6}, (0.25, 0.0)),
        ("gspo", {}, (0.5, 0.5)),  # both sequences went too far as a whole
        ("gmpo", {}, (0.25, 0.25)),
        ("cispo", {}, (0.0, 0.0)),
        ("sapo", {}, (0.0, 0.0)),
    ],
)
def test_fractions_count_the_tokens_that_got_no_gradient(
    name: str, options: dict[str, Any], fractions: tuple[float, float]
):
    ratios_T = torch.tensor([1.5, 1.1, 0.5, 1.1])
    row_T = torch.tensor([0, 0, 1, 1])
    advantages_N = torch.tensor([1.0, -1.0])
    part = SURROGATES.bind(name, options)
    low, high = clip_fractions(part, ratios_T.log(), torch.zeros(4), advantages_N, row_T)
    assert (float(low), float(high)) == fractions


def test_a_token_without_advantage_is_not_counted_as_clipped():
    ratios_T = torch.tensor([3.0, 0.1])
    row_T = torch.tensor([0, 0])
    low, high = clip_fractions(ppo_clip, ratios_T.log(), torch.zeros(2), torch.zeros(1), row_T)
    assert (float(low), float(high)) == (0, 0)


def test_counting_leaves_no_trace_in_the_graph():
    logprobs_T = torch.zeros(1, requires_grad=True)
    with torch.no_grad():
        measured = clip_fractions(
            ppo_clip, logprobs_T, torch.zeros(1), torch.ones(1), torch.tensor([0])
        )
    assert logprobs_T.grad is None
    assert not any(fraction.requires_grad for fraction in measured)


def test_fractions_of_no_tokens_are_zero():
    nothing = torch.zeros(0)
    no_rows = torch.zeros(0, dtype=torch.int64)
    low, high = clip_fractions(ppo_clip, nothing, nothing, torch.ones(1), no_rows)
    assert (float(low), float(high)) == (0, 0)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ppo_clip", {"clip_hi": 0.3}, "did you mean 'clip_high'"),
        ("ppo_clip", {"clip_low": 2}, "option 'clip_low'.*got 2"),
        ("ppo_clip", {"dual_clip": 0.5}, "option 'dual_clip'"),
        ("ppo_clip", {"clip_high": "wide"}, "option 'clip_high'.*got 'wide'"),
        ("gspo", {"dual_clip": 3.0}, "no option 'dual_clip'"),
        ("gmpo", {"clip_low": -0.1}, "option 'clip_low'.*got -0.1"),
        ("sapo", {"tau_positive": 0}, "option 'tau_positive'.*got 0"),
    ],
)
def test_a_wrong_option_is_named(name: str, options: dict[str, object], message: str):
    with pytest.raises(UserError, match=message):
        SURROGATES.bind(name, options)


def test_a_wrong_name_lists_the_nearest():
    with pytest.raises(UserError, match="did you mean 'ppo_clip'"):
        SURROGATES["ppo_clp"]
