"""Advantages against hand-computed numbers and the invariants I1-I8.

What looks beyond its group, `batch_norm` and `reinforce_pp`, gets a step of one group here;
test_advantage_step.py gives it more.
"""

import itertools
import math
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from grpo.algo.advantage import ADVANTAGES, StepRewards, is_flat_group
from grpo.errors import UserError
from grpo.registry import call
from tests.examples import examples

few = examples(50)
fewer = examples(20)  # for tests that run once per rule

RULES: list[tuple[str, dict[str, Any]]] = [
    ("group_norm", {}),
    ("group_norm", {"ddof": 1, "eps": 1e-6}),
    ("group_norm", {"eps": 1.0}),
    ("group_center", {}),
    ("rloo", {}),
    ("batch_norm", {}),
    ("batch_norm", {"ddof": 0, "eps": 0.0}),
    ("reinforce_pp", {}),
    ("reinforce_pp", {"baseline": "none"}),
    ("max_rl", {}),
    ("pass_at_k", {"k": 1}),
    ("pass_at_k", {"k": 2}),
    ("quantile", {}),
    ("quantile", {"level": 0.6, "ddof": 1, "eps": 0.1}),
]
every_rule = pytest.mark.parametrize(("name", "options"), RULES)


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def advantages(name: str, rewards_G: Tensor, **options: Any) -> Tensor:
    """Of a step that is this group alone, every response of one token."""
    step = StepRewards([rewards_G], [torch.ones(len(rewards_G))])
    return call(ADVANTAGES.bind(name, options), rewards_G, step=step)


def binary(hits: int, size: int) -> Tensor:
    return f64(*[1] * hits, *[0] * (size - hits))


def permitted(name: str, rewards_G: Tensor) -> Tensor:
    return rewards_G.abs() if name == "max_rl" else rewards_G


def close(left: Tensor, right: Tensor) -> None:
    torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-9)


# Steps of 0.01 keep a drawn group either exactly flat or clearly not.
rewards = st.lists(st.integers(-500, 500), min_size=2, max_size=16).map(
    lambda steps: f64(*(step / 100 for step in steps))
)
mixed_groups = st.integers(2, 32).flatmap(
    lambda size: st.integers(1, size - 1).map(lambda hits: (hits, size))
)


def test_every_rule_of_the_module_is_among_those_under_test():
    own = {name for name in ADVANTAGES if ADVANTAGES[name].__module__ == "grpo.algo.advantage"}
    assert own == {name for name, _ in RULES}


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        # mean 1/4, deviation sqrt(3)/4
        ("group_norm", {}, [math.sqrt(3), *[-1 / math.sqrt(3)] * 3]),
        ("group_norm", {"ddof": 1}, [1.5, -0.5, -0.5, -0.5]),
        ("group_center", {}, [0.75, -0.25, -0.25, -0.25]),
        ("rloo", {}, [1, -1 / 3, -1 / 3, -1 / 3]),
        ("batch_norm", {"eps": 0.0}, [1.5, -0.5, -0.5, -0.5]),
        ("reinforce_pp", {"eps": 0.0}, [1.5, -0.5, -0.5, -0.5]),
        ("reinforce_pp", {"eps": 0.0, "baseline": "none"}, [1.5, -0.5, -0.5, -0.5]),
        ("max_rl", {}, [3, -1, -1, -1]),
        # 3 of 6 pairs hold the right answer; 1 of the 3 pairs with a given wrong one does
        ("pass_at_k", {"k": 2}, [1, -1 / 3, -1 / 3, -1 / 3]),
        ("quantile", {}, [4 / math.sqrt(3), 0, 0, 0]),
    ],
)
def test_one_success_in_four(name: str, options: dict[str, Any], expected: list[float]):
    close(advantages(name, f64(1, 0, 0, 0), **options), f64(*expected))


@pytest.mark.parametrize(
    ("name", "options"),
    [("group_norm", {}), ("batch_norm", {"ddof": 0}), ("quantile", {"level": 0.5})],
)
def test_eps_is_added_to_the_deviation(name: str, options: dict[str, Any]):
    """The deviation is 1/2; the least of two rewards is the quantile."""
    expected = f64(1, 0) if name == "quantile" else f64(0.5, -0.5)
    close(advantages(name, f64(1, 0), eps=0.5, **options), expected)


