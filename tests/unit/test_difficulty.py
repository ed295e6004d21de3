"""The difficulty anchor and its factors against hand-computed numbers and the invariants I39-I45
and I47.
"""

import json
import math
from statistics import fmean, pstdev
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from grpo.algo.advantage import group_norm
from grpo.algo.aggregate import balanced
from grpo.algo.bias import debias_factors
from grpo.algo.difficulty import DifficultyAnchor
from grpo.algo.surrogate import gspo, ppo_clip
from grpo.config.recipe import DifficultyConfig
from tests.examples import examples

few = examples(50)
fewer = examples(20)  # for tests that run once per kind
KINDS: list[dict[str, Any]] = [
    {"kind": "hard"},
    {"kind": "hard", "window": 1, "includes_current": True},
    {"kind": "kalman"},
    {"kind": "kalman", "window": 3, "includes_current": True},
    {"kind": "kalman", "window": 4, "eta": 2.0, "eta_min": 0.0},
]
every_kind = pytest.mark.parametrize("options", KINDS, ids=str)
chances = st.integers(0, 1000).map(lambda steps: steps / 1000)
histories = st.lists(chances, min_size=1, max_size=40)
scales = st.floats(0.1, 3)
hundredths = st.integers(-300, 300).map(lambda steps: steps / 100)
drawn_advantages = st.lists(hundredths, min_size=2, max_size=8)


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def close(left: Tensor, right: Tensor) -> None:
    torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-12)


def make_anchor(**options: Any) -> DifficultyAnchor:
    """What these options leave open is as in a recipe."""
    return DifficultyAnchor(**DifficultyConfig.model_validate(options).anchor_options())


def anchor_after(*accuracies: float, **options: Any) -> DifficultyAnchor:
    anchor = make_anchor(**options)
    for accuracy in accuracies:
        anchor.observe(accuracy)
    return anchor


def values_along(accuracies: list[float], **options: Any) -> list[float]:
    """The anchor as every step's factors see it."""
    anchor = make_anchor(**options)
    seen: list[float] = []
    for accuracy in accuracies:
        anchor.observe(accuracy)
        seen.append(anchor.value)
    return seen


@st.composite
def binary_groups(draw: st.DrawFn) -> tuple[Tensor, float]:
    """Advantages [G] of a mixed group, right answers first, and its share of right answers."""
    size = draw(st.integers(2, 16))
    hits = draw(st.integers(1, size - 1))
    return group_norm(f64(*[1] * hits, *[0] * (size - hits))), hits / size


@pytest.mark.parametrize(
    ("options", "accuracies", "after"),
    [
        ({"kind": "hard", "window": 3}, [0.2, 0.4, 0.6, 0.8, 0.1], [0.2, 0.3, 0.4, 0.6, 0.5]),
        # C is 0.2, then the mean 0.4. The deviation of (0.2, 0.4) is 0.1: a fifth of the way to 0.9
        # is 0.5. That of (0.4, 0.5) is 0.05: a tenth of the way to 0 is 0.45. That of (0.5, 0.45)
        # is 0.025: a twentieth of the way to 0.65 is 0.46.
        (
            {"kind": "kalman", "window": 2, "eta": 2.0, "eta_min": 0.0},
            [0.2, 0.6, 0.9, 0.0, 0.65],
            [0.2, 0.4, 0.5, 0.45, 0.46],
        ),
    ],
)
def test_anchors_by_hand_before_and_after_the_accuracy_of_their_step(
    options: dict[str, Any], accuracies: list[float], after: list[float]
):
    """I44. At the first step its own accuracy is all there is."""
    seen = values_along(accuracies, includes_current=True, **options)
    assert seen == pytest.approx(after, rel=1e-12)
    assert values_along(accuracies, **options) == [seen[0], *seen[:-1]]


