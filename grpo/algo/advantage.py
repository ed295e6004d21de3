"""Rewards of a group become one advantage per response.

G = siblings of one prompt. Every part is `(rewards_G, *, options) -> advantages_G` in float64.
A part that looks beyond its group declares the keyword `step` and gets a `StepRewards`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from grpo.registry import Registry

ADVANTAGES: Registry[Callable[..., Tensor]] = Registry("advantage", supplied=("step",))

FLAT_TOLERANCE = 1e-8
_MOST = 1e100  # far beyond `grpo.types.MOST_REWARD`; sums of squares of a step stay finite

Epsilon = Annotated[float, Field(ge=0)]


@dataclass(frozen=True, slots=True, eq=False)
class StepRewards:
    """All groups of the rollout step that the learner gets: rewards and lengths (tokens), one
    [G] tensor each per group."""

    rewards: list[Tensor]
    lengths: list[Tensor]


def is_flat_group(rewards_G: Tensor) -> bool:
    """Whether the rewards [G] differ by no more than rounding, so that no sibling beats another.

    Their standard deviation (over G) is measured against max(1, max |r|).
    Raises ValueError where a reward is not finite, so large that its square is not, or there is
    none.
    """
    if rewards_G.numel() == 0 or not bool(torch.isfinite(rewards_G).all()):
        raise ValueError(f"a group needs rewards and all of them finite, got {rewards_G.tolist()}")
    if bool((rewards_G.double().abs() > _MOST).any()):
        raise ValueError(f"rewards must be finite when squared, got {rewards_G.tolist()}")
    rewards_G = rewards_G.double()
    scale = max(1.0, float(rewards_G.abs().max()))
    return float(rewards_G.std(correction=0)) <= FLAT_TOLERANCE * scale


@ADVANTAGES.register("group_norm")
def group_norm(rewards_G: Tensor, *, ddof: Literal[0, 1] = 0, eps: Epsilon = 0.0) -> Tensor:
    """(r - mean) / (std + eps), [G] -> [G] float64 (GRPO, arXiv 2402.03300, section 4.1.2).

    The formulas in the papers hold for ddof 0 and eps 0; verl and TRL divide by the ddof 1
    deviation plus 1e-6 and 1e-4. A flat group gives exactly 0 for any eps: rounding in
    r - mean would otherwise invent winners.
    Raises ValueError where a reward is not finite.
    """
    if is_flat_group(rewards_G):
        return torch.zeros_like(rewards_G, dtype=torch.float64)
    return group_center(rewards_G) / (rewards_G.double().std(correction=ddof) + eps)


@ADVANTAGES.register("group_center")
def group_center(rewards_G: Tensor) -> Tensor:
    """r - mean, [G] -> [G] float64 (Dr.GRPO, arXiv 2503.20783). A flat group gives exactly 0.

    Raises ValueError where a reward is not finite.
    """
    if is_flat_group(rewards_G):
        return torch.zeros_like(rewards_G, dtype=torch.float64)
    rewards_G = rewards_G.double()
    return rewards_G - rewards_G.mean()


@ADVANTAGES.register("rloo")
def rloo(rewards_G: Tensor) -> Tensor:
    """r minus the mean of the siblings' rewards, [G] -> [G] float64 (RLOO, arXiv 2402.14740):
    G / (G - 1) of `group_center`. A flat group gives exactly 0."""
    size = len(rewards_G)
    return group_center(rewards_G) * (size / max(1, size - 1))


@ADVANTAGES.register("batch_norm")
def batch_norm(
    rewards_G: Tensor, *, step: StepRewards, ddof: Literal[0, 1] = 1, eps: Epsilon = 1e-4
) -> Tensor:
    """(r - group mean) / (std of all rewards of the step + eps), [G] -> [G] float64
    (arXiv 2508.08221; TRL's `scale_rewards: batch`, whose ddof and eps are the defaults)."""
    all_N = torch.cat([rewards.double() for rewards in step.rewards])
    centred_G = group_center(rewards_G)
    if is_flat_group(all_N):
        return torch.zeros_like(centred_G)
    return centred_G / (all_N.std(correction=ddof) + eps)


@ADVANTAGES.register("reinforce_pp")
def reinforce_pp(
    rewards_G: Tensor,
    *,
    step: StepRewards,
    baseline: Literal["group", "none"] = "group",
    eps: Epsilon = 1e-8,
) -> Tensor:
    """r - group mean (or r), whitened over all tokens of the step, [G] -> [G] float64
    (REINFORCE++, arXiv 2501.03262, and its group baseline; variance with ddof 1 and eps inside
    the root, as in verl).

    Whitening shifts the mean over tokens to 0, so a flat group that reaches it (flat_groups: keep)
    has an advantage, unlike under every other rule here.
    """
    is_flat_group(rewards_G)  # refuses what is not finite
    centre = group_center if baseline == "group" else Tensor.double
    mine_G = centre(rewards_G)
    values_N = torch.cat([centre(rewards) for rewards in step.rewards])
    tokens_N = torch.cat([lengths.double() for lengths in step.lengths])
    total = float(tokens_N.sum())
    mean = float((tokens_N * values_N).sum()) / max(1.0, total)
    variance = float((tokens_N * (values_N - mean) ** 2).sum()) / max(1.0, total - 1)
    scale = max(1.0, float(values_N.abs().max()))
    if variance <= (FLAT_TOLERANCE * scale) ** 2:
        return torch.zeros_like(mine_G)
    return (mine_G - mean) / math.sqrt(variance + eps)


@ADVANTAGES.register("max_rl")
def max_rl(rewards_G: Tensor) -> Tensor:
    """(r - mean) / mean, [G] -> [G] float64 (MaxRL, arXiv 2602.02710); 0 where no answer is
    right. With the 1/G of an aggregator it is the paper's sum of (r - mean) / (G mean).

    Raises ValueError for a negative reward: the mean is a success rate.
    """
    if bool((rewards_G < 0).any()):
        raise ValueError(f"max_rl needs rewards >= 0, got {rewards_G.tolist()}")
    centred_G = group_center(rewards_G)
    mean = float(rewards_G.double().mean())
    return centred_G / mean if mean > 0 else torch.zeros_like(centred_G)


@ADVANTAGES.register("pass_at_k")
def pass_at_k(
    rewards_G: Tensor, *, k: Annotated[int, Field(ge=1)] = 4, right_above: float = 0.5
) -> Tensor:
    """The advantage of the reward "one of k is right", [G] -> [G] float64 (Pass@k training, arXiv
    2508.10751, eq. 13 to 15). A reward above `right_above` is right.

    With w wrong answers: mean m = 1 - C(w,k)/C(G,k), deviation sqrt(m (1 - m)); a right answer
    gets (1 - m) / deviation, a wrong one (1 - m - C(w-1,k-1)/C(G-1,k-1)) / deviation. 0 where any
    k answers hold a right one, or none does. k = 1 is `group_norm`.
    Raises ValueError where k is larger than the group.
    """
    size = len(rewards_G)
    if k > size:
        raise ValueError(f"pass_at_k: k is {k}, but a group has only {size} answers: lower k")
    is_flat_group(rewards_G)  # refuses what is not finite
    right_G = rewards_G > right_above
    wrong = int((~right_G).sum())
    mean = 1 - math.comb(wrong, k) / math.comb(size, k)
    if mean <= 0 or mean >= 1:
        return torch.zeros(size, dtype=torch.float64, device=rewards_G.device)
    deviation = math.sqrt(mean * (1 - mean))
    if_right = (1 - mean) / deviation
    if_wrong = (1 - mean - math.comb(wrong - 1, k - 1) / math.comb(size - 1, k - 1)) / deviation
    advantages_G = torch.full((size,), if_wrong, dtype=torch.float64, device=rewards_G.device)
    return advantages_G.masked_fill(right_G, if_right)


@ADVANTAGES.register("quantile")
def quantile(
    rewards_G: Tensor,
    *,
    level: Annotated[float, Field(gt=0, lt=1)] = 0.4,
    ddof: Literal[0, 1] = 0,
    eps: Epsilon = 0.0,
) -> Tensor:
    """(r - b) / (std + eps), b the least reward that a share `level` of the group does not
    exceed, [G] -> [G] float64 (QAE, arXiv 2509.22611). Up to a success rate of 1 - level only
    right answers count, above it only wrong ones; the advantages do not add up to 0."""
    if is_flat_group(rewards_G):
        return torch.zeros_like(rewards_G, dtype=torch.float64)
    rewards_G = rewards_G.double()
    rank = math.ceil(level * len(rewards_G) - 1e-9)  # F(x) >= level at this many answers
    baseline = rewards_G.sort().values[max(0, rank - 1)]
    return (rewards_G - baseline) / (rewards_G.std(correction=ddof) + eps)