@few
@given(mixed_groups)
def test_binary_rewards_give_the_odds_of_the_paper(group: tuple[int, int]):
    """I1."""
    hits, size = group
    p = hits / size
    advantages_G = advantages("group_norm", binary(hits, size))
    close(advantages_G[0], f64(math.sqrt((1 - p) / p))[0])
    close(advantages_G[-1], f64(-math.sqrt(p / (1 - p)))[0])
    assert abs(float(advantages_G.sum())) < 1e-9
    assert float(advantages_G.square().mean()) == pytest.approx(1, rel=1e-9)


@few
@given(rewards)
def test_ddof_one_shrinks_by_a_uniform_factor(rewards_G: Tensor):
    """I2."""
    factor = math.sqrt((len(rewards_G) - 1) / len(rewards_G))
    close(advantages("group_norm", rewards_G, ddof=1), factor * advantages("group_norm", rewards_G))


@few
@given(rewards, st.floats(0.1, 10), st.floats(-5, 5))
def test_scale_and_offset_of_rewards_do_not_matter_to_the_normalised_form(
    rewards_G: Tensor, scale: float, offset: float
):
    """I3."""
    normal_G, centred_G = (advantages(name, rewards_G) for name in ("group_norm", "group_center"))
    close(advantages("group_norm", scale * rewards_G + offset), normal_G)
    close(advantages("group_norm", -rewards_G), -normal_G)
    close(advantages("group_center", scale * rewards_G + offset), scale * centred_G)


@every_rule
@given(reward=st.floats(-1e6, 1e6), data=st.data())
@fewer
def test_a_flat_group_gives_exactly_zero(
    name: str, options: dict[str, Any], reward: float, data: st.DataObject
):
    """I4. The rules under test come with eps 0 and above, ddof 0 and 1."""
    size = data.draw(st.integers(options.get("k", 1), 16))
    for dtype in (torch.float32, torch.float64):
        rewards_G = permitted(name, torch.full((size,), reward, dtype=dtype))
        advantages_G = advantages(name, rewards_G, **options)
        assert advantages_G.tolist() == [0.0] * size
        assert advantages_G.dtype == torch.float64


@every_rule
def test_rounding_does_not_invent_winners(name: str, options: dict[str, Any]):
    """I4."""
    rewards_G = f64(0.1 + 0.2, 0.3, 0.3)
    assert rewards_G[0] != rewards_G[1]
    assert advantages(name, rewards_G, **options).tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("group", "is_flat"),
    [([5], True), ([1, 1 + 1e-9], True), ([1, 1.001], False), ([1e6, 1e6 + 1e-3], True)],
)
def test_flatness_is_measured_against_the_size_of_the_rewards(group: list[float], is_flat: bool):
    assert is_flat_group(f64(*group)) is is_flat


@every_rule
@given(data=st.data())
@fewer
def test_order_does_not_matter_and_more_reward_is_never_worse(
    name: str, options: dict[str, Any], data: st.DataObject
):
    rewards_G = permitted(name, data.draw(rewards))
    advantages_G = advantages(name, rewards_G, **options)
    order = data.draw(st.permutations(range(len(rewards_G))))
    close(advantages(name, rewards_G[order], **options), advantages_G[order])
    by_reward = advantages_G[rewards_G.argsort(stable=True)]
    assert bool((by_reward.diff() >= -1e-9).all())


@every_rule
def test_whole_and_single_precision_rewards_become_float64(name: str, options: dict[str, Any]):
    expected_G = advantages(name, f64(2, 0, 1, 0), **options)
    for dtype in (torch.float32, torch.int64):
        advantages_G = advantages(name, f64(2, 0, 1, 0).to(dtype), **options)
        assert advantages_G.dtype == torch.float64
        assert advantages_G.tolist() == expected_G.tolist()


@few
@given(rewards)
def test_rloo_is_the_reward_minus_the_mean_of_the_others(rewards_G: Tensor):
    """I5."""
    values, size = rewards_G.tolist(), len(rewards_G)
    advantages_G = advantages("rloo", rewards_G)
    literal = [value - (sum(values) - value) / (size - 1) for value in values]
    close(advantages_G, f64(*literal))
    close(advantages_G, size / (size - 1) * (rewards_G - rewards_G.mean()))


@few
@given(rewards)
def test_centred_rules_add_up_to_zero(rewards_G: Tensor):
    """I5, I6, I8."""
    for name in ("group_norm", "group_center", "rloo", "batch_norm", "max_rl"):
        assert abs(float(advantages(name, permitted(name, rewards_G)).sum())) < 1e-7, name


