"""The second half of a step: scored groups become optimizer steps."""

import math
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from grpo.algo import ADVANTAGES, AGGREGATORS
from grpo.algo.difficulty import DifficultyAnchor
from grpo.algo.shadow import shadow_metrics
from grpo.batch.build import (
    answers_of,
    counted_advantages,
    make_batch,
    rollout_lengths,
    split_minibatches,
    with_advantages,
    with_factors,
)
from grpo.batch.cut import cut, imbalance
from grpo.config.recipe import DifficultyConfig, Recipe
from grpo.errors import RunError
from grpo.fleet.learner import Learner
from grpo.rollout.engine import on_gpu
from grpo.store.checkpoint import SKIPPED
from grpo.train.groups import Collected
from grpo.types import Batch, ScoredGroup


@dataclass(frozen=True, slots=True)
class Suspect:
    """An answer without which an optimizer step would probably have been taken: what it adds to
    the loss is not finite, or is the largest of all."""

    group: ScoredGroup
    index: int
    part_of_loss: float


@dataclass(frozen=True, slots=True)
class Learned:
    """A step that was learned from. In `collected` the groups that the learner got have their
    advantages, wherever they stand.

    optimizer_steps: how many were taken
    skipped_in_a_row: how many were not since the last that was, as their gradients are not finite
    """

    collected: Collected
    optimizer_steps: int
    metrics: dict[str, float]
    skipped_in_a_row: int = 0
    suspects: tuple[Suspect, ...] = ()


