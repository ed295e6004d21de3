"""The first half of a step: prompts become scored groups, flat ones are replaced as found."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Any

from grpo.algo.shaping import is_informative, shape
from grpo.config.recipe import Recipe
from grpo.console import ProgressBar, Screen
from grpo.data import PromptStream
from grpo.errors import Interrupted, RunError
from grpo.fleet.engines import POLL_S, RolloutPool
from grpo.rollout.sampling import Sampling, group_seed
from grpo.train.metrics import short_reason
from grpo.types import Group, ScoredGroup, Verdict
from grpo.verify.pool import VerifierPool

VERDICT_POLL_S = 0.05  # a group that may have to be replaced waits no longer for its verdicts


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


class Collector:
    """Samples prompts, judges the answers while others are still being sampled, and sorts out
    flat groups as the recipe says. Exactly on-policy: nothing is under way between two steps."""

    def __init__(
        self, recipe: Recipe, stream: PromptStream, rollouts: RolloutPool, verifier: VerifierPool
    ):
        self._recipe = recipe
        self._stream = stream
        self._rollouts = rollouts
        self._judging = Judging(recipe, verifier)

    def collect(self, step: int, screen: Screen, stop: Callable[[], bool]) -> Collected:
        """The groups of one step. Raises Interrupted where `stop` says so, and RunError where
        every prompt came back flat and flat_groups.mode is replace."""
        began = time.monotonic()
        with screen.progress(f"step {step}: rollouts", self._recipe.rollout.prompts) as bar:
            sampled = self._scored(step, bar, stop)
        sampled, used = sort_out(self._recipe, step, sampled, screen)
        tokens = sum(num_tokens(scored.group) for scored in sampled)
        return Collected(sampled, used, rollout_s=time.monotonic() - began, rollout_tokens=tokens)

    def finish(self, step: int) -> None:
        """The engines have the weights of this step."""

    def cursor(self) -> dict[str, Any]:
        """The data's place after the last finished step, to be resumed from."""
        return self._stream.state_dict()

    def close(self) -> None:
        """Leaves nothing under way."""

    def _scored(self, step: int, bar: ProgressBar, stop: Callable[[], bool]) -> list[ScoredGroup]:
        """All groups that were sampled. With `replace`, each flat group sends one more prompt out,
        so that as many prompts are taken in all as it takes to find the wanted number, whatever
        the order in which groups finish."""
        taken = self._recipe.rollout.prompts
        rollouts = self._rollouts.stream(
            self._recipe.rollout.group_size,
            sampling_of(self._recipe),
            lambda prompt: group_seed(self._recipe.seed, step, prompt.serial),
        )
        rollouts.submit(self._stream.take(taken))
        judged: list[ScoredGroup] = []
        while rollouts.running or self._judging.waiting:
            if stop():
                rollouts.abort()
                raise Interrupted
            for group in rollouts.finished(VERDICT_POLL_S if self._judging.waiting else POLL_S):
                self._judging.add(group)
                bar.advance()
            fresh = self._judging.judged(0 if rollouts.running else VERDICT_POLL_S)
            judged += fresh
            if more := num_replaced(self._recipe, taken, fresh):
                taken += more
                bar.extend(more)
                rollouts.submit(self._stream.take(more))
        return judged


class Judging:
    """Groups on their way to verdicts. One thread at a time."""

    def __init__(self, recipe: Recipe, verifier: VerifierPool):
        self._recipe = recipe
        self._verifier = verifier
        self._pending: list[tuple[Group, list[Future[Verdict]]]] = []

    @property
    def waiting(self) -> int:
        """Groups whose verdicts are not all in, or not asked for yet."""
        return len(self._pending)

    def add(self, group: Group) -> None:
        answers = (response.text for response in group.responses)
        verdicts = [self._verifier.submit(text, group.prompt.row.answer) for text in answers]
        self._pending.append((group, verdicts))

    def judged(self, wait_s: float) -> list[ScoredGroup]:
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
                ScoredGroup(group, tuple(verdict.result() for verdict in verdicts)),
                max_tokens=self._recipe.rollout.max_tokens,
                buffer=overlong.buffer,
                penalty=overlong.penalty,
                mask_truncated=overlong.mask_truncated,
            )
            groups.append(scored)
        self._pending = waiting
        return groups


def sampling_of(recipe: Recipe) -> Sampling:
    rollout = recipe.rollout
    return Sampling(rollout.max_tokens, rollout.temperature, rollout.top_p, rollout.top_k)


def num_tokens(group: Group) -> int:
    """Answer tokens of all siblings."""
    return sum(len(response.token_ids) for response in group.responses)


def num_replaced(recipe: Recipe, taken: int, fresh: Sequence[ScoredGroup]) -> int:
    """How many more prompts a step that has taken `taken` sends out for these judged groups."""
    if recipe.flat_groups.mode != "replace":
        return 0
    flat = sum(not is_informative(group) for group in fresh)
    return min(flat, recipe.rollout.prompts * recipe.flat_groups.max_rounds - taken)


def sort_out(
    recipe: Recipe, step: int, sampled: Sequence[ScoredGroup], screen: Screen
) -> tuple[list[ScoredGroup], list[ScoredGroup]]:
    """(sampled in prompt order, what the learner gets of it). Raises RunError where every group is
    flat and flat_groups.mode is replace."""
    mode, wanted = recipe.flat_groups.mode, recipe.rollout.prompts
    # In prompt order, whichever finished first: the same batch on every run.
    ordered = sorted(sampled, key=lambda scored: scored.group.prompt.serial)
    if mode == "keep":
        return ordered, [g for g in ordered if not (g.masked and all(g.masked))]
    used = [group for group in ordered if is_informative(group)]
    if mode == "replace" and not used:
        raise RunError(_all_flat(ordered))
    if mode == "replace" and len(used) < wanted:
        screen.warn(
            f"step {step}: only {len(used)} of {len(ordered)} groups had unequal rewards, "
            f"{wanted} were wanted, and flat_groups.max_rounds allows no more prompts"
        )
    return ordered, used


def _all_flat(sampled: list[ScoredGroup]) -> str:
    accuracies = Counter(sum(g.accuracies) / len(g.accuracies) for g in sampled)
    histogram = ", ".join(f"{reward:g}: {n} groups" for reward, n in sorted(accuracies.items()))
    reasons = Counter(short_reason(v.reason) for g in sampled for v in g.verdicts)
    verdicts = ", ".join(f"{reason}: {n}" for reason, n in sorted(reasons.items()))
    first = sampled[0].group
    return (
        f"all {len(sampled)} groups had equal rewards, nothing to learn from.\n"
        f"  mean reward of a group: {histogram}\n"
        f"  verdicts: {verdicts}\n"
        f"  for example: {first.responses[0].text[:200]!r} (wanted {first.prompt.row.answer!r})\n"
        "Use data of another difficulty, or set flat_groups.mode=drop"
    )
