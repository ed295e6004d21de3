"""Where engines and learner ranks run, how weights travel between them, and how many threads each
uses."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from grpo.config.recipe import Recipe
from grpo.errors import UserError
from grpo.fleet.bundles import in_words, most_engines
from grpo.fleet.environment import ray_address
from grpo.learner.flops import ModelShape
from grpo.learner.memory import GIB, setting_of, share_beside
from grpo.learner.model_files import buffers_to_load, context_length, read_config
from grpo.rollout.engine import on_gpu
from grpo.sync.transport import pick_transport


@dataclass(frozen=True, slots=True)
class Placement:
    """Decided once per start, for the driver, the engines and the learner alike.

    colocated: learner ranks and engines share their GPUs and take turns
    transport: how weights travel, a key of `grpo.sync.transport.BACKENDS`
    engine_threads, learner_threads: per engine and per rank on CPU; None leaves the choice to vLLM
        and torch
    max_model_len: tokens of prompt and answer together, at most
    engine_share: of a GPU's memory, for the engine that shares it with a rank; None: vLLM decides
    starts_empty: engines need no weights before the first update, which brings all they serve
    """

    colocated: bool
    transport: str
    engine_threads: int | None
    learner_threads: int | None
    max_model_len: int
    engine_share: float | None = None
    starts_empty: bool = True


def place(recipe: Recipe, model: str) -> Placement:
    """Where everything runs, for the model in the folder `model`. Raises UserError for lengths
    beyond the model's context, for a layout that cannot be placed, and for heads that cannot be
    divided among the GPUs of an engine."""
    check_layout(recipe)
    check_heads(recipe, model)
    return Placement(
        colocated=is_colocated(recipe),
        transport=transport_of(recipe),
        engine_threads=engine_threads(recipe),
        learner_threads=None if on_gpu() else learner_threads(recipe),
        max_model_len=model_length(recipe, model),
        engine_share=_engine_share(recipe, model),
        starts_empty=_starts_empty(recipe, model),
    )


def check_heads(recipe: Recipe, model: str) -> None:
    """Raises UserError where the attention heads cannot be divided among an engine's GPUs."""
    if recipe.rollout.tensor_parallel == 1:
        return
    if (fault := heads_fault(recipe, _shape(recipe, model))) is not None:
        raise UserError(fault)


# With these of vLLM's arguments there is more to load than an update brings: a model that drafts,
# or files that a loader of its own reads.
_LOADS_MORE = ("speculative_config", "model_loader_extra_config")


def _starts_empty(recipe: Recipe, model: str) -> bool:
    if any(key in recipe.rollout.engine for key in _LOADS_MORE):
        return False
    return not buffers_to_load(model, recipe.model.trust_remote_code)


def _engine_share(recipe: Recipe, model: str) -> float | None:
    if not (on_gpu() and is_colocated(recipe)):
        return None
    return share_for(
        recipe, _shape(recipe, model), torch.cuda.get_device_properties(0).total_memory
    )


def _shape(recipe: Recipe, model: str) -> ModelShape:
    return ModelShape.of(read_config(model, recipe.model.trust_remote_code))


def share_for(recipe: Recipe, shape: ModelShape, gpu_bytes: float) -> float:
    """What an engine may take of a GPU that it shares. Raises UserError where its weights alone
    would not fit beside those of the learner."""
    setting = setting_of(recipe, shape, "cuda")
    share, weights = share_beside(setting, gpu_bytes), setting.itemsize * shape.parameters
    if share * gpu_bytes <= weights:
        raise UserError(
            f"a GPU of {gpu_bytes / GIB:.0f} GiB is too small to be shared: beside the learner "
            f"{share * gpu_bytes / GIB:.1f} GiB are left for an engine, whose weights are "
            f"{weights / GIB:.1f} GiB. Use placement: disaggregated on more GPUs, more ranks and "
            "engines, or a smaller model; `grpo plan` says what would fit"
        )
    return share


def is_colocated(recipe: Recipe) -> bool:
    """Whether learner ranks and engines share GPUs: as the recipe says, or if there are too few."""
    return shares(recipe, gpus_of_run())


def gpus_here() -> int | None:
    """This machine's GPUs; None on CPU."""
    return torch.cuda.device_count() if on_gpu() else None


