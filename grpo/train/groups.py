"""Groups on their way through a step: judged, flat ones counted, and what the learner gets."""

from collections import Counter
from collections.abc import Collection, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass

import torch

from grpo.algo import ADVANTAGES
from grpo.algo.advantage import StepRewards
from grpo.algo.shaping import is_informative, settle_stopped, shape
from grpo.config.recipe import Recipe
from grpo.console import Screen
from grpo.errors import RunError
from grpo.registry import call
from grpo.train.metrics import short_reason
from grpo.types import Group, ScoredGroup, Verdict
from grpo.verify.pool import VerifierPool


@dataclass(frozen=True, slots=True)
class Collected:
    """`sampled` is everything in prompt order; `used` is what the learner gets of it.

    stale_tokens, aborted_tokens: of answers that were thrown away and sampled once more
    rollout_s, rollout_tokens: how long the engines were at work since the step before was
        collected, and the answer tokens that came back in that time
    """

    sampled: list[ScoredGroup]
    used: list[ScoredGroup]
    stale_tokens: int = 0
    aborted_tokens: int = 0
    rollout_s: float = 0.0
    rollout_tokens: int = 0

    @property
    def num_tokens(self) -> int:
        """All answer tokens whose fate this step decides."""
        kept = sum(num_tokens(scored.group) for scored in self.sampled)
        return kept + self.stale_tokens + self.aborted_tokens


class PendingVerdicts:
    """Groups on their way to verdicts. One thread at a time."""

    def __init__(self, recipe: Recipe, verifier: VerifierPool):
        self._recipe = recipe
        self._verifier = verifier
        self._least = least_siblings(recipe)
        self._pending: list[tuple[Group, list[Future[Verdict]]]] = []

    @property
    def waiting(self) -> int:
        """Groups whose verdicts are not all in, or not asked for yet."""
        return len(self._pending)

    def add(self, group: Group) -> None:
        self._pending.append((group, submit(group, self._verifier)))

    def finished(self, wait_s: float) -> list[ScoredGroup]:
        """Groups whose verdicts are all in; waits up to `wait_s` for the one that came first."""
        if self._pending and wait_s:
            wait(self._pending[0][1], timeout=wait_s)
        overlong = self._recipe.overlong
        groups: list[ScoredGroup] = []
        waiting: list[tuple[Group, list[Future[Verdict]]]] = []
        for group, verdicts in self._pending:
            if not all(verdict.done() for verdict in verdicts):
                waiting.append((group, verdicts))
                continue
            scored = shape(
                self._settled(group, [verdict.result() for verdict in verdicts]),
                max_tokens=self._recipe.rollout.max_tokens,
                buffer=overlong.buffer,
                penalty=overlong.penalty,
                mask_truncated=overlong.mask_truncated,
            )
            groups.append(scored)
        self._pending = waiting
        return groups

    def _settled(self, group: Group, verdicts: Sequence[Verdict]) -> ScoredGroup:
        config = self._recipe.verifier
        return settle_stopped(
            ScoredGroup(group, tuple(verdicts)),
            on_failure=config.on_failure,
            lowest_reward=config.lowest_reward,
            least=self._least,
        )


def submit(group: Group, verifier: VerifierPool) -> list[Future[Verdict]]:
    """One verdict to come for each response. Waits where the pool has no room."""
    row = group.prompt.row
    return [
        verifier.submit(
            response.text,
            row.answer,
            problem=row.asked,
            truncated=response.finish_reason == "length",
            thinking=group.prompt.thinking,
        )
        for response in group.responses
    ]


def least_siblings(recipe: Recipe) -> int:
    """How many judged answers a group needs: two, to compare, or as many as the recipe's advantage
    takes (pass_at_k takes no fewer than k)."""
    advantage = ADVANTAGES.bind(recipe.advantage.name, recipe.advantage.options)
    for size in range(2, recipe.rollout.group_size):
        rewards_G = torch.zeros(size, dtype=torch.float64)
        rewards_G[0] = 1
        with suppress(ValueError):
            call(advantage, rewards_G, step=StepRewards([rewards_G], [torch.ones(size)]))
            return size
    return recipe.rollout.group_size


