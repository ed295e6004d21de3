"""Brings engines and learner up as a recipe describes them."""

from typing import Any

from grpo.config.recipe import Recipe
from grpo.fleet.cluster import Cluster, gather
from grpo.fleet.engines import RolloutPool
from grpo.fleet.learner import Learner
from grpo.fleet.placement import Placement
from grpo.learner.spec import LearnerSpec
from grpo.rollout.engine import EngineSpec
from grpo.sync.transport import BACKENDS


def engine_spec(recipe: Recipe, model: str, placement: Placement) -> EngineSpec:
    return EngineSpec(
        model=model,
        dtype=recipe.model.dtype,
        seed=recipe.seed,
        max_model_len=placement.max_model_len,
        tensor_parallel=recipe.rollout.tensor_parallel,
        transfer_backend=BACKENDS[placement.transport],
        extra=recipe.rollout.engine,
    )


def learner_spec(recipe: Recipe, model: str, placement: Placement) -> LearnerSpec:
    return LearnerSpec(
        model=model,
        recipe=recipe,
        transport=placement.transport,
        bucket_bytes=recipe.sync.bucket_mib << 20,
        threads=placement.learner_threads,
    )


def start_workers(
    cluster: Cluster, recipe: Recipe, model: str, placement: Placement
) -> tuple[RolloutPool, Learner]:
    """Brings engines and learner ranks up side by side."""
    rollout = recipe.rollout
    engines = cluster.rollout_workers(
        engine_spec(recipe, model, placement), rollout.engines, placement.engine_threads
    )
    ranks = cluster.learner_ranks(learner_spec(recipe, model, placement), recipe.learner.ranks)
    starting: list[Any] = [worker.call("start") for worker in engines]
    starting += [worker.call("num_weight_bytes") for worker in ranks]
    gather(starting, rollout.timeout_s, "rollout.timeout_s")
    return (
        RolloutPool(engines, rollout.timeout_s, "rollout.timeout_s"),
        Learner(ranks, recipe.learner.timeout_s),
    )