@few
@given(histories, st.integers(1, 6), st.floats(0, 50), st.sampled_from([0.0, 0.05, 0.3]))
def test_the_kalman_anchor_is_the_recursion_of_the_paper(
    accuracies: list[float], window: int, eta: float, eta_min: float
):
    """Equations 7 to 10 after the first `window` steps, from all past values written down."""
    posteriors: list[float] = []
    for step, accuracy in enumerate(accuracies):
        if step < window:
            posteriors.append(fmean(accuracies[: step + 1]))
            continue
        gain = min(1.0, max(eta_min, eta * pstdev(posteriors[-window:])))
        posteriors.append((1 - gain) * posteriors[-1] + gain * accuracy)
    options = {"kind": "kalman", "window": window, "eta": eta, "eta_min": eta_min}
    after = values_along(accuracies, includes_current=True, **options)
    assert after == pytest.approx(posteriors, abs=1e-9)
    priors = [posteriors[0], *posteriors[:-1]]
    assert values_along(accuracies, **options) == pytest.approx(priors, abs=1e-9)


@every_kind
@given(accuracies=histories)
@fewer
def test_the_first_steps_are_their_plain_mean(options: dict[str, Any], accuracies: list[float]):
    warm_up = accuracies[: options.get("window", 10)]
    after = values_along(warm_up, **options | {"includes_current": True})
    means = [fmean(warm_up[: step + 1]) for step in range(len(warm_up))]
    assert after == pytest.approx(means, rel=1e-12)


@every_kind
@given(accuracies=histories)
@fewer
def test_the_anchor_stays_in_the_observed_range(options: dict[str, Any], accuracies: list[float]):
    """I44."""
    for step, value in enumerate(values_along(accuracies, **options), start=1):
        seen = accuracies[:step]
        assert min(seen) - 1e-12 <= value <= max(seen) + 1e-12


@every_kind
@given(accuracies=histories, one=chances, other=chances)
@fewer
def test_a_better_step_never_lowers_the_anchor(
    options: dict[str, Any], accuracies: list[float], one: float, other: float
):
    """I44: monotone in the newest accuracy, whether it counts at once or a step later."""
    options = options | {"includes_current": True}
    worse = anchor_after(*accuracies, min(one, other), **options).value
    better = anchor_after(*accuracies, max(one, other), **options).value
    assert worse <= better + 1e-12
    later = options | {"includes_current": False}
    assert anchor_after(*accuracies, min(one, other), 0.5, **later).value == worse
    assert anchor_after(*accuracies, max(one, other), 0.5, **later).value == better


def test_no_gain_keeps_the_kalman_anchor_and_full_gain_follows():
    """I44: eta_t 0, and 1 by the floor or by the cap."""
    options: dict[str, Any] = {"kind": "kalman", "window": 2, "includes_current": True}
    accuracies = [0.2, 0.4, 0.9, 0.1, 0.7]
    held = values_along(accuracies, eta=0.0, eta_min=0.0, **options)
    assert held[2:] == [held[1]] * 3
    for full in ({"eta": 0.0, "eta_min": 1.0}, {"eta": 1e6}):
        assert values_along(accuracies, **full, **options)[2:] == accuracies[2:]


@pytest.mark.parametrize("options", KINDS[:4], ids=str)
@given(accuracies=histories, constant=chances)
@fewer
def test_the_anchor_comes_to_a_constant_accuracy(
    options: dict[str, Any], accuracies: list[float], constant: float
):
    """I44: the mean in a window, the floor on the gain by a twentieth of the way per step."""
    hard = options["kind"] == "hard"
    value = anchor_after(*accuracies, *[constant] * (11 if hard else 300), **options).value
    assert value == pytest.approx(constant, abs=1e-12 if hard else 0.95**280)