@pytest.mark.parametrize(
    ("hits", "expected"),
    [
        (0, [0, 0, 0, 0]),
        # mean 5/6, deviation sqrt(5)/6; a wrong answer is in 3 pairs, of which 2 hold a right one
        (2, [1 / math.sqrt(5), 1 / math.sqrt(5), -1 / math.sqrt(5), -1 / math.sqrt(5)]),
        (3, [0, 0, 0, 0]),  # any two answers hold a right one
        (4, [0, 0, 0, 0]),
    ],
)
def test_pass_at_two_of_four_by_hand(hits: int, expected: list[float]):
    """I6."""
    close(advantages("pass_at_k", binary(hits, 4), k=2), f64(*expected))


def pass_at_k_by_subsets(rewards: list[float], k: int) -> list[float]:
    subsets = list(itertools.combinations(range(len(rewards)), k))
    best = [max(rewards[i] for i in subset) for subset in subsets]
    mean = sum(best) / len(best)
    deviation = math.sqrt(sum((score - mean) ** 2 for score in best) / len(best))
    if deviation == 0:
        return [0.0] * len(rewards)
    scores = [(score - mean) / deviation for score in best]
    mine = [
        [s for s, at in zip(scores, subsets, strict=True) if i in at] for i in range(len(rewards))
    ]
    return [sum(own) / len(own) for own in mine]


@pytest.mark.parametrize("size", range(1, 9))
def test_pass_at_k_is_the_mean_advantage_of_the_subsets_that_hold_the_response(size: int):
    """I6: every group of up to 8 binary rewards and every k, by enumeration."""
    for k, hits in itertools.product(range(1, size + 1), range(size + 1)):
        rewards_G = binary(hits, size)
        advantages_G = advantages("pass_at_k", rewards_G, k=k)
        close(advantages_G, f64(*pass_at_k_by_subsets(rewards_G.tolist(), k)))
        assert abs(float(advantages_G.sum())) < 1e-9


@few
@given(mixed_groups)
def test_pass_at_one_is_the_group_norm(group: tuple[int, int]):
    """I6."""
    rewards_G = binary(*group)
    close(advantages("pass_at_k", rewards_G, k=1), advantages("group_norm", rewards_G))


def test_pass_at_k_takes_a_reward_above_its_bound_as_right():
    graded_G = f64(0.9, 0.5, 0.3, -1)
    close(advantages("pass_at_k", graded_G, k=2), advantages("pass_at_k", f64(1, 0, 0, 0), k=2))
    lower_G = advantages("pass_at_k", graded_G, k=2, right_above=0.4)
    close(lower_G, advantages("pass_at_k", f64(1, 1, 0, 0), k=2))


def test_pass_at_k_refuses_more_answers_than_the_group_has():
    with pytest.raises(ValueError, match="k is 4, but a group has only 3 answers: lower k"):
        advantages("pass_at_k", f64(1, 0, 0))


@pytest.mark.parametrize(
    ("hits", "size", "right", "wrong"),
    [
        (2, 5, 1 / math.sqrt(0.24), 0),
        (3, 5, 1 / math.sqrt(0.24), 0),  # a success rate of 1 - level is still hard
        (4, 5, 0, -1 / 0.4),
    ],
)
def test_quantile_on_both_sides_of_its_level(hits: int, size: int, right: float, wrong: float):
    """I7."""
    expected_G = f64(*[right] * hits, *[wrong] * (size - hits))
    close(advantages("quantile", binary(hits, size)), expected_G)


@few
@given(mixed_groups, st.integers(1, 99))
@example((18, 25), 28)
def test_quantile_counts_right_answers_of_hard_groups_and_wrong_ones_of_easy(
    group: tuple[int, int], percent: int
):
    """I7. In the example 7 wrong of 25 are the level exactly, but 0.28 * 25 > 7 in floats."""
    hits, size = group
    advantages_G = advantages("quantile", binary(hits, size), level=percent / 100)
    hard = Fraction(hits, size) <= 1 - Fraction(percent, 100)
    silent_G, heard_G = advantages_G[hits:], advantages_G[:hits]
    if not hard:
        silent_G, heard_G = heard_G, silent_G
    deviation = math.sqrt(hits * (size - hits)) / size
    assert not silent_G.any()
    close(heard_G, torch.full_like(heard_G, (1 if hard else -1) / deviation))


