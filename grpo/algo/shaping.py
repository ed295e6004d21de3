"""What happens to groups between verdicts and advantages: long answers, flat groups."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from grpo.algo.advantage import is_flat_group
from grpo.types import ScoredGroup


def is_flat(rewards: Sequence[float]) -> bool:
    """Whether no sibling did better than another; the rule by which estimators give 0.

    Raises ValueError where a reward is not finite or there is none.
    """
    return is_flat_group(torch.tensor(rewards, dtype=torch.float64))


def is_informative(group: ScoredGroup) -> bool:
    """Whether the verdicts differ, and an answer is left to learn from. Punished lengths make no
    group informative, as in DAPO, whose filter looks at the accuracy alone."""
    return not is_flat(group.accuracies) and not (group.masked and all(group.masked))


def overlong_penalty(length: int, max_tokens: int, buffer: int) -> float:
    """DAPO's soft punishment in [-1, 0] (arXiv 2503.14476, eq. 13): 0 up to max_tokens - buffer,
    then linearly down to -1 at max_tokens; 0 everywhere without a buffer. Lengths in tokens."""
    if buffer == 0:
        return 0.0
    return max(-1.0, min(0.0, (max_tokens - buffer - length) / buffer))


def shape(
    group: ScoredGroup, *, max_tokens: int, buffer: int, penalty: float, mask_truncated: bool
) -> ScoredGroup:
    """The group with its penalties (`penalty` times the soft punishment) and with its truncated
    answers masked, as far as either is asked for."""
    responses = group.group.responses
    if buffer > 0:
        lengths = [len(response.token_ids) for response in responses]
        taken = [penalty * overlong_penalty(n, max_tokens, buffer) for n in lengths]
        group = replace(group, penalties=tuple(taken))
    if mask_truncated:
        cut = [response.finish_reason == "length" for response in responses]
        group = replace(group, masked=tuple(cut))
    return group