def test_a_constant_history_freezes_the_kalman_anchor_for_good_unless_it_has_a_floor():
    """I44: with the floor it first goes a twentieth of the way from 1/4 to 3/4, in the end all."""
    options: dict[str, Any] = {"kind": "kalman", "window": 4, "includes_current": True}
    accuracies = [0.25] * 4 + [0.75] * 100
    assert values_along(accuracies, eta_min=0.0, **options) == [0.25] * 104
    moving = values_along(accuracies, **options)
    assert moving[4] == pytest.approx(0.275, rel=1e-12)
    assert moving[3] < moving[4] < moving[5] < moving[6]
    assert moving[-1] == pytest.approx(0.75, abs=1e-6)


@few
@given(st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=9), min_size=1, max_size=6))
def test_an_accuracy_from_the_sums_of_ranks_is_that_of_all_answers(ranks: list[list[int]]):
    """I45."""
    together = [right for rank in ranks for right in rank]
    from_sums = sum(map(sum, ranks)) / sum(map(len, ranks))
    assert anchor_after(from_sums).value == anchor_after(fmean(together)).value


@every_kind
@pytest.mark.parametrize("mode", ["ha_dw", "exact_debias"])
@given(before=st.lists(chances, max_size=25), after=st.lists(chances, min_size=50, max_size=50))
@fewer
def test_an_anchor_goes_on_bit_for_bit_from_its_saved_state(
    options: dict[str, Any], mode: Any, before: list[float], after: list[float]
):
    """I45: through the text of a checkpoint, and 50 steps on."""
    kept = anchor_after(*before, mode=mode, **options)
    text = json.dumps(kept.state_dict())
    resumed = make_anchor(mode=mode, **options)
    resumed.load_state_dict(json.loads(text))
    assert resumed.state_dict() == kept.state_dict()
    if before:
        assert resumed.value == kept.value
    for accuracy in after:
        kept.observe(accuracy)
        resumed.observe(accuracy)
        assert resumed.value == kept.value
        factors_G = [anchor.factors(f64(1, -1), 0.5).tolist() for anchor in (kept, resumed)]
        assert factors_G[0] == factors_G[1]
    assert resumed.state_dict() == kept.state_dict()


def test_a_saved_state_is_a_copy():
    anchor = anchor_after(0.25, 0.5)
    other, state = make_anchor(), anchor.state_dict()
    text = json.dumps(state)
    other.load_state_dict(state)
    for moved in (anchor, other):
        moved.observe(1.0)
    assert json.dumps(state) == text


@every_kind
@pytest.mark.parametrize("mode", ["ha_dw", "exact_debias"])
def test_asking_for_factors_of_any_groups_leaves_the_anchor_where_it_was(
    options: dict[str, Any], mode: Any
):
    """I47: only `observe` moves it, so that groups which are filtered out afterwards count."""
    asked = anchor_after(0.2, 0.7, mode=mode, **options)
    left = anchor_after(0.2, 0.7, mode=mode, **options)
    for accuracy in (0.25, 0.75):
        asked.factors(f64(1, -1, 0), accuracy)
    assert asked.state_dict() == left.state_dict()


@pytest.mark.parametrize("accuracy", [-0.01, 1.01, math.nan, math.inf])
def test_an_accuracy_outside_of_zero_to_one_is_refused_and_not_kept(accuracy: float):
    anchor = anchor_after(0.5)
    with pytest.raises(ValueError, match=r"an accuracy lies in \[0, 1\], got"):
        anchor.observe(accuracy)
    assert anchor.state_dict() == anchor_after(0.5).state_dict()


def test_an_anchor_that_observed_nothing_has_no_value():
    anchor = make_anchor()
    with pytest.raises(RuntimeError, match="observed nothing yet"):
        _ = anchor.value
    with pytest.raises(RuntimeError, match="observed nothing yet"):
        anchor.factors(f64(1, -1), 0.5)