def machines() -> tuple[int, ...]:
    """GPUs of each machine that a run may use, this one's first: those of the Ray cluster where
    RAY_ADDRESS names one, which is asked. Raises UserError where it does not answer."""
    address = ray_address()
    if address is None:
        return (gpus_here() or 0,)
    from grpo.fleet.nodes import gpus_at  # Ray, which a check of one machine does without

    return gpus_at(address)


def gpus_of_run() -> tuple[int, ...] | None:
    """GPUs of each machine that a run may use; None on CPU."""
    return machines() if gpus_here() is not None else None


def check_layout(recipe: Recipe) -> None:
    """Raises UserError for a layout that cannot be placed on the GPUs that a run may use, on this
    machine or in the Ray cluster that it joins."""
    found = machines()
    fault = layout_fault(recipe, gpus_of_run()) or machines_fault(recipe, found, gpus_here())
    if fault is not None:
        raise UserError(fault)


def machines_fault(recipe: Recipe, found: Sequence[int], here: int | None) -> str | None:
    """What is wrong with a run over these machines, given as their GPUs; `here`: those of the
    driver's own, None where it runs on CPU."""
    if (fault := cpu_fault(found, here)) is not None:
        return fault
    if len(found) > 1 and recipe.sync.transport == "shm":
        return (
            f"sync.transport is shm, which stays within one machine, and the Ray cluster has "
            f"{len(found)}: set it to auto, or unset RAY_ADDRESS to stay on this machine"
        )
    return None


def gpus_fault() -> str | None:
    """What is wrong where one of this machine and the Ray cluster has GPUs, and the other none."""
    return cpu_fault(machines(), gpus_here()) or no_gpus_fault(gpus_of_run())


def cpu_fault(found: Sequence[int], here: int | None) -> str | None:
    """What is wrong where the driver runs on CPU, see `machines_fault`."""
    if here is not None or not any(found):
        return None
    return (
        f"the Ray cluster has GPUs ({in_words(found)}) and this machine has none, so that "
        "everything would run on the CPU: start the run on a machine with a GPU. If CPU is "
        "meant, start Ray with --num-gpus 0"
    )


def no_gpus_fault(gpus: Sequence[int] | None) -> str | None:
    """What is wrong where the driver sees GPUs, and Ray counts so many; None on CPU."""
    if gpus is None or any(gpus):
        return None
    return (
        "this machine has GPUs, and the Ray cluster counts none: start Ray anew without "
        "--num-gpus 0, where CUDA_VISIBLE_DEVICES is not empty. If CPU is meant, set "
        "CUDA_VISIBLE_DEVICES to nothing for this command as well"
    )


def heads_fault(recipe: Recipe, shape: ModelShape) -> str | None:
    """Why the attention heads cannot be divided among the GPUs of an engine; None where they can.
    vLLM gives each GPU as many query heads, and as many key heads or a copy of one of them."""

    def divides(gpus: int) -> bool:
        of_keys = shape.kv_heads % gpus == 0 or gpus % shape.kv_heads == 0
        return shape.heads % gpus == 0 and of_keys

    parallel = recipe.rollout.tensor_parallel
    if divides(parallel):
        return None
    good = ", ".join(str(gpus) for gpus in range(1, shape.heads + 1) if divides(gpus))
    return (
        f"rollout.tensor_parallel is {parallel}, among which the model's {shape.heads} attention "
        f"heads ({shape.kv_heads} of keys) cannot be divided: set it to one of {good}"
    )


def layout_fault(recipe: Recipe, gpus: int | Sequence[int] | None) -> str | None:
    """Why engines and ranks cannot be placed on so many GPUs, and what would help; None where they
    can. `gpus`: of one machine, or of each of several; None: on CPU."""
    nodes = (gpus,) if isinstance(gpus, int) else gpus
    if (fault := no_gpus_fault(nodes)) is not None:
        return fault
    if not shares(recipe, nodes):
        return None if nodes is None else _fault_apart(recipe, nodes)
    there = None if nodes is None else in_words(nodes)
    rollout, ranks = recipe.rollout, recipe.learner.ranks
    if recipe.schedule.max_staleness > 0:
        return (
            f"schedule.max_staleness is {recipe.schedule.max_staleness}: engines and learner work "
            f"at the same time and need {gpus_needed(recipe)} GPUs, but there are {there}. "
            "Set it to 0, so that they take turns on shared GPUs, or use fewer engines and ranks"
        )
    total = 0 if nodes is None else sum(nodes)
    chosen = (
        "colocated" if recipe.placement == "colocated" else f"auto on {total} GPUs is colocated and"
    )
    if rollout.tensor_parallel != 1 or rollout.engines != ranks:
        return (
            f"placement {chosen} shares each GPU between one engine and one learner rank: "
            f"{_engines(recipe)} (tensor_parallel must be 1, and engines as many as "
            f"learner.ranks, {ranks})"
        )
    if nodes is not None and ranks > total:
        return (
            f"placement {chosen} needs a GPU for each of {ranks} engines and ranks, and there are "
            f"{there}: set rollout.engines and learner.ranks to {total} at most"
        )
    return None


