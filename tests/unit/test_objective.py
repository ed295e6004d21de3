"""The learner's loss on CPU tensors: every term by hand, and what is logged of it."""

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from grpo.algo import CORRECTIONS, SURROGATES
from grpo.config.recipe import Recipe
from grpo.errors import UserError
from grpo.learner.objective import Objective, Scores
from grpo.types import MicroBatch
from tests.examples import examples

fewer = examples(10)


def objective(
    surrogate: dict[str, Any] | str = "ppo_clip",
    correction: dict[str, Any] | str | None = None,
    **regularization: Any,
) -> Objective:
    recipe = Recipe.model_validate(
        {
            "name": "test",
            "model": {"path": "none"},
            "data": {"name": "none", "path": "none.jsonl"},
            "surrogate": surrogate,
            "correction": correction or "none",
            "regularization": regularization,
        }
    )
    return Objective(recipe)


@dataclass(frozen=True)
class Row:
    """A response: its numbers in the batch, and for each token pi / pi_old, pi_old / pi_sampler,
    pi_ref / pi and the entropy."""

    advantage: float
    weight: float
    regular_weight: float
    ratios: list[float]
    corrections: list[float]
    references: list[float]
    entropies: list[float]
    number: int = 0


HAND = [
    Row(2.0, 0.25, 0.5, [1.1, 1.5], [1.25, 4.0], [2.0, 0.5], [0.5, 1.0], 0),
    Row(-1.0, 0.5, 2.0, [0.5], [0.5], [1.0], [1.5], 1),
]
FILLER = Row(0.0, 0.0, 0.0, [3.0], [7.0], [5.0], [2.0], -1)


def flat(rows: list[list[float]], dtype: torch.dtype) -> Tensor:
    return torch.tensor([value for row in rows for value in row], dtype=dtype)


def case(rows: list[Row], dtype: torch.dtype = torch.float64) -> tuple[MicroBatch, Scores]:
    """The micro-batch of these rows and what models say of it. The packed tokens, which no loss
    reads, are left out."""
    nothing = torch.zeros(0, dtype=torch.int64)
    old_T = flat([[-1.0] * len(row.ratios) for row in rows], dtype)
    logprobs_T = old_T + flat([row.ratios for row in rows], dtype).log()
    micro = MicroBatch(
        input_ids_S=nothing,
        position_ids_S=nothing,
        cu_seqlens=nothing,
        predict_T=nothing,
        targets_T=nothing,
        row_T=torch.tensor([index for index, row in enumerate(rows) for _ in row.ratios]),
        advantages_N=torch.tensor([row.advantage for row in rows]),
        weights_N=torch.tensor([row.weight for row in rows]),
        regular_weights_N=torch.tensor([row.regular_weight for row in rows]),
        sampler_logprobs_T=old_T - flat([row.corrections for row in rows], dtype).log(),
        rows_N=torch.tensor([row.number for row in rows]),
    )
    reference_T = logprobs_T + flat([row.references for row in rows], dtype).log()
    entropy_T = flat([row.entropies for row in rows], dtype).requires_grad_()
    return micro, Scores(logprobs_T.requires_grad_(), entropy_T, old_T, reference_T.detach())


@dataclass(frozen=True)
class Outcome:
    loss: float
    by_logprob: list[float]
    by_entropy: list[float]
    sums: dict[str, float]


def outcome(part: Objective, rows: list[Row]) -> Outcome:
    micro, scores = case(rows)
    loss, measured = part.loss(micro, scores)
    loss.backward()
    sums = {key: value.item() for key, value in measured.items()}
    logprobs_T, entropy_T = scores.logprobs_T.grad, scores.entropy_T.grad
    assert logprobs_T is not None
    by_entropy = [] if entropy_T is None else entropy_T.tolist()
    return Outcome(loss.item(), logprobs_T.tolist(), by_entropy, sums)


def test_the_clipped_loss_by_hand():
    """-(0.25 (2.2 + 2.56) + 0.5 * -0.8); only the first token is not clipped."""
    found = outcome(objective(), HAND)
    assert found.loss == pytest.approx(-0.79)
    assert found.by_logprob == pytest.approx([-0.55, 0, 0])
    assert found.by_entropy == []  # no term asks for it
    assert found.sums["pg_loss_sum"] == found.sums["loss_sum"] == found.loss


def test_what_is_logged_by_hand():
    sums = outcome(objective(), HAND).sums
    assert sums == pytest.approx(
        {
            "tokens": 3,
            "entropy_sum": 3,
            "mismatch_sum": math.log(1.25 * 4 * 2),  # |log 0.5| is log 2
            "mismatch_kl_sum": 0.25 + 3 - 0.5 - math.log(1.25 * 4 * 0.5),
            "kl_sum": 0.1 + 0.5 - 0.5 - math.log(1.1 * 1.5 * 0.5),
            "clip_low_sum": 1,
            "clip_high_sum": 1,
            "pg_loss_sum": -0.79,
            "loss_sum": -0.79,
        }
    )


