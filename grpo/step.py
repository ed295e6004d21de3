"""The parts of one training step: collect scored groups, turn them into optimizer steps."""

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass

from grpo.algo import ADVANTAGES, AGGREGATORS
from grpo.algo.shaping import split_flat
from grpo.batch import cut, make_batch, split_minibatches, with_advantages
from grpo.config import Recipe
from grpo.console import Screen
from grpo.data import PromptStream
from grpo.errors import Interrupted, RunError
from grpo.learner.group import LearnerGroup
from grpo.rollout.pool import RolloutPool
from grpo.rollout.sampling import Sampling, group_seed
from grpo.types import Group, Prompt, ScoredGroup, Verdict
from grpo.verify.pool import VerifierPool

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Collected:
    """`sampled` is everything in prompt order; `used` is what the learner gets of it."""

    sampled: list[ScoredGroup]
    used: list[ScoredGroup]
    rounds: int


class Collector:
    """Samples prompts, judges the answers while others are still being sampled, and sorts out
    flat groups as the recipe says."""

    def __init__(
        self, recipe: Recipe, stream: PromptStream, rollouts: RolloutPool, verifier: VerifierPool
    ):
        self._recipe = recipe
        self._stream = stream
        self._rollouts = rollouts
        self._verifier = verifier
        self._sampling = Sampling(
            recipe.rollout.max_tokens,
            recipe.rollout.temperature,
            recipe.rollout.top_p,
            recipe.rollout.top_k,
        )

    def collect(self, step: int, screen: Screen, stop: Callable[[], bool]) -> Collected:
        """The groups of one step. Raises Interrupted where `stop` says so, and RunError where
        every prompt of every round came back flat."""
        flat_groups = self._recipe.flat_groups
        wanted = self._recipe.rollout.prompts
        sampled: list[ScoredGroup] = []
        used: list[ScoredGroup] = []
        rounds = 0
        while len(used) < wanted and rounds < flat_groups.max_rounds:
            rounds += 1
            prompts = self._stream.take(wanted - len(used))
            scored = self._sample(step, prompts, screen, stop)
            sampled += scored
            if flat_groups.mode == "keep":
                return Collected(sampled, scored, rounds)
            used += split_flat(scored)[0]
            if flat_groups.mode == "drop":
                break
        if not used and flat_groups.mode == "replace":
            raise RunError(_all_flat(sampled, rounds))
        if len(used) < wanted and flat_groups.mode == "replace":
            screen.warn(
                f"step {step}: only {len(used)} of {wanted} groups had unequal rewards after "
                f"{rounds} rounds (flat_groups.max_rounds); going on with those"
            )
        return Collected(sampled, used, rounds)

    def _sample(
        self, step: int, prompts: list[Prompt], screen: Screen, stop: Callable[[], bool]
    ) -> list[ScoredGroup]:
        pending: list[tuple[Group, list[Future[Verdict]]]] = []
        with screen.progress(f"step {step}: rollouts", len(prompts)) as bar:
            for group in self._groups(step, prompts, stop):
                answer = group.prompt.answer
                futures = [self._verifier.submit(r.text, answer) for r in group.responses]
                pending.append((group, futures))
                bar.advance()
        if stop():
            raise Interrupted
        # In prompt order, whichever finished first: the same batch on every run.
        pending.sort(key=lambda item: item[0].prompt.serial)
        return [
            ScoredGroup(group, tuple(f.result() for f in futures)) for group, futures in pending
        ]

    def _groups(
        self, step: int, prompts: list[Prompt], stop: Callable[[], bool]
    ) -> Iterator[Group]:
        return self._rollouts.sample(
            prompts,
            self._recipe.rollout.group_size,
            self._sampling,
            lambda prompt: group_seed(self._recipe.seed, step, prompt.serial),
            stop,
        )


def _all_flat(sampled: list[ScoredGroup], rounds: int) -> str:
    right = sum(1 for group in sampled if group.rewards[0] > 0)
    reasons: dict[str, int] = {}
    for group in sampled:
        for verdict in group.verdicts:
            reasons[verdict.reason] = reasons.get(verdict.reason, 0) + 1
    counted = ", ".join(f"{reason}: {count}" for reason, count in sorted(reasons.items()))
    return (
        f"all {len(sampled)} groups of {rounds} rounds had equal rewards ({right} all right, "
        f"{len(sampled) - right} all wrong; verdicts: {counted}): nothing to learn from. Use data "
        "of another difficulty, look at the answers in rollouts/, or set flat_groups.mode=drop"
    )


class Updater:
    """Turns scored groups into optimizer steps; knows the estimators, not the model."""

    def __init__(self, recipe: Recipe, learner: LearnerGroup):
        self._recipe = recipe
        self._learner = learner
        self._advantage = ADVANTAGES.bind(recipe.advantage.name, recipe.advantage.options)
        self._aggregate = AGGREGATORS.bind(recipe.aggregate.name, recipe.aggregate.options)

    def advantages(self, groups: list[ScoredGroup]) -> list[ScoredGroup]:
        return with_advantages(groups, self._advantage)

    def update(self, groups: list[ScoredGroup], number: int) -> tuple[int, dict[str, float]]:
        """Takes every optimizer step of the batch, the first being number `number` of the run.
        Returns how many it took, and their mean metrics."""
        parts = split_minibatches(groups, self._recipe.schedule.minibatches)
        batches = [
            make_batch(part, self._aggregate, max_tokens=self._recipe.rollout.max_tokens)
            for part in parts
        ]
        ranks = len(self._learner.workers)
        budget = self._recipe.learner.micro_batch_tokens
        self._learner.load([cut(batch, ranks, budget) for batch in batches])
        passes = self._recipe.schedule.passes
        if passes * len(batches) > 1:
            # From the second step on the weights have moved: ratios are against these.
            self._learner.remember_logprobs()
        taken: list[dict[str, float]] = []
        for _ in range(passes):
            for index in range(len(batches)):
                taken.append(self._learner.step(index, number + len(taken)))
        means = {key: sum(t[key] for t in taken) / len(taken) for key in taken[0]}
        # The ratio of sampler and learner is only about the weights that sampled.
        means["mismatch/mean_abs"] = taken[0]["mismatch/mean_abs"]
        return len(taken), means