def _fault_apart(recipe: Recipe, nodes: Sequence[int]) -> str | None:
    """The same where nobody shares."""
    engines, parallel = recipe.rollout.engines, recipe.rollout.tensor_parallel
    needed = gpus_needed(recipe)
    if needed > sum(nodes):
        return (
            f"placement {recipe.placement} needs {needed} GPUs, and there are {in_words(nodes)}: "
            f"{_engines(recipe)} and learner.ranks is {recipe.learner.ranks}. Use fewer, or "
            "placement: colocated"
        )
    if parallel > max(nodes):
        return (
            f"rollout.tensor_parallel is {parallel}, and no machine has more than {max(nodes)} "
            f"GPUs: an engine stays within one. Set it to {max(nodes)} at most"
        )
    most = most_engines(parallel, nodes)
    if most < engines:
        return (
            f"rollout.engines is {engines}, and {most} of {parallel} GPUs each can be placed: an "
            f"engine stays within one machine, and there are {in_words(nodes)}. Set "
            f"rollout.engines to {most} at most, or rollout.tensor_parallel to a number that "
            "divides the GPUs of a machine"
        )
    return None


def _engines(recipe: Recipe) -> str:
    rollout = recipe.rollout
    return (
        f"rollout.tensor_parallel is {rollout.tensor_parallel}, rollout.engines is "
        f"{rollout.engines}"
    )


def shares(recipe: Recipe, gpus: int | Sequence[int] | None) -> bool:
    """The same for so many GPUs, of one machine or of each of several; None: on CPU."""
    if recipe.placement != "auto":
        return recipe.placement == "colocated"
    total = gpus if gpus is None or isinstance(gpus, int) else sum(gpus)
    return total is not None and total < gpus_needed(recipe)


def gpus_needed(recipe: Recipe) -> int:
    """Where nobody shares."""
    return recipe.rollout.engines * recipe.rollout.tensor_parallel + recipe.learner.ranks


def transport_of(recipe: Recipe) -> str:
    return pick_transport(
        recipe.sync.transport,
        on_gpu=on_gpu(),
        colocated=is_colocated(recipe),
        one_host=ray_address() is None,
    )


def model_length(recipe: Recipe, model: str) -> int:
    """The longest prompt plus answer, in tokens. Raises UserError beyond the model's context."""
    return length_within(recipe, context_length(model, recipe.model.trust_remote_code))


def length_within(recipe: Recipe, context: int) -> int:
    """The same where the context is known."""
    length = recipe.rollout.max_model_len or context
    if length > context:
        raise UserError(
            f"rollout.max_model_len is {length}, but the model's context is {context}: lower it"
        )
    if recipe.rollout.max_tokens >= length:
        raise UserError(
            f"rollout.max_tokens is {recipe.rollout.max_tokens}, which leaves no room for a prompt "
            f"in a context of {length} tokens: lower it"
        )
    return length


def engine_threads(recipe: Recipe) -> int | None:
    """Threads of an engine on CPU: its share of the engines' cores. None: vLLM decides."""
    engines = recipe.rollout.engines
    if recipe.rollout.tensor_parallel > 1 and engines == 1 and not recipe.schedule.max_staleness:
        return None
    return max(1, _cores(recipe)[0] // engines)


def learner_threads(recipe: Recipe) -> int:
    """Threads of a rank on CPU: its share of the learner's cores."""
    return max(1, _cores(recipe)[1] // recipe.learner.ranks)


def _cores(recipe: Recipe) -> tuple[int, int]:
    """Cores of the engines and of the learner: all of them where they take turns, half each where
    they work at the same time; an odd one goes to the learner. With more threads than cores, all
    would wait for those that share one."""
    cores = len(os.sched_getaffinity(0))
    if not recipe.schedule.max_staleness:
        return cores, cores
    return cores // 2, cores - cores // 2