def test_factors_by_hand():
    """I39: C 0.25, a group at 0.75; right answers of an easy prompt count less, wrong ones more."""
    anchor = anchor_after(0.25, 0.9)  # the second is not in C yet
    low, high = 1.3 * math.exp(-0.5), 1.3 * math.exp(0.5)
    close(anchor.factors(f64(0.5, -2, 0), 0.75), f64(low, high, 1.3))
    current = anchor_after(0.25, 0.75, includes_current=True)  # C 0.5
    close(current.factors(f64(0.5, -2), 0.75), 1.3 * f64(math.exp(-0.25), math.exp(0.25)))


@few
@given(scales, chances, chances, drawn_advantages)
def test_a_factor_is_an_exponential_of_sign_and_distance(
    scale: float, value: float, accuracy: float, advantages: list[float]
):
    """I39."""
    anchor = anchor_after(value, scale=scale)
    both_G = anchor.factors(f64(1, -1), accuracy)
    assert float(both_G.prod()) == pytest.approx(scale**2, rel=1e-12)
    factors_G = anchor.factors(f64(*advantages), accuracy)
    assert factors_G.dtype == torch.float64
    for factor, advantage in zip(factors_G.tolist(), advantages, strict=True):
        sign = (advantage > 0) - (advantage < 0)
        assert factor == pytest.approx(scale * math.exp(-sign * (accuracy - value)), rel=1e-12)
        assert scale / math.e * (1 - 1e-12) <= factor <= scale * math.e * (1 + 1e-12)
        assert factor * advantage == 0 if advantage == 0 else factor > 0


@few
@given(scales, chances, binary_groups())
def test_a_hard_prompt_gains_and_an_easy_one_loses_mass(
    scale: float, value: float, group: tuple[Tensor, float]
):
    """I40, and the same for the sum of absolute values."""
    advantages_G, accuracy = group
    weighed_G = anchor_after(value, scale=scale).factors(advantages_G, accuracy) * advantages_G
    size = len(advantages_G) * scale * math.sqrt(accuracy * (1 - accuracy))
    above, total = accuracy - value, float(weighed_G.sum())
    assert total == pytest.approx(-2 * size * math.sinh(above), rel=1e-9, abs=1e-9)
    assert float(weighed_G.abs().sum()) == pytest.approx(2 * size * math.cosh(above), rel=1e-9)
    if abs(above) > 1e-6:
        assert (total > 0) == (accuracy < value)


@few
@given(binary_groups())
def test_a_group_at_the_anchor_is_only_scaled(group: tuple[Tensor, float]):
    """I39 and I41."""
    advantages_G, accuracy = group
    plain_G = anchor_after(accuracy, scale=1.0).factors(advantages_G, accuracy) * advantages_G
    assert plain_G.tolist() == advantages_G.tolist()
    scaled_G = anchor_after(accuracy).factors(advantages_G, accuracy)
    assert scaled_G.tolist() == [1.3] * len(advantages_G)


@st.composite
def sampled_groups(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, float]:
    """Advantages and lengths [G], log ratios [T] and the accuracy of a mixed binary group."""
    advantages_G, accuracy = draw(binary_groups())
    size = len(advantages_G)
    lengths = draw(st.lists(st.integers(1, 6), min_size=size, max_size=size))
    ratios = draw(st.lists(st.floats(-3, 3), min_size=sum(lengths), max_size=sum(lengths)))
    return advantages_G, torch.tensor(lengths), f64(*ratios), accuracy


@pytest.mark.parametrize("surrogate", [ppo_clip, gspo])
@given(group=sampled_groups(), value=chances)
@few
def test_a_factor_may_stand_inside_or_outside_of_the_clip(
    surrogate: Any, group: tuple[Tensor, Tensor, Tensor, float], value: float
):
    """I42, for value and gradient; the ratios reach past the clip and past the dual clip."""
    advantages_G, lengths_G, ratios_T, accuracy = group
    factors_G = anchor_after(value).factors(advantages_G, accuracy)
    row_T = torch.arange(len(lengths_G)).repeat_interleave(lengths_G)

    def value_and_gradient(inside_G: Tensor, outside_G: Tensor) -> Tensor:
        leaf_T = ratios_T.clone().requires_grad_()
        objective_T = surrogate(leaf_T, torch.zeros_like(leaf_T), inside_G * advantages_G, row_T)
        objective_T = objective_T * outside_G[row_T]
        (gradient_T,) = torch.autograd.grad(objective_T.sum(), leaf_T)
        return torch.stack([objective_T.detach(), gradient_T])

    ones_G = torch.ones_like(factors_G)
    close(value_and_gradient(factors_G, ones_G), value_and_gradient(ones_G, factors_G))


