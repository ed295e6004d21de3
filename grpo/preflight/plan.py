"""How full every device will be, phase by phase, from a recipe and the shape of its model."""

from dataclasses import dataclass

from grpo.config.recipe import Recipe
from grpo.learner import memory
from grpo.learner.flops import ModelShape
from grpo.learner.memory import ENGINE_SHARE, GIB, LIBRARIES, setting_of, share_beside
from grpo.preflight.engine import engine_memory
from grpo.preflight.layout import Machine, by_node, takes_turns
from grpo.rollout.engine import CPU_KV_CACHE_BYTES

HOST = "host of a node"  # beside its GPUs


@dataclass(frozen=True, slots=True)
class Phase:
    """A moment on one kind of device; parts in bytes. limit: inf where it is not known."""

    where: str
    name: str
    parts: memory.Parts
    limit: float

    @property
    def total(self) -> float:
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        return self.total <= self.limit


def plan(recipe: Recipe, shape: ModelShape, machine: Machine) -> list[Phase]:
    """Every phase on every kind of device, the fullest of a kind first. The layout is taken as it
    is; `grpo.preflight.layout.fault` says whether it can be placed."""
    if machine.kind == "cpu":
        phases = _on_cpu(recipe, shape, machine)
    elif takes_turns(recipe, machine):
        phases = _on_shared_gpus(recipe, shape, machine)
    else:
        phases = _on_own_gpus(recipe, shape, machine)
    return sorted(phases, key=lambda phase: (phase.where == HOST, phase.where, -phase.total))


def _on_cpu(recipe: Recipe, shape: ModelShape, machine: Machine) -> list[Phase]:
    """One host holds every rank, every engine and the driver, all the time."""
    setting = setting_of(recipe, shape, machine.kind)
    engines, ranks = recipe.rollout.engines, recipe.learner.ranks
    kv_bytes = recipe.rollout.engine.get("kv_cache_memory_bytes", CPU_KV_CACHE_BYTES)
    tensor_parallel = recipe.rollout.tensor_parallel
    # vLLM's core beside the process that calls it, and its workers where there are several.
    of_an_engine = 2 if tensor_parallel == 1 else 2 + tensor_parallel
    others = {
        "engines' weights": float(engines * setting.itemsize * shape.parameters),
        "engines' KV cache": float(engines * kv_bytes),
        "libraries": (ranks + engines * of_an_engine + 1) * LIBRARIES["cpu"],
    }
    if recipe.sync.transport in ("auto", "shm"):
        others["weight buckets"] = memory.sync_buckets(setting)  # all share them, and keep them
    limit = machine.gib * GIB
    host = memory.on_host(setting, colocated=False)
    return [
        Phase("host", name, {k: ranks * v for k, v in {**parts, **host}.items()} | others, limit)
        for name, parts in memory.phases(setting).items()
    ]


def engine_share(recipe: Recipe, shape: ModelShape, machine: Machine) -> float:
    """The part of each of its GPUs that an engine takes."""
    free = ENGINE_SHARE
    if takes_turns(recipe, machine):
        free = share_beside(setting_of(recipe, shape, "cuda"), machine.gib * GIB)
    return float(recipe.rollout.engine.get("gpu_memory_utilization", free))


def kv_cache(recipe: Recipe, shape: ModelShape, machine: Machine) -> float:
    """Bytes of it on each GPU of an engine."""
    share = engine_share(recipe, shape, machine) * machine.gib * GIB
    fixed = recipe.rollout.engine.get("kv_cache_memory_bytes")
    return engine_memory(recipe, shape).cache(share, fixed)


def _on_own_gpus(recipe: Recipe, shape: ModelShape, machine: Machine) -> list[Phase]:
    setting, engine = setting_of(recipe, shape, "cuda"), engine_memory(recipe, shape)
    limit, libraries = machine.gib * GIB, {"libraries": LIBRARIES["cuda"]}
    held = {
        "engine's weights": engine.weights,
        "KV cache": kv_cache(recipe, shape, machine),
        **libraries,
    }
    update = {"weight buckets": memory.sync_buckets(setting), "module in loading": engine.module}
    return [
        *(
            Phase("learner GPU", name, {**parts, **libraries}, limit)
            for name, parts in memory.phases(setting).items()
        ),
        _least(recipe, shape, machine, "engine GPU"),
        Phase("engine GPU", "rollout", {**held, "forward pass": engine.activations}, limit),
        Phase("engine GPU", "sync", {**held, **update}, limit),
        *_on_hosts(recipe, shape, machine),
    ]


def _on_shared_gpus(recipe: Recipe, shape: ModelShape, machine: Machine) -> list[Phase]:
    """The engine sleeps while the learner works; its context stays. The learner's states rest in
    host memory from before the engine gets its weights back for an update until the rollouts are
    over, and its weights, with offload_weights, from the update's end."""
    setting, engine = setting_of(recipe, shape, "cuda"), engine_memory(recipe, shape)
    limit, both = machine.gib * GIB, {"libraries": 2 * LIBRARIES["cuda"]}
    resident = memory.resident(setting)
    weights = {"weights": resident["weights"]}
    held = {"engine's weights": engine.weights, **both}
    if setting.reference:
        held["reference"] = resident["reference"]
    buckets = {"weight buckets": memory.sync_buckets(setting)}
    beside = {} if setting.offload_weights else weights
    cache = {"KV cache": kv_cache(recipe, shape, machine), "forward pass": engine.activations}
    learning = memory.phases(setting)
    del learning["sync"]
    where = "shared GPU"
    return [
        *(Phase(where, name, {**parts, **both}, limit) for name, parts in learning.items()),
        Phase(where, "sync", {**weights, **held, **buckets, "module in loading": engine.module},
              limit),
        Phase(where, "rollout", {**beside, **held, **cache}, limit),
        _least(recipe, shape, machine, where),
        *_on_hosts(recipe, shape, machine),
    ]  # fmt: skip


def _least(recipe: Recipe, shape: ModelShape, machine: Machine, where: str) -> Phase:
    """What an engine's share must hold for vLLM to start: one longest sequence."""
    engine, share = engine_memory(recipe, shape), engine_share(recipe, shape, machine)
    parts = {
        "engine's weights": engine.weights,
        "forward pass": engine.activations,
        "KV cache": engine.sequence,
    }
    return Phase(where, "engine's share at least", parts, share * machine.gib * GIB)


def _on_hosts(recipe: Recipe, shape: ModelShape, machine: Machine) -> list[Phase]:
    """The node with most of what rests in its memory; [] where nothing does."""
    setting = setting_of(recipe, shape, "cuda")
    parts = memory.on_host(setting, takes_turns(recipe, machine))
    if not parts:
        return []
    engines, ranks = max(by_node(recipe, machine), key=lambda node: (node[1], node[0]))
    processes = {"libraries": (engines + ranks + 1) * LIBRARIES["cpu"]}
    limit = float("inf") if machine.host_gib is None else machine.host_gib * GIB
    held = {part: ranks * size for part, size in parts.items()} | processes
    return [Phase(HOST, "resting", held, limit)]
