"""Rewards of a group become one advantage per response.

G = siblings of one prompt. Every part is `(rewards_G, *, options) -> advantages_G` in float64.
"""

from collections.abc import Callable
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from grpo.registry import Registry

ADVANTAGES: Registry[Callable[..., Tensor]] = Registry("advantage")

FLAT_TOLERANCE = 1e-8


def is_flat_group(rewards_G: Tensor, tolerance: float = FLAT_TOLERANCE) -> bool:
    """Whether the rewards [G] differ by no more than rounding, so that no sibling beats another.

    Their standard deviation (over G) is measured against max(1, max |r|).
    Raises ValueError where a reward is not finite or there is none.
    """
    if rewards_G.numel() == 0 or not bool(torch.isfinite(rewards_G).all()):
        raise ValueError(f"a group needs rewards and all of them finite, got {rewards_G.tolist()}")
    rewards_G = rewards_G.double()
    scale = max(1.0, float(rewards_G.abs().max()))
    return float(rewards_G.std(correction=0)) <= tolerance * scale


@ADVANTAGES.register("group_norm")
def group_norm(
    rewards_G: Tensor, *, ddof: Literal[0, 1] = 0, eps: Annotated[float, Field(ge=0)] = 0.0
) -> Tensor:
    """(r - mean) / (std + eps), [G] -> [G] float64 (GRPO, arXiv 2402.03300, section 4.1.2).

    The formulas in the papers hold for ddof 0 and eps 0; verl and TRL divide by the ddof 1
    deviation plus 1e-6 and 1e-4. A flat group gives exactly 0 for any eps: rounding in
    r - mean would otherwise invent winners.
    Raises ValueError where a reward is not finite.
    """
    if is_flat_group(rewards_G):
        return torch.zeros_like(rewards_G, dtype=torch.float64)
    rewards_G = rewards_G.double()
    return (rewards_G - rewards_G.mean()) / (rewards_G.std(correction=ddof) + eps)


@ADVANTAGES.register("group_center")
def group_center(rewards_G: Tensor) -> Tensor:
    """r - mean, [G] -> [G] float64 (Dr.GRPO, arXiv 2503.20783). A flat group gives exactly 0.

    Raises ValueError where a reward is not finite.
    """
    if is_flat_group(rewards_G):
        return torch.zeros_like(rewards_G, dtype=torch.float64)
    rewards_G = rewards_G.double()
    return rewards_G - rewards_G.mean()