@few
@given(chances, chances, drawn_advantages)
def test_factors_leave_every_advantage_its_sign(
    value: float, accuracy: float, advantages: list[float]
):
    """I43."""
    advantages_G = f64(*advantages)
    for mode in ("ha_dw", "exact_debias"):
        factors_G = anchor_after(value, mode=mode).factors(advantages_G, accuracy)
        assert (factors_G > 0).all()
        assert torch.equal((factors_G * advantages_G).sign(), advantages_G.sign())


@pytest.mark.parametrize("balance", ["count", "adv_mass"])
@given(group=sampled_groups(), value=chances, scale=scales)
@few
def test_balanced_aggregation_sees_the_factors_as_weights_of_its_sides(
    balance: Any, group: tuple[Tensor, Tensor, Tensor, float], value: float, scale: float
):
    """I43: J = scale c (e^-d Ltil+ - e^d Ltil-), Ltil the token means of the clipped objective of
    an advantage of 1 (taken positive), d the group's accuracy minus C."""
    advantages_G, lengths_G, ratios_T, accuracy = group
    row_T = torch.arange(len(lengths_G)).repeat_interleave(lengths_G)
    old_T, groups_G = torch.zeros_like(ratios_T), torch.zeros_like(lengths_G)
    weighed_G = anchor_after(value, scale=scale).factors(advantages_G, accuracy) * advantages_G
    weights_G = balanced(lengths_G, weighed_G, groups_G, max_tokens=8, balance=balance)
    objective_T = ppo_clip(ratios_T, old_T, weighed_G, row_T)
    signs_T = advantages_G.sign()[row_T]
    psi_T = ppo_clip(ratios_T, old_T, advantages_G.sign(), row_T) * signs_T
    above = accuracy - value
    plus, minus = psi_T[signs_T > 0].mean(), psi_T[signs_T < 0].mean()
    sides = math.exp(-above) * plus - math.exp(above) * minus
    expected = scale * math.sqrt(accuracy * (1 - accuracy)) * sides
    close((weights_G[row_T] * objective_T).sum(), expected)


def test_exact_debias_by_hand():
    """C 0.5 counts for two answers beside the four of the group: p = (4/4 + 2/2) / 6 = 1/3.
    4/3 of 1 - 1/27 and of 1 - 8/27, not scaled unless asked for."""
    anchor = anchor_after(0.5, mode="exact_debias")
    factors_G = anchor.factors(f64(math.sqrt(3), *[-1 / math.sqrt(3)] * 3), 0.25)
    close(factors_G, f64(104 / 81, *[76 / 81] * 3))


@few
@given(chances, chances, st.integers(2, 16), st.floats(0, 1e3), scales)
def test_exact_debias_is_the_inverse_bias_at_the_posterior_mean(
    value: float, accuracy: float, size: int, strength: float, scale: float
):
    """Also where group and anchor are sure: p is kept a millionth away from 0 and 1."""
    anchor = anchor_after(value, mode="exact_debias", strength=strength, scale=scale)
    factors_G = anchor.factors(f64(*[1] * (size - 1), -1), accuracy)
    p = (size * accuracy + strength * value) / (size + strength)
    right, wrong = debias_factors(min(1 - 1e-6, max(1e-6, p)), size)
    assert factors_G.dtype == torch.float64
    close(factors_G, scale * f64(*[right] * (size - 1), wrong))
