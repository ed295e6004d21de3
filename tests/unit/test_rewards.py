"""A plugin's verifier may give anything; a reward is a number of a sane size."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from grpo.algo import ADVANTAGES
from grpo.algo.advantage import StepRewards, is_flat_group
from grpo.registry import call
from grpo.types import MOST_REWARD, Verdict
from grpo.verify.worker import judge


def judged(given: Any) -> Verdict:
    verdict, is_spent = judge(lambda response, answer: given, "r", "a", {})
    assert not is_spent
    return verdict


@pytest.mark.parametrize(
    ("reward", "said"),
    [
        (1e160, "reward 1e+160 is beyond 1,000,000"),
        (-1e160, "reward -1e+160 is beyond 1,000,000"),
        (MOST_REWARD + 1, "reward 1000001.0 is beyond 1,000,000"),
        (10**400, "OverflowError"),
        (math.nan, "reward nan is not finite"),
        (math.inf, "reward inf is not finite"),
        (np.float32("nan"), "reward nan is not finite"),
        ("1.0", "reward '1.0' is text"),
        (None, "TypeError"),
        (1j, "TypeError"),
        ([1.0], "TypeError"),
    ],
)
def test_a_reward_that_is_no_sane_number_is_a_crash_that_names_it(reward: Any, said: str):
    verdict = judged(Verdict(reward, "", "correct"))
    assert verdict.reward == 0.0 and verdict.was_stopped
    assert said in verdict.reason


@pytest.mark.parametrize("given", [None, 1.0, "correct", {"reward": 1.0}, (1.0, "", "correct")])
def test_what_is_no_verdict_is_a_crash_that_says_what_it_was(given: Any):
    assert f"it gave {type(given).__name__}, and a verdict is" in judged(given).reason


@pytest.mark.parametrize("reward", [1, True, 0.5, -3.0, np.float64(2), torch.tensor(1.5), 1e6])
def test_a_number_of_any_kind_is_a_reward(reward: Any):
    verdict = judged(Verdict(reward, "x", "correct"))
    assert type(verdict.reward) is float and verdict.reward == float(reward)


@pytest.mark.parametrize("name", [n for n in ADVANTAGES if n != "max_rl"])
def test_rewards_whose_squares_leave_float64_are_refused_by_every_advantage(name: str):
    rewards_G = torch.tensor([1e160, -1e160, 0.0, 0.0], dtype=torch.float64)
    step = StepRewards([rewards_G], [torch.ones(4)])
    with pytest.raises(ValueError, match="finite when squared"):
        call(ADVANTAGES.bind(name, {}), rewards_G, step=step)


def test_the_largest_rewards_still_tell_siblings_apart():
    assert not is_flat_group(torch.tensor([MOST_REWARD, -MOST_REWARD, 0.0], dtype=torch.float64))
    assert not is_flat_group(torch.tensor([MOST_REWARD, MOST_REWARD - 1], dtype=torch.float64))
