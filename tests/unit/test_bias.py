"""Closed forms of the bias of a group's own mean against enumeration of all 2^G outcomes, and the
invariants I37, I38 and I46.

Probabilities are decimals that floats round, so thresholds on counts are compared in fractions.
"""

import itertools
import math
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from grpo.algo.bias import debias_factors
from tests.examples import examples
from tests.unit.theorems import (
    accuracy_bias,
    mean_accuracy,
    mixed_probability,
    overestimate_probability,
    sign_conditional,
    underestimate_probability,
)

few = examples(50)
every_size = pytest.mark.parametrize("size", range(2, 17))
PROBABILITIES = [Fraction(text) for text in ("0.02", "0.1", "0.3", "0.5", "0.7", "0.75", "0.96")]
MARGINS = [Fraction(text) for text in ("0", "0.05", "0.1", "0.2", "0.4")]
sizes = st.integers(2, 64)
chances = st.floats(0.01, 0.99)


@lru_cache
def outcomes(size: int) -> Tensor:
    """[2^G, G] float64: every way in which G answers can be right (1) or wrong (0)."""
    numbers = torch.arange(2**size)
    return (numbers[:, None] >> torch.arange(size) & 1).double()


def masses(p: Fraction, size: int) -> Tensor:
    """[2^G] the probability of each outcome, 0 where all answers are alike."""
    right = outcomes(size).sum(1)
    mass = float(p) ** right * float(1 - p) ** (size - right)
    return mass * ((right > 0) & (right < size))


def close(left: float | Tensor, right: float | Tensor) -> None:
    assert float(left) == pytest.approx(float(right), rel=1e-9, abs=1e-12)


@every_size
def test_the_mean_accuracy_of_mixed_groups_is_that_of_all_outcomes(size: int):
    """I37."""
    for p in PROBABILITIES:
        mass, accuracy = masses(p, size), outcomes(size).mean(1)
        expected = (mass * accuracy).sum() / mass.sum()
        close(mixed_probability(float(p), size), mass.sum())
        close(mean_accuracy(float(p), size), expected)
        close(accuracy_bias(float(p), size), expected - float(p))


@pytest.mark.parametrize(
    ("p", "size", "accuracy"),
    [
        (0.1, 2, 0.5),  # of two mixed answers always one is right
        (0.25, 3, 5 / 12),  # 27 groups with one right answer to 9 with two: (27 + 18) / (3 * 36)
        (0.1, 8, 0.1756),
        (0.01, 8, 0.1294),
    ],
)
def test_mixed_groups_of_hard_prompts_look_easier_by_hand(p: float, size: int, accuracy: float):
    """I37."""
    assert mean_accuracy(p, size) == pytest.approx(accuracy, abs=5e-5)
    assert accuracy_bias(p, size) == pytest.approx(accuracy - p, abs=5e-5)


@few
@given(chances, sizes)
def test_the_bias_is_that_of_lemma_2(p: float, size: int):
    top = p * (1 - p) ** size + p ** (size + 1) - p**size
    assert accuracy_bias(p, size) == pytest.approx(top / (1 - (1 - p) ** size - p**size), abs=1e-9)


@few
@given(chances, sizes)
def test_the_bias_is_antisymmetric_and_points_to_one_half(p: float, size: int):
    """I37 and Theorem 1."""
    bias = accuracy_bias(p, size)
    assert accuracy_bias(1 - p, size) == pytest.approx(-bias, abs=1e-12)
    assert accuracy_bias(0.5, size) == pytest.approx(0, abs=1e-12)
    if abs(p - 0.5) > 0.01:
        share_of_the_way = bias / (0.5 - p)
        assert -1e-12 < share_of_the_way <= 1 + 1e-12
        assert size > 8 or share_of_the_way > 0  # in large groups of middling p it is rounding


@every_size
def test_the_advantage_of_a_right_and_of_a_wrong_answer_is_that_of_all_outcomes(size: int):
    """I38."""
    answers = outcomes(size)
    advantages = answers - answers.mean(1, keepdim=True)
    for p in PROBABILITIES:
        mass = masses(p, size)
        right, wrong = sign_conditional(float(p), size)
        for sibling in {0, size - 1}:
            for verdict, closed_form in ((1, right), (0, wrong)):
                chosen = mass * (answers[:, sibling] == verdict)
                close(closed_form, (chosen * advantages[:, sibling]).sum() / chosen.sum())