class PolicyUpdate:
    """Turns scored groups into optimizer steps; knows the estimators, not the model."""

    def __init__(self, recipe: Recipe, learner: Learner):
        self._recipe = recipe
        self._learner = learner
        self._advantage = ADVANTAGES.bind(recipe.advantage.name, recipe.advantage.options)
        self._aggregate = AGGREGATORS.bind(recipe.aggregate.name, recipe.aggregate.options)
        rule = recipe.regularization.aggregate
        self._regularize = AGGREGATORS.bind(rule.name, rule.options)
        self._anchor = _make_anchor(recipe.difficulty)
        self.skipped_in_a_row = 0
        # The learner has begun a step that does not count as finished yet: the caller ends it.
        self.is_under_way = False

    def learn(self, collected: Collected, number: int) -> Learned:
        """The anchor sees every sampled group, flat ones included; then come the advantages, and
        every optimizer step of the batch, the first being number `number` of the run. No step is
        taken where no group is used.

        Raises RunError for rewards that the advantage is not defined for, or that lie outside of
        what counts as accuracy 0 to 1.
        """
        metrics = self._observe(collected.sampled)
        used = self._advantages(collected.used)
        before, suspects = number, []
        if used:
            taken, learned, suspects = self._steps(used, number)
            number += taken
            metrics |= learned
        weighed = {group.group.prompt.serial: group for group in used}
        sampled = [weighed.get(g.group.prompt.serial, g) for g in collected.sampled]
        collected = replace(collected, sampled=sampled, used=used)
        return Learned(collected, number - before, metrics, self.skipped_in_a_row, tuple(suspects))

    def _observe(self, sampled: list[ScoredGroup]) -> dict[str, float]:
        """Tells the difficulty anchor of a step's groups; its metrics."""
        if self._anchor is None:
            return {}
        rewards = [reward for group in sampled for reward in group.accuracies]
        if not rewards:  # no verifier came to an end
            return {}
        accuracy = self._accuracy(sum(rewards) / len(rewards))
        self._anchor.observe(accuracy)
        return {"difficulty/anchor": self._anchor.value, "difficulty/accuracy": accuracy}

    def _advantages(self, groups: list[ScoredGroup]) -> list[ScoredGroup]:
        """The groups with their advantages, weighed by difficulty where the recipe says so."""
        try:
            groups = with_advantages(groups, self._advantage)
        except ValueError as error:  # rewards that this advantage is not defined for
            raise RunError(f"advantage {self._recipe.advantage.name!r}: {error}") from error
        if self._anchor is None:
            return groups
        return [with_factors(group, self._factors(group)) for group in groups]

    def _steps(
        self, groups: list[ScoredGroup], number: int
    ) -> tuple[int, dict[str, float], list[Suspect]]:
        """Takes the optimizer steps; how many, their mean metrics, and an answer for each that was
        skipped."""
        parts = split_minibatches(groups, self._recipe.schedule.minibatches)
        batches = self._batches(parts, rollout_lengths(groups))
        ranks = len(self._learner.workers)
        budget = self._recipe.learner.micro_batch_tokens
        asked = self._recipe.learner.shared_prefix
        shared = not on_gpu() if asked == "auto" else asked
        cuts = [cut(batch, ranks, budget, shared_prefix=shared) for batch in batches]
        self._learner.load(cuts)
        passes = self._recipe.schedule.passes
        if passes * len(batches) > 1:
            # From the second step on the weights have moved: ratios are against these.
            self._learner.remember_logprobs()
        self.is_under_way = True
        taken: list[dict[str, float]] = []
        skipped: list[dict[str, float]] = []
        suspects: list[Suspect] = []
        for _ in range(passes):
            for index in range(len(batches)):
                metrics = self._learner.step(index, number + len(taken))
                if metrics["learn/skipped"]:
                    skipped.append(metrics)
                    suspects.append(self._suspect(parts[index], index))
                    self.skipped_in_a_row += 1
                else:
                    taken.append(metrics)
                    self.skipped_in_a_row = 0
        shown = taken or skipped
        means = {key: sum(t[key] for t in shown) / len(shown) for key in shown[0]}
        means["learn/skipped"] = float(len(skipped))
        means["learn/imbalance"] = sum(map(imbalance, cuts)) / len(cuts)
        return len(taken), means | self._shadow(groups, batches), suspects

    def _suspect(self, groups: list[ScoredGroup], index: int) -> Suspect:
        """The answer that a skipped step is put down to: the first of the batch whose part of the
        loss is not finite, else the one with the largest."""
        parts = self._learner.parts_of_loss(index)
        row = max(sorted(parts), key=lambda row: _size(parts[row]))
        group, sibling = answers_of(groups)[row]
        return Suspect(group, sibling, parts[row])

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to weigh as this one would have."""
        anchor = {} if self._anchor is None else {"anchor": self._anchor.state_dict()}
        return anchor | {SKIPPED: self.skipped_in_a_row}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.skipped_in_a_row = state.get(SKIPPED, 0)
        if self._anchor is not None and "anchor" in state:
            self._anchor.load_state_dict(state["anchor"])

    def _batches(self, parts: list[list[ScoredGroup]], lengths_N: Tensor) -> list[Batch]:
        """`lengths_N`: of the whole rollout step."""
        return [
            make_batch(
                part,
                self._aggregate,
                max_tokens=self._recipe.rollout.max_tokens,
                regularize=self._regularize,
                rollout_lengths_N=lengths_N,
            )
            for part in parts
        ]

    def _shadow(self, groups: list[ScoredGroup], batches: list[Batch]) -> dict[str, float]:
        lengths_N = rollout_lengths(groups)
        steps = [
            shadow_metrics(
                batch,
                self._recipe.aggregate.name,
                max_tokens=self._recipe.rollout.max_tokens,
                rollout_lengths_N=lengths_N,
            )
            for batch in batches
        ]
        return {key: sum(step[key] for step in steps) / len(steps) for key in steps[0]}

    def _factors(self, group: ScoredGroup) -> Tensor:
        assert self._anchor is not None
        rewards = group.accuracies
        accuracy = self._accuracy(sum(rewards) / len(rewards))
        return self._anchor.factors(counted_advantages(group), accuracy)

    def _accuracy(self, reward: float) -> float:
        config = self._recipe.difficulty
        assert config is not None
        accuracy = (reward - config.reward_low) / (config.reward_high - config.reward_low)
        if not -1e-9 <= accuracy <= 1 + 1e-9:
            raise RunError(
                f"a mean reward of {reward:g} is no accuracy: difficulty.reward_low is "
                f"{config.reward_low:g} and reward_high {config.reward_high:g}; set them to the "
                "least and the largest reward of the verifier"
            )
        return min(1.0, max(0.0, accuracy))


def _size(part_of_loss: float) -> float:
    return abs(part_of_loss) if math.isfinite(part_of_loss) else math.inf


def _make_anchor(config: DifficultyConfig | None) -> DifficultyAnchor | None:
    if config is None:
        return None
    return DifficultyAnchor(**config.anchor_options())
