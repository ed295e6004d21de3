"""What a learner rank is told to build; the driver reads this without loading DeepSpeed."""

import math
from dataclasses import dataclass

from grpo.config.recipe import Choice, LearnerConfig, RegularizationConfig


@dataclass(frozen=True, slots=True)
class LearnerSpec:
    """`optimizer_steps` of the whole run shape the schedule; `threads` is for CPU ranks; gradient
    checkpointing is of every `checkpoint_every`-th layer."""

    model: str
    dtype: str
    temperature: float
    gradient_checkpointing: bool
    config: LearnerConfig
    surrogate: Choice
    optimizer_steps: int
    transport: str
    bucket_bytes: int
    regularization: RegularizationConfig
    correction: Choice | None = None
    plugins: tuple[str, ...] = ()
    threads: int | None = None
    checkpoint_every: int = 1


def learning_rate(config: LearnerConfig, step: int, total: int) -> float:
    """Linear warm-up, then constant, linear or cosine decay to 0 at `total`. Steps count from 0."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.lr_decay == "constant":
        return config.lr
    left = 1 - (step - config.warmup_steps) / max(1, total - config.warmup_steps)
    left = min(1.0, max(0.0, left))
    return config.lr * (left if config.lr_decay == "linear" else (1 - math.cos(math.pi * left)) / 2)