@few
@given(chances, sizes)
def test_over_both_verdicts_the_advantage_has_mean_zero(p: float, size: int):
    """I38: advantages of a group add up to 0."""
    right, wrong = sign_conditional(p, size)
    accuracy = mean_accuracy(p, size)
    assert accuracy * right + (1 - accuracy) * wrong == pytest.approx(0, abs=1e-12)
    mirrored_right, mirrored_wrong = sign_conditional(1 - p, size)
    assert (mirrored_right, mirrored_wrong) == pytest.approx((-wrong, -right), rel=1e-9)


@every_size
def test_probabilities_of_a_margin_are_those_of_all_outcomes(size: int):
    """Theorem 2. A mean that is off by the margin exactly is not off by more than it."""
    right = outcomes(size).sum(1).long()
    for p in PROBABILITIES:
        by_count = torch.bincount(right, masses(p, size))
        for margin in MARGINS:
            first_above = math.floor(size * (p + margin)) + 1
            first_not_below = max(0, math.ceil(size * (p - margin)))
            under = underestimate_probability(float(p), size, float(margin))
            over = overestimate_probability(float(p), size, float(margin))
            close(under, by_count[first_above:].sum() / by_count.sum())
            close(over, by_count[:first_not_below].sum() / by_count.sum())


@pytest.mark.parametrize(
    ("estimate", "p", "size", "margin", "expected"),
    [
        # counts 1 and 2 of 3 weigh 27 and 9 of 36; 3/4 is one of them only where a margin leaves it
        (underestimate_probability, 0.25, 3, 0.0, 1),
        (underestimate_probability, 0.25, 3, 0.1, 1 / 4),
        (underestimate_probability, 0.25, 3, 0.5, 0),
        (overestimate_probability, 0.25, 3, 0.0, 0),
        (overestimate_probability, 0.75, 3, 0.1, 1 / 4),
        # counts 1, 2, 3 of 4 weigh 4, 6, 4 of 14; the 2 is no miss
        (underestimate_probability, 0.5, 4, 0.0, 2 / 7),
        (overestimate_probability, 0.5, 4, 0.0, 2 / 7),
        # 0.7 + 0.1 is below 0.8 in floats: 8 of 10 is no miss, 9 of 10 is
        (underestimate_probability, 0.7, 10, 0.1, 10 * 0.7**9 * 0.3 / (1 - 0.3**10 - 0.7**10)),
    ],
)
def test_theorem_2_by_hand(
    estimate: Callable[..., float], p: float, size: int, margin: float, expected: float
):
    close(estimate(p, size, margin), expected)


@few
@given(sizes, st.floats(0.01, 0.99))
def test_beyond_one_right_or_one_wrong_answer_the_direction_is_sure(size: int, share: float):
    """Corollary 3: p < 1 / G, and p > (G - 1) / G."""
    p = share / size
    close(underestimate_probability(p, size), 1)
    close(overestimate_probability(1 - p, size), 1)
    assert underestimate_probability(1 - p, size) == 0 == overestimate_probability(p, size)


def mean_underestimate(size: int, bound: float) -> float:
    """The mean over p, uniform on (0, bound), of P(phat > p | S). The integrand jumps at k / G only
    and is smooth between, where 20 nodes of Gauss and Legendre take it to the last digits."""
    nodes, node_weights = np.polynomial.legendre.leggauss(20)
    edges = [*(k / size for k in range(size) if k / size < bound), bound]
    total = 0.0
    for low, high in itertools.pairwise(edges):
        for node, weight in zip(nodes.tolist(), node_weights.tolist(), strict=True):
            p = low + (high - low) * (node + 1) / 2
            total += weight * (high - low) / 2 * underestimate_probability(p, size)
    return total / bound


@pytest.mark.parametrize(
    ("bound", "claim", "least"), [(0.5, 0.63, 0.6409), (0.25, 0.78, 0.7811), (0.125, 0.999, 1)]
)
def test_hard_prompts_are_underestimated_as_often_as_the_paper_says(
    bound: float, claim: float, least: float
):
    """Corollary 1, by integration: G from 2 to 8, the least of them at 8."""
    shares = [mean_underestimate(size, bound) for size in range(2, 9)]
    assert min(shares) > claim
    assert shares[-1] == min(shares) if least < 1 else shares == pytest.approx([1] * 7)
    assert shares[-1] == pytest.approx(least, abs=5e-5)


