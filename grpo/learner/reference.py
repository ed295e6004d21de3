"""The model that the run began with, frozen, for KL."""

from typing import Any

import deepspeed
import torch

from grpo.learner.policy import Loaded, load_policy, score
from grpo.learner.spec import LearnerSpec
from grpo.sync.buckets import torch_dtype


class Reference:
    """A second ZeRO-3 engine without optimizer. Collective like the learner: every rank scores as
    many micro-batches.

    To be built while the learner's `HfDeepSpeedConfig` is alive, which partitions these weights
    too.
    """

    def __init__(self, spec: LearnerSpec, config: dict[str, Any]):
        recipe = spec.recipe
        dtype, temperature = torch_dtype(recipe.model.dtype), recipe.rollout.temperature
        trust = recipe.model.trust_remote_code
        policy = load_policy(spec.model, dtype, temperature, False, trust=trust)
        engine, *_ = deepspeed.initialize(model=policy.eval(), config=config)
        self._engine: Any = engine

    @torch.no_grad()
    def logprobs(self, loaded: Loaded) -> torch.Tensor:
        """[T] of the response tokens."""
        return score(self._engine, loaded)


class BaseModel:
    """The same where adapters train: the learner's own frozen weights with the adapters' part of
    each layer times 0, so that there is no second model.

    They are not disabled: ZeRO-3 fetches weights ahead in the order of the pass before, which is
    to stay the same.
    """

    def __init__(self, engine: Any):
        self._engine = engine

    @torch.no_grad()
    def logprobs(self, loaded: Loaded) -> torch.Tensor:
        """[T] of the response tokens."""
        from peft.helpers import rescale_adapter_scale

        with rescale_adapter_scale(self._engine.module, 0):
            return score(self._engine, loaded)
