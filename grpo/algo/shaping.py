"""What happens to groups between verdicts and advantages."""

from collections.abc import Sequence

import torch

from grpo.algo.advantage import FLAT_TOLERANCE, is_flat_group
from grpo.types import ScoredGroup


def is_flat(rewards: Sequence[float], tolerance: float = FLAT_TOLERANCE) -> bool:
    """Whether no sibling did better than another; the rule by which estimators give 0.

    Raises ValueError where a reward is not finite or there is none.
    """
    return is_flat_group(torch.tensor(rewards, dtype=torch.float64), tolerance)


def split_flat(groups: Sequence[ScoredGroup]) -> tuple[list[ScoredGroup], list[ScoredGroup]]:
    """(informative, flat), each in the order given."""
    informative: list[ScoredGroup] = []
    flat: list[ScoredGroup] = []
    for group in groups:
        (flat if is_flat(group.rewards) else informative).append(group)
    return informative, flat