def test_options_of_the_surrogate_are_in_the_loss_and_in_the_fractions():
    """With clip_high 0.6 the second token is free: -(0.25 (2.2 + 3) + 0.5 * -0.8)."""
    found = outcome(objective({"name": "ppo_clip", "clip_high": 0.6}), HAND)
    assert found.loss == pytest.approx(-0.9)
    assert found.by_logprob == pytest.approx([-0.55, -0.75, 0])
    assert found.sums["clip_high_sum"] == 0
    assert found.sums["clip_low_sum"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("correction", "factors"),
    [
        ("truncated_token", [1.25, 2, 0.5]),
        ({"name": "truncated_token", "high": 3}, [1.25, 3, 0.5]),
        ("masked_token", [1.25, 4, 0.5]),
        ({"name": "masked_token", "low": 0.6, "high": 3}, [1.25, 0, 0]),
        ("truncated_sequence", [2, 2, 0.5]),
        ({"name": "masked_sequence", "high": 6}, [5, 5, 0.5]),
    ],
)
def test_the_correction_multiplies_each_tokens_objective(
    correction: dict[str, Any] | str, factors: list[float]
):
    found = outcome(objective(correction=correction), HAND)
    terms = [0.25 * 2.2, 0.25 * 2.56, 0.5 * -0.8]
    expected = -sum(f * term for f, term in zip(factors, terms, strict=True))
    assert found.loss == pytest.approx(expected)
    assert found.by_logprob == pytest.approx([-0.55 * factors[0], 0, 0])
    assert found.sums["correction_sum"] == pytest.approx(sum(factors))
    assert found.sums["pg_loss_sum"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("estimator", "values", "slopes"),
    [
        ("k1", [-math.log(2), math.log(2), 0], [1, 1, 1]),
        ("k2", [math.log(2) ** 2 / 2] * 2 + [0], [-math.log(2), math.log(2), 0]),
        ("k3", [1 - math.log(2), math.log(2) - 0.5, 0], [-1, 0.5, 0]),
    ],
)
def test_the_kl_enters_with_weights_of_its_own(
    estimator: str, values: list[float], slopes: list[float]
):
    """0.1 sum v KL with v = 0.5, 0.5, 2; the correction does not touch it."""
    found = outcome(objective(correction="truncated_token", kl=0.1, kl_estimator=estimator), HAND)
    plain = outcome(objective(correction="truncated_token"), HAND)
    kl = 0.5 * values[0] + 0.5 * values[1] + 2 * values[2]
    assert found.loss - plain.loss == pytest.approx(0.1 * kl)
    added = [mine - was for mine, was in zip(found.by_logprob, plain.by_logprob, strict=True)]
    weights = [0.05, 0.05, 0.2]
    assert added == pytest.approx([v * slope for v, slope in zip(weights, slopes, strict=True)])
    assert found.sums["kl_reference_sum"] == pytest.approx(sum(values))
    assert found.sums["pg_loss_sum"] == pytest.approx(plain.loss)
    assert found.sums["loss_sum"] == pytest.approx(found.loss)


def test_without_a_kl_the_reference_is_not_looked_at():
    found = outcome(objective(), HAND)
    assert "kl_reference_sum" not in found.sums
    micro, scores = case(HAND)
    loss, _ = objective().loss(micro, replace(scores, reference_T=None))
    assert loss.item() == found.loss


@pytest.mark.parametrize("coefficient", [0.01, -0.02])
def test_the_entropy_is_rewarded_with_the_same_weights_as_the_kl(coefficient: float):
    """sum v H = 0.5 * 0.5 + 0.5 * 1 + 2 * 1.5 = 3.75."""
    found = outcome(objective(entropy=coefficient), HAND)
    assert found.loss == pytest.approx(-0.79 - 3.75 * coefficient)
    assert found.by_entropy == pytest.approx([-coefficient * v for v in (0.5, 0.5, 2)])
    assert found.by_logprob == pytest.approx([-0.55, 0, 0])
    assert found.sums["pg_loss_sum"] == pytest.approx(-0.79)
    assert found.sums["entropy_sum"] == pytest.approx(3)


def test_a_response_without_advantage_is_still_held_to_the_reference():
    """A flat group that is kept: nothing for the policy gradient, k3 as everywhere."""
    row = replace(HAND[0], advantage=0.0, weight=0.0)
    found = outcome(objective(kl=0.1), [row])
    assert found.sums["pg_loss_sum"] == 0
    assert found.loss == pytest.approx(0.1 * 0.5 * 0.5)
    assert found.by_logprob == pytest.approx([-0.05, 0.025])


