"""Brings engines and learner up as a recipe describes them."""

from typing import Any

from grpo.config.recipe import Recipe
from grpo.fleet.cluster import Cluster, gather
from grpo.fleet.engines import RolloutPool
from grpo.fleet.learner import LearnerGroup
from grpo.fleet.placement import engine_threads, learner_threads, model_length, transport_of
from grpo.learner.spec import LearnerSpec
from grpo.rollout.engine import EngineSpec, on_gpu
from grpo.sync.transport import BACKENDS


def engine_spec(recipe: Recipe, model: str, transport: str) -> EngineSpec:
    return EngineSpec(
        model=model,
        dtype=recipe.model.dtype,
        seed=recipe.seed,
        max_model_len=model_length(recipe, model),
        tensor_parallel=recipe.rollout.tensor_parallel,
        transfer_backend=BACKENDS[transport],
        extra=recipe.rollout.engine,
    )


def learner_spec(recipe: Recipe, model: str, transport: str) -> LearnerSpec:
    schedule = recipe.schedule
    correction = recipe.correction_name()
    return LearnerSpec(
        model=model,
        dtype=recipe.model.dtype,
        temperature=recipe.rollout.temperature,
        gradient_checkpointing=recipe.model.gradient_checkpointing,
        checkpoint_every=recipe.model.checkpoint_every,
        config=recipe.learner,
        surrogate=recipe.surrogate,
        optimizer_steps=schedule.steps * schedule.passes * schedule.minibatches,
        transport=transport,
        bucket_bytes=recipe.sync.bucket_mib << 20,
        plugins=tuple(recipe.plugins),
        threads=None if on_gpu() else learner_threads(recipe),
        correction=None
        if correction == "none"
        else recipe.correction.model_copy(update={"name": correction}),
        regularization=recipe.regularization,
    )


def start_workers(cluster: Cluster, recipe: Recipe, model: str) -> tuple[RolloutPool, LearnerGroup]:
    """Brings engines and learner ranks up side by side."""
    transport = transport_of(recipe)
    rollout = recipe.rollout
    engines = cluster.rollout_workers(
        engine_spec(recipe, model, transport), rollout.engines, engine_threads(recipe)
    )
    ranks = cluster.learner_ranks(learner_spec(recipe, model, transport), recipe.learner.ranks)
    starting: list[Any] = [worker.call("start") for worker in engines]
    starting += [worker.call("num_weight_bytes") for worker in ranks]
    gather(starting, rollout.timeout_s)
    return (
        RolloutPool(engines, rollout.timeout_s),
        LearnerGroup(ranks, recipe.learner.timeout_s),
    )
