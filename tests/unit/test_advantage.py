"""Advantages against hand-computed numbers and the invariants I1-I4."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from grpo.algo.advantage import ADVANTAGES
from grpo.errors import UserError

few = settings(max_examples=50, deadline=None)
group_norm = ADVANTAGES["group_norm"]
group_center = ADVANTAGES["group_center"]


def close(left: Tensor, right: Tensor) -> None:
    torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-9)


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# Steps of 0.01 keep a drawn group either exactly flat or clearly not.
rewards = st.lists(st.integers(-500, 500), min_size=2, max_size=16).map(
    lambda steps: f64(*(step / 100 for step in steps))
)


def test_one_success_in_four():
    close(group_norm(f64(1, 0, 0, 0)), f64(math.sqrt(3), *[-1 / math.sqrt(3)] * 3))
    close(group_center(f64(1, 0, 0, 0)), f64(0.75, -0.25, -0.25, -0.25))


def test_eps_is_added_to_the_deviation():
    close(group_norm(f64(1, 0), eps=0.5), f64(0.5, -0.5))


@few
@given(size=st.integers(2, 32), data=st.data())
def test_binary_rewards_give_the_odds_of_the_paper(size: int, data: st.DataObject):
    """I1."""
    hits = data.draw(st.integers(1, size - 1))
    p = hits / size
    advantages = group_norm(f64(*[1] * hits, *[0] * (size - hits)))
    close(advantages[0], f64(math.sqrt((1 - p) / p))[0])
    close(advantages[-1], f64(-math.sqrt(p / (1 - p)))[0])
    assert abs(float(advantages.sum())) < 1e-9
    assert float(advantages.square().mean()) == pytest.approx(1, rel=1e-9)


@few
@given(rewards)
def test_ddof_one_shrinks_by_a_uniform_factor(rewards_G: Tensor):
    """I2."""
    factor = math.sqrt((len(rewards_G) - 1) / len(rewards_G))
    close(group_norm(rewards_G, ddof=1), factor * group_norm(rewards_G))


@few
@given(rewards, st.floats(0.1, 10), st.floats(-5, 5))
def test_scale_and_offset_of_rewards_do_not_matter_to_the_normalised_form(
    rewards_G: Tensor, scale: float, offset: float
):
    """I3."""
    close(group_norm(scale * rewards_G + offset), group_norm(rewards_G))
    close(group_norm(-rewards_G), -group_norm(rewards_G))
    close(group_center(scale * rewards_G + offset), scale * group_center(rewards_G))


@pytest.mark.parametrize("name", list(ADVANTAGES))
@given(reward=st.floats(-1e6, 1e6), size=st.integers(1, 16))
@few
def test_a_flat_group_gives_exactly_zero(name: str, reward: float, size: int):
    """I4."""
    advantages = ADVANTAGES[name](torch.full((size,), reward))
    assert advantages.tolist() == [0.0] * size
    assert advantages.dtype == torch.float64


@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize("eps", [0.0, 1e-6, 1.0])
def test_rounding_does_not_invent_winners(ddof: int, eps: float):
    """I4."""
    rewards_G = f64(0.1 + 0.2, 0.3, 0.3)
    assert rewards_G[0] != rewards_G[1]
    assert group_norm(rewards_G, ddof=ddof, eps=eps).tolist() == [0, 0, 0]


@pytest.mark.parametrize("name", list(ADVANTAGES))
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_reward_that_is_not_finite_is_refused(name: str, bad: float):
    with pytest.raises(ValueError, match="finite"):
        ADVANTAGES[name](f64(1, bad))


def test_a_wrong_name_lists_the_nearest():
    with pytest.raises(UserError, match="did you mean 'group_norm'"):
        ADVANTAGES["grup_norm"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dof": 1}, "did you mean 'ddof'"),
        ({"ddof": 2}, "option 'ddof'.*got 2"),
        ({"eps": "tiny"}, "option 'eps'.*got 'tiny'"),
        ({"eps": -1}, "option 'eps'"),
    ],
)
def test_a_wrong_option_is_named(options: dict[str, object], message: str):
    with pytest.raises(UserError, match=message):
        ADVANTAGES.bind("group_norm", options)