@pytest.mark.parametrize("correction", [None, *CORRECTIONS])
def test_a_filler_alone_adds_nothing_but_takes_its_backward(correction: str | None):
    found = outcome(objective(correction=correction, kl=0.1, entropy=0.1), [FILLER])
    assert (found.loss, found.by_logprob, found.by_entropy) == (0, [0], [0])
    assert set(found.sums.values()) == {0}


def test_a_filler_in_company_is_left_out_of_every_sum():
    part = objective(correction="truncated_token", kl=0.1, entropy=0.1)
    alone, found = outcome(part, HAND), outcome(part, [*HAND, FILLER])
    assert found.loss == pytest.approx(alone.loss)
    assert found.by_logprob == pytest.approx([*alone.by_logprob, 0])
    clips = {"clip_low_sum", "clip_high_sum"}  # shares of all tokens, fillers too
    for key in alone.sums.keys() - clips:
        assert found.sums[key] == pytest.approx(alone.sums[key]), key


positive = st.floats(0.1, 5)


@st.composite
def rows(draw: st.DrawFn) -> list[Row]:
    drawn: list[Row] = []
    for number in range(draw(st.integers(2, 4))):
        size = draw(st.integers(1, 4))
        token_values = [draw(st.lists(positive, min_size=size, max_size=size)) for _ in range(4)]
        advantage, weight, regular = draw(st.floats(-3, 3)), draw(positive), draw(positive)
        ratios, corrections, references, entropies = token_values
        drawn.append(
            Row(advantage, weight, regular, ratios, corrections, references, entropies, number)
        )
    return drawn


@pytest.mark.parametrize("surrogate", list(SURROGATES))
@pytest.mark.parametrize("correction", [None, *CORRECTIONS])
@given(drawn=rows(), data=st.data())
@fewer
def test_a_cut_between_responses_changes_no_loss_and_no_sum(
    surrogate: str, correction: str | None, drawn: list[Row], data: st.DataObject
):
    """I26."""
    part = objective(surrogate, correction, kl=0.1, entropy=0.1)
    cut = data.draw(st.integers(1, len(drawn) - 1))
    whole = outcome(part, drawn)
    parts = [outcome(part, drawn[:cut]), outcome(part, drawn[cut:])]
    near: dict[str, Any] = {"rel": 1e-6, "abs": 1e-6}
    assert parts[0].loss + parts[1].loss == pytest.approx(whole.loss, **near)
    assert parts[0].by_logprob + parts[1].by_logprob == pytest.approx(whole.by_logprob, **near)
    for key, value in whole.sums.items():
        assert parts[0].sums[key] + parts[1].sums[key] == pytest.approx(value, **near), key


def test_on_the_policy_the_loss_is_the_weighted_advantage_mass():
    """-(0.25 * 2 * 2 + 0.5 * -1), and nothing is clipped or mismatched."""
    ones = {"ratios": 1, "corrections": 1, "references": 1}
    even = [
        replace(row, **{name: [one] * len(row.ratios) for name, one in ones.items()})
        for row in HAND
    ]
    found = outcome(objective(correction="masked_sequence", kl=0.1), even)
    assert found.loss == pytest.approx(-0.5)
    assert found.by_logprob == pytest.approx([-0.5, -0.5, 0.5])
    off = {"mismatch_sum", "mismatch_kl_sum", "kl_sum", "kl_reference_sum"}
    assert [found.sums[key] for key in sorted(off)] == [0, 0, 0, 0]
    assert found.sums["clip_low_sum"] == found.sums["clip_high_sum"] == 0
    assert found.sums["correction_sum"] == 3


def test_a_float32_micro_batch_has_a_float32_loss():
    micro, scores = case(HAND, torch.float32)
    part = objective(correction="truncated_token", kl=0.1, entropy=0.1)
    loss, _ = part.loss(micro, scores)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(outcome(part, HAND).loss, rel=1e-5)


@pytest.mark.parametrize(
    ("surrogate", "correction", "message"),
    [
        ("ppo", None, "unknown surrogate 'ppo'"),
        ({"name": "gspo", "clip": 0.1}, None, "no option 'clip'"),
        ("ppo_clip", "truncated", "unknown correction 'truncated'"),
        ("ppo_clip", {"name": "masked_token", "low": -1}, "option 'low'.*got -1"),
    ],
)
def test_a_wrong_choice_is_refused_when_the_objective_is_built(
    surrogate: dict[str, Any] | str, correction: dict[str, Any] | str | None, message: str
):
    with pytest.raises(UserError, match=message):
        objective(surrogate, correction)