def draw_mixed_accuracies(p: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """For each prompt's p the accuracy of a group that was drawn anew until it was mixed."""
    accuracy = torch.zeros_like(p)
    waiting = torch.arange(len(p))
    while len(waiting):
        tries = max(1, 100_000 // len(waiting))  # at once, as a p near 0 takes many
        draws = torch.rand(len(waiting), tries, size, generator=generator, dtype=torch.float64)
        right = (draws < p[waiting, None, None]).sum(2)
        mixed = (right > 0) & (right < size)
        first = mixed.long().argmax(1, keepdim=True)
        accuracy[waiting] = right.gather(1, first)[:, 0].double() / size
        waiting = waiting[~mixed.any(1)]
    return accuracy


@pytest.mark.parametrize("bound", [0.5, 0.25, 0.125])
@pytest.mark.parametrize("size", [4, 8])
def test_sampled_hard_prompts_are_underestimated_as_often(bound: float, size: int):
    """Corollary 1, by sampling: within four standard errors, at most 0.009 in all."""
    generator = torch.Generator().manual_seed(20260108 + size)
    p = bound * torch.rand(50_000, generator=generator, dtype=torch.float64)
    share = float((draw_mixed_accuracies(p, size, generator) > p).double().mean())
    expected = min(1.0, mean_underestimate(size, bound))
    standard_error = math.sqrt(expected * (1 - expected) / len(p))
    assert share == pytest.approx(expected, abs=4 * standard_error + 1e-12)


@every_size
def test_debias_factors_take_the_mean_advantage_back(size: int):
    """I46, against all outcomes: E[Phi A | r, S] = r - p."""
    answers = outcomes(size)
    advantage = answers[:, 0] - answers.mean(1)
    for p in PROBABILITIES:
        mass = masses(p, size)
        right, wrong = debias_factors(float(p), size)
        factor = torch.where(advantage > 0, torch.full_like(mass, right), wrong)
        for verdict in (0, 1):
            chosen = mass * (answers[:, 0] == verdict)
            close((chosen * factor * advantage).sum() / chosen.sum(), verdict - float(p))


@few
@given(chances, sizes)
def test_debias_factors_undo_the_closed_form(p: float, size: int):
    """I46."""
    right, wrong = sign_conditional(p, size)
    right_factor, wrong_factor = debias_factors(p, size)
    close(right_factor * right, 1 - p)
    close(wrong_factor * wrong, -p)
    assert debias_factors(1 - p, size) == pytest.approx((wrong_factor, right_factor), rel=1e-9)


def test_debias_factors_by_hand():
    """8/7 of 1 - 1/128 at one half; 4/3 of 1 - 1/64 and of 1 - 27/64 at a quarter."""
    assert debias_factors(0.5, 8) == pytest.approx((127 / 112, 127 / 112), rel=1e-12)
    assert debias_factors(0.25, 4) == pytest.approx((21 / 16, 37 / 48), rel=1e-12)


@pytest.mark.parametrize("size", [2, 4, 8, 64])
def test_on_hard_prompts_wrong_answers_count_for_nearly_nothing(size: int):
    """The factors go to G / (G - 1) and G p."""
    right, wrong = debias_factors(1e-6, size)
    assert right == pytest.approx(size / (size - 1), rel=1e-5)
    assert wrong == pytest.approx(size * 1e-6, rel=1e-4)


@pytest.mark.parametrize("size", [2, 3, 8, 16])
def test_a_right_answer_is_undervalued_below_a_rate_well_above_one_half(size: int):
    """E[r - phat | r = 1, S] < 1 - p up to p = G^(-1 / (G - 1))."""
    crossover = size ** (-1 / (size - 1))
    assert debias_factors(crossover, size)[0] == pytest.approx(1, rel=1e-12)
    for p, undervalued in ((crossover - 1e-3, True), (crossover + 1e-3, False)):
        assert (sign_conditional(p, size)[0] < 1 - p) is undervalued
        assert (sign_conditional(1 - p, size)[1] > p - 1) is undervalued  # wrong answers, mirrored
    if size == 8:
        assert crossover == pytest.approx(0.743, abs=5e-4)


@pytest.mark.parametrize(
    "function",
    [
        mixed_probability,
        mean_accuracy,
        accuracy_bias,
        underestimate_probability,
        overestimate_probability,
        sign_conditional,
        debias_factors,
    ],
)
@pytest.mark.parametrize(("p", "size"), [(0.0, 8), (1.0, 8), (-0.1, 8), (1.1, 8), (0.5, 1)])
def test_certain_answers_and_lone_responses_are_refused(
    function: Callable[[float, int], object], p: float, size: int
):
    with pytest.raises(ValueError, match="0 < p < 1 and a group of at least 2, got p="):
        function(p, size)
