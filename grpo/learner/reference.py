"""The model that the run began with, frozen, for KL: a second ZeRO-3 engine without optimizer."""

from typing import Any

import deepspeed
import torch

from grpo.learner.policy import Loaded, load_policy, score
from grpo.learner.spec import LearnerSpec
from grpo.sync.buckets import torch_dtype


class Reference:
    """Collective like the learner: every rank scores as many micro-batches.

    To be built while the learner's `HfDeepSpeedConfig` is alive, which partitions these weights
    too.
    """

    def __init__(self, spec: LearnerSpec, config: dict[str, Any]):
        recipe = spec.recipe
        dtype, temperature = torch_dtype(recipe.model.dtype), recipe.rollout.temperature
        policy = load_policy(spec.model, dtype, temperature, False)
        engine, *_ = deepspeed.initialize(model=policy.eval(), config=config)
        self._engine: Any = engine

    @torch.no_grad()
    def logprobs(self, loaded: Loaded) -> torch.Tensor:
        """[T] of the response tokens."""
        return score(self._engine, loaded)
