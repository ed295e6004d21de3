"""What happens to groups between verdicts and advantages: answers that no verifier came to an end
with, long answers, flat groups."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

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
    return any(group.learned_from) and not is_flat(group.accuracies)


def settle_stopped(
    group: ScoredGroup,
    *,
    on_failure: Literal["drop", "lowest"],
    lowest_reward: float | None,
    least: int,
) -> ScoredGroup:
    """The group with the answers settled on which the verifier crashed or ran out of time.

    Such a verdict comes with a reward of 0, and nothing is known of the answer: where rewards are
    -1 and 1, that 0 would beat a wrong answer.

    drop: they are left out, of the statistics as of the loss. What the others get is what they
        would get without them. Where fewer than `least` are judged, the group is left out whole.
    lowest: they get `lowest_reward`, or 0 where it is None; less where a sibling has less, so that
        no failure beats a wrong answer of its group.
    """
    stopped = tuple(verdict.was_stopped for verdict in group.verdicts)
    if not any(stopped):
        return group
    judged = [v.reward for v in group.verdicts if not v.was_stopped]
    if on_failure == "lowest":
        lowest = min([lowest_reward or 0.0, *judged])
        verdicts = [replace(v, reward=lowest) if v.was_stopped else v for v in group.verdicts]
        return replace(group, verdicts=tuple(verdicts))
    if len(judged) < least:
        stopped = (True,) * len(stopped)
    return replace(group, left_out=stopped)


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