@few
@given(rewards, st.integers(1, 99))
def test_the_baseline_of_quantile_is_the_least_reward_that_reaches_the_level(
    rewards_G: Tensor, percent: int
):
    """I7, graded rewards: the distribution function, inverted by trying every reward."""
    values = rewards_G.tolist()
    if len(set(values)) == 1:
        return
    reaching = [
        value
        for value in values
        if Fraction(sum(other <= value for other in values), len(values)) >= Fraction(percent, 100)
    ]
    expected_G = (rewards_G - min(reaching)) / rewards_G.std(correction=0)
    close(advantages("quantile", rewards_G, level=percent / 100), expected_G)


@few
@given(st.lists(st.integers(0, 500), min_size=1, max_size=16))
def test_max_rl_divides_by_the_success_rate(steps: list[int]):
    """I8: with the 1 / G of an aggregator it is (r - mean) / (G mean)."""
    values = [value / 100 for value in steps]
    mean = sum(values) / len(values)
    advantages_G = advantages("max_rl", f64(*values))
    literal = [value / mean - 1 if mean else 0.0 for value in values]
    close(advantages_G, f64(*literal))


def test_max_rl_of_graded_rewards_by_hand_and_of_failures_only():
    """I8."""
    close(advantages("max_rl", f64(0.5, 0.25, 0, 0.25)), f64(1, 0, -1, 0))
    assert advantages("max_rl", f64(0, 0, 0)).tolist() == [0, 0, 0]


@pytest.mark.parametrize("size", [2, 5, 8])
@pytest.mark.parametrize("p", [0.05, 0.5, 0.9])
def test_the_expected_gradient_of_max_rl_is_a_truncated_likelihood_gradient(size: int, p: float):
    """Over all counts of right answers, with d log P(r) / dp as gradient of a response:
    sum_k<G-1 (1 - p)^k, of which the limit 1 / p is the gradient of log p. The own mean as baseline
    costs the last of the G terms that the rewards alone would give."""
    expected = 0.0
    for hits in range(size + 1):
        score_G = torch.cat([f64(1 / p).repeat(hits), f64(-1 / (1 - p)).repeat(size - hits)])
        gradient = float((advantages("max_rl", binary(hits, size)) * score_G).mean())
        expected += math.comb(size, hits) * p**hits * (1 - p) ** (size - hits) * gradient
    assert expected == pytest.approx(sum((1 - p) ** k for k in range(size - 1)), rel=1e-9)


def test_max_rl_refuses_a_negative_reward():
    with pytest.raises(ValueError, match=r"max_rl needs rewards >= 0, got \[1.0, -0.5\]"):
        advantages("max_rl", f64(1, -0.5))


@every_rule
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_reward_that_is_not_finite_is_refused(name: str, options: dict[str, Any], bad: float):
    with pytest.raises(ValueError, match="finite"):
        advantages(name, f64(1, bad), **options)


def test_a_group_without_rewards_is_refused():
    with pytest.raises(ValueError, match="a group needs rewards"):
        is_flat_group(f64())


def test_a_wrong_name_lists_the_nearest():
    with pytest.raises(UserError, match="did you mean 'group_norm'"):
        ADVANTAGES["grup_norm"]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("group_norm", {"dof": 1}, "did you mean 'ddof'"),
        ("group_norm", {"ddof": 2}, "option 'ddof'.*got 2"),
        ("group_norm", {"eps": "tiny"}, "option 'eps'.*got 'tiny'"),
        ("group_norm", {"eps": -1}, "option 'eps'"),
        ("rloo", {"eps": 0.1}, "'rloo' has no option 'eps'.*Its options: none"),
        ("batch_norm", {"step": None}, "has no option 'step'.*Its options: ddof, eps"),
        ("reinforce_pp", {"baseline": "batch"}, "option 'baseline'.*got 'batch'"),
        ("pass_at_k", {"k": 0}, "option 'k'.*got 0"),
        ("quantile", {"level": 1}, "option 'level'.*got 1"),
        ("quantile", {"level": 0}, "option 'level'.*got 0"),
    ],
)
def test_a_wrong_option_is_named(name: str, options: dict[str, object], message: str):
    with pytest.raises(UserError, match=message):
        ADVANTAGES.bind(name, options)