def num_tokens(group: Group) -> int:
    """Answer tokens of all siblings."""
    return sum(len(response.token_ids) for response in group.responses)


def mean_length(sampled: Sequence[ScoredGroup]) -> float:
    """Tokens of an answer."""
    answers = sum(len(scored.group.responses) for scored in sampled)
    return sum(num_tokens(scored.group) for scored in sampled) / answers


def num_replaced(recipe: Recipe, taken: int, fresh: Sequence[ScoredGroup]) -> int:
    """How many more prompts a step that has taken `taken` sends out for these judged groups."""
    if recipe.flat_groups.mode != "replace":
        return 0
    flat = sum(not is_informative(group) for group in fresh)
    return min(flat, recipe.rollout.prompts * recipe.flat_groups.max_rounds - taken)


def select_groups(
    recipe: Recipe,
    step: int,
    sampled: Sequence[ScoredGroup],
    screen: Screen,
    left_out: Collection[int] = (),
) -> tuple[list[ScoredGroup], list[ScoredGroup]]:
    """(sampled in prompt order, what the learner gets of it: nothing of the prompts whose serials
    are left out). Raises RunError where every group is flat and flat_groups.mode is replace."""
    mode, wanted = recipe.flat_groups.mode, recipe.rollout.prompts
    # In prompt order, whichever finished first: the same batch on every run.
    ordered = sorted(sampled, key=lambda scored: scored.group.prompt.serial)
    if mode == "keep":
        used = [group for group in ordered if any(group.learned_from)]
    else:
        used = [group for group in ordered if is_informative(group)]
    if mode == "replace" and not used:
        raise RunError(_all_flat(ordered))
    if mode == "replace" and len(used) < wanted:
        screen.warn(
            f"step {step}: only {len(used)} of {len(ordered)} groups had unequal rewards, "
            f"{wanted} were wanted, and flat_groups.max_rounds allows no more prompts"
        )
    return ordered, [group for group in used if group.group.prompt.serial not in left_out]


def _all_flat(sampled: list[ScoredGroup]) -> str:
    judged = [g.accuracies for g in sampled if g.accuracies]
    accuracies = Counter(sum(rewards) / len(rewards) for rewards in judged)
    parts = [f"{reward:g}: {n} groups" for reward, n in sorted(accuracies.items())]
    if len(judged) < len(sampled):
        parts.append(f"too few judged answers: {len(sampled) - len(judged)} groups")
    histogram = ", ".join(parts)
    reasons = Counter(short_reason(v.reason) for g in sampled for v in g.verdicts)
    verdicts = ", ".join(f"{reason}: {n}" for reason, n in sorted(reasons.items()))
    first = sampled[0].group
    return (
        f"all {len(sampled)} groups had equal rewards, nothing to learn from.\n"
        f"  mean reward of a group: {histogram}\n"
        f"  verdicts: {verdicts}\n"
        f"  for example: {first.responses[0].text[:200]!r} (wanted {first.prompt.row.answer!r})\n"
        f"{_what_helps(sampled)}"
    )


def _what_helps(sampled: Sequence[ScoredGroup]) -> str:
    verdicts = [verdict for group in sampled for verdict in group.verdicts]
    stopped = Counter(verdict.reason for verdict in verdicts if verdict.was_stopped)
    if 2 * stopped.total() <= len(verdicts):
        return "Use data of another difficulty, or set flat_groups.mode=drop"
    ((reason, _),) = stopped.most_common(1)
    return (
        f"The verifier came to no end with most answers, most often with {reason!r}: mend it, or "
        "raise verifier.timeout_s"
    )
