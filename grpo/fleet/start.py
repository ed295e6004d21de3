"""Brings engines and learner up as a recipe describes them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grpo.config.recipe import Recipe
from grpo.fleet.cluster import Cluster, gather
from grpo.fleet.engines import RolloutPool
from grpo.fleet.learner import Learner
from grpo.fleet.placement import Placement
from grpo.learner.spec import LearnerSpec
from grpo.plugins import local_plugin
from grpo.rollout.engine import EngineSpec
from grpo.sync.transport import BACKENDS


def engine_spec(recipe: Recipe, model: str, placement: Placement) -> EngineSpec:
    """The engine starts without weights where it can: the first update brings all of them, as every
    later one does, and the check behind it sees at once which did not arrive."""
    share = placement.engine_share
    ours: dict[str, Any] = {}
    if placement.starts_empty:
        ours["load_format"] = "dummy"
    if share is not None:
        ours["gpu_memory_utilization"] = share
    return EngineSpec(
        model=model,
        dtype=recipe.model.dtype,
        seed=recipe.seed,
        max_model_len=placement.max_model_len,
        tensor_parallel=recipe.rollout.tensor_parallel,
        transfer_backend=BACKENDS[placement.transport],
        extra=ours | recipe.rollout.engine,
        trust_remote_code=recipe.model.trust_remote_code,
    )


def learner_spec(recipe: Recipe, model: str, placement: Placement) -> LearnerSpec:
    return LearnerSpec(
        model=model,
        recipe=recipe,
        transport=placement.transport,
        bucket_bytes=recipe.sync.bucket_mib << 20,
        threads=placement.learner_threads,
    )


def needed_everywhere(model: str, plugins: Sequence[str]) -> dict[Path, str]:
    """What each machine of a run must have on its disk, and what to do where it has not."""
    config = Path(model).resolve() / "config.json"
    needed = {
        config: "put the model on a file system that all machines share, or at the same path on "
        "each (HF_HOME for models of the Hugging Face hub)"
    }
    for name in plugins:
        if (local := local_plugin(name)) is not None:
            needed[local] = (
                f"it is the plugin {name}: start the run in a folder that all machines share, or "
                "install the plugin on each"
            )
    return needed


def start_workers(
    cluster: Cluster, recipe: Recipe, model: str, placement: Placement
) -> tuple[RolloutPool, Learner]:
    """Brings engines and learner ranks up, side by side where each has GPUs of its own.

    On shared GPUs one after the other: an engine measures what is free and takes its share, so it
    comes first, and sleeps when the learner arrives. It wakes in the first weight update.
    """
    rollout = recipe.rollout
    cluster.reserve(rollout.engines, rollout.tensor_parallel, recipe.learner.ranks)
    cluster.check_shared(needed_everywhere(model, recipe.plugin_names()))
    engines = RolloutPool(
        cluster.rollout_workers(
            engine_spec(recipe, model, placement), rollout.engines, placement.engine_threads
        ),
        rollout.timeout_s,
        "rollout.timeout_s",
    )
    if placement.colocated:
        engines.everywhere("start")
        engines.everywhere("sleep")
    spec = learner_spec(recipe, model, placement)
    learner = Learner(cluster.learner_ranks(spec, recipe.learner.ranks), recipe.learner.timeout_s)
    starting: list[Any] = [worker.call("num_weight_bytes") for worker in learner.workers]
    if placement.colocated:
        gather(starting, recipe.learner.timeout_s, "learner.timeout_s")
    else:
        starting += [worker.call("start") for worker in engines.workers]
        gather(starting, rollout.timeout_s, "rollout.timeout_s")
    return engines, learner
