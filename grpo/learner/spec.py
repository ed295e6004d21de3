"""What a learner rank builds; the driver reads this without loading DeepSpeed."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from grpo.config.recipe import LearnerConfig, Recipe


@dataclass(frozen=True, slots=True)
class LearnerSpec:
    """A run's recipe, and what was decided about its learner when the run was started.

    model: the folder to load
    transport: a key of `grpo.sync.transport.BACKENDS`
    bucket_bytes: of weights that travel at a time
    threads: of each rank on CPU; None leaves them to torch
    """

    model: str
    recipe: Recipe
    transport: str
    bucket_bytes: int
    threads: int | None

    @property
    def optimizer_steps(self) -> int:
        """Of the whole run; they shape the decay of the learning rate."""
        schedule = self.recipe.schedule
        return schedule.steps * schedule.passes * schedule.minibatches


def set_options(param_groups: Iterable[dict[str, Any]], config: LearnerConfig) -> None:
    """Gives an optimizer the recipe's options, the learning rate apart."""
    options: dict[str, Any] = {"weight_decay": config.weight_decay}
    if config.optimizer == "adamw":
        options |= {"betas": config.betas, "eps": config.eps}
    for group in param_groups:
        group.update(options)


def learning_rate(config: LearnerConfig, step: int, total: int) -> float:
    """Linear warm-up, then constant, linear or cosine decay to 0 at `total`. Steps count from 0."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.lr_decay == "constant":
        return config.lr
    left = 1 - (step - config.warmup_steps) / max(1, total - config.warmup_steps)
    left = min(1.0, max(0.0, left))
    return config.lr * (left if config.lr_decay == "linear" else (1 - math.cos(math.pi * left)) / 2)
