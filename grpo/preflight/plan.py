"""`grpo plan`: how full every device will be, phase by phase, from a recipe and a config.json."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoConfig

from grpo.config.recipe import Recipe
from grpo.console import Screen
from grpo.errors import UserError
from grpo.learner import memory
from grpo.learner.base_model import looks_local
from grpo.learner.build import build_tokenizer, model_config
from grpo.learner.flops import ModelShape
from grpo.learner.memory import (
    ENGINE_SHARE,
    GIB,
    LIBRARIES,
    longest_sequence,
    setting_of,
    share_beside,
)
from grpo.rollout.engine import CPU_KV_CACHE_BYTES

_FEWEST_TOKENS = 512  # a smaller micro-batch would not be worth a forward pass


@dataclass(frozen=True, slots=True)
class Device:
    """Where a run is to go: GPUs of `gib` GiB each, or one host of `gib` GiB for everything."""

    kind: Literal["cuda", "cpu"]
    gib: float


def here(kind: Literal["cuda", "cpu"] | None, gib: float | None) -> Device:
    """This machine, where the arguments do not say otherwise."""
    on_gpu = torch.cuda.is_available()
    kind = kind or ("cuda" if on_gpu else "cpu")
    if gib is not None:
        return Device(kind, gib)
    if kind == "cpu":
        return Device(kind, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB)
    if not on_gpu:
        raise UserError("there is no GPU here to ask for its memory: give --device-gib, such as 80")
    return Device(kind, torch.cuda.get_device_properties(0).total_memory / GIB)


@dataclass(frozen=True, slots=True)
class Phase:
    """A moment on one kind of device; parts in bytes."""

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


def predict(recipe: Recipe, device: Device, screen: Screen) -> bool:
    """Prints a table for every kind of device, and what would help; whether everything fits."""
    shape = model_shape(recipe)
    phases = plan(recipe, shape, device)
    counts = {
        "learner GPU": recipe.learner.ranks,
        "engine GPU": recipe.rollout.engines * recipe.rollout.tensor_parallel,
        "shared GPU": recipe.learner.ranks,
    }
    for where in dict.fromkeys(phase.where for phase in phases):
        number = f"{counts[where]} x " if where in counts else ""
        title = f"{number}{where}, {device.gib:.0f} GiB: GiB by phase, the fullest first"
        _table(title, [phase for phase in phases if phase.where == where], screen)
    setting = setting_of(recipe, shape, device.kind)
    screen.note(
        f"{shape.parameters / 1e9:.2f} G parameters; micro-batches of {setting.tokens:,} tokens; "
        f"{kv_bytes_per_token(recipe, shape) / 1024:.0f} KiB of KV cache per token"
    )
    crowded = [phase for phase in phases if not phase.fits]
    for phase in crowded:
        over = (phase.total - phase.limit) / GIB
        screen.note(f"does not fit: {phase.where}, {phase.name}: {over:.1f} GiB too many")
    if crowded:
        changes = changes_that_fit(recipe, shape, device)
        for change in changes:
            screen.note(f"would fit with: {change}")
        if not changes:
            screen.note(
                "no smaller micro-batch, more ranks, offloading or tensor_parallel would do"
            )
    return not crowded


def _table(title: str, phases: list[Phase], screen: Screen) -> None:
    """A column for each phase, a row for each part."""
    parts = dict.fromkeys(part for phase in phases for part in phase.parts)
    rows: list[list[str]] = []
    for part in parts:
        cells = [phase.parts.get(part) for phase in phases]
        rows.append([part, *("" if c is None else f"{c / GIB:.2f}" for c in cells)])
    rows.append(["together", *(f"{phase.total / GIB:.2f}" for phase in phases)])
    rows.append(["of", *(f"{phase.limit / GIB:.2f}" for phase in phases)])
    rows.append(["fits", *("yes" if phase.fits else "NO" for phase in phases)])
    screen.table(title, ["part", *(phase.name for phase in phases)], rows)


def model_shape(recipe: Recipe) -> ModelShape:
    """From config.json alone, of a folder or the Hugging Face hub, or from what is to be built."""
    path = recipe.model.path
    if path is None:
        build = recipe.model.build
        assert build is not None
        return ModelShape.of(model_config(build, build_tokenizer(build)))
    folder = Path(path).expanduser()
    if looks_local(path) and not (folder / "config.json").is_file():
        raise UserError(f"model.path {path!r} has no config.json: point it at a model folder")
    try:
        config: Any = AutoConfig.from_pretrained(str(folder) if looks_local(path) else path)
    except (OSError, ValueError) as error:
        raise UserError(
            f"model.path {path!r}: its configuration cannot be read ({error}); check the name and "
            "the network, or give the path of a local copy"
        ) from error
    return ModelShape.of(config)


def kv_bytes_per_token(recipe: Recipe, shape: ModelShape) -> int:
    """Keys and values of all layers, over all devices of an engine."""
    itemsize = {"bfloat16": 2, "float32": 4}[recipe.model.dtype]
    return 2 * shape.layers * shape.key_value * itemsize


def plan(recipe: Recipe, shape: ModelShape, device: Device) -> list[Phase]:
    """Every phase on every kind of device, the fullest of a kind first."""
    find = _on_cpu if device.kind == "cpu" else _on_gpus
    phases = find(recipe, shape, device)
    return sorted(phases, key=lambda phase: (phase.where, -phase.total))


def _on_cpu(recipe: Recipe, shape: ModelShape, device: Device) -> list[Phase]:
    """One host holds every rank, every engine and the driver, all the time."""
    setting = setting_of(recipe, shape, device.kind)
    engines, ranks = recipe.rollout.engines, recipe.learner.ranks
    kv_bytes = recipe.rollout.engine.get("kv_cache_memory_bytes", CPU_KV_CACHE_BYTES)
    others = {
        "engines' weights": float(engines * setting.itemsize * shape.parameters),
        "engines' KV cache": float(engines * kv_bytes),
        "libraries": (ranks + engines + 1) * LIBRARIES["cpu"],
    }
    limit = device.gib * GIB
    host = memory.optimizer_state(setting) if recipe.learner.offload_optimizer else {}
    return [
        Phase("host", name, {k: ranks * v for k, v in {**parts, **host}.items()} | others, limit)
        for name, parts in memory.phases(setting).items()
    ]


def _on_gpus(recipe: Recipe, shape: ModelShape, device: Device) -> list[Phase]:
    setting = setting_of(recipe, shape, device.kind)
    limit, libraries = device.gib * GIB, {"libraries": LIBRARIES["cuda"]}
    weights = setting.itemsize * shape.parameters / recipe.rollout.tensor_parallel
    kv_token = kv_bytes_per_token(recipe, shape) / recipe.rollout.tensor_parallel
    free = share_beside(setting, limit) if recipe.placement == "colocated" else ENGINE_SHARE
    share = float(recipe.rollout.engine.get("gpu_memory_utilization", free))
    engine = {
        "engine's weights": weights,
        "KV cache of one longest sequence": kv_token * longest_sequence(recipe),
    }
    learning = memory.phases(setting)
    if recipe.placement != "colocated":
        learner = [
            Phase("learner GPU", name, {**parts, **libraries}, limit)
            for name, parts in learning.items()
        ]
        held = {**engine, **libraries}
        update = {**held, "weight buckets": memory.sync_buckets(setting)}
        return [
            *learner,
            Phase("engine GPU", "rollout", held, share * limit),
            Phase("engine GPU", "sync", update, limit),
        ]
    # The engine sleeps while the learner works, and has its weights back for the update. Its own
    # context stays all the while.
    both = {"libraries": 2 * LIBRARIES["cuda"]}
    update = {**learning["sync"], "engine's weights": weights, **both}
    learning = {name: {**parts, **both} for name, parts in learning.items()} | {"sync": update}
    phases = [Phase("shared GPU", name, parts, limit) for name, parts in learning.items()]
    kept = {"learner's weights": memory.resident(setting)["weights"]}
    return [
        *phases,
        Phase("shared GPU", "rollout", {**engine, **kept, **both}, limit),
        Phase("shared GPU", "engine's share", engine, share * limit),
    ]


def changes_that_fit(recipe: Recipe, shape: ModelShape, device: Device) -> list[str]:
    """Overrides that make everything fit: of each kind the mildest that does so alone, the cheapest
    kind first; where none does alone, one set of several; [] where nothing here helps."""

    def fits(changes: list[_Change]) -> bool:
        return all(phase.fits for phase in plan(_changed(recipe, changes), shape, device))

    kinds = [kind for kind in _changes(recipe) if kind]
    alone = [[change for change in kind if fits([change])][:1] for kind in kinds]
    if any(alone):
        return [_text(change) for found in alone for change in found]
    together: list[_Change] = []
    for kind in kinds:
        for change in kind:
            if fits([*together, change]):
                needed = _without_needless([*together, change], fits)
                return [" ".join(map(_text, needed))]
        together.append(kind[-1])
    return []


_Change = tuple[str, str, int | bool]  # section, key, value


def _without_needless(
    changes: list[_Change], fits: Callable[[list[_Change]], bool]
) -> list[_Change]:
    for change in list(changes):
        fewer = [other for other in changes if other != change]
        if fits(fewer):
            changes = fewer
    return changes


def _changes(recipe: Recipe) -> list[list[_Change]]:
    """What can be given up, kind by kind by what it costs, each from mild to strong."""
    model, learner, rollout = recipe.model, recipe.learner, recipe.rollout
    checkpointing: list[_Change] = []
    if not model.gradient_checkpointing:
        checkpointing = [("model", "gradient_checkpointing", True)]
    elif model.checkpoint_every > 1:
        checkpointing = [("model", "checkpoint_every", 1)]
    fewest = max(_FEWEST_TOKENS, longest_sequence(recipe))
    tokens = [learner.micro_batch_tokens // 2**n for n in range(1, 16)]
    apart = recipe.placement != "colocated"
    return [
        checkpointing,
        [("learner", "micro_batch_tokens", n) for n in tokens if n >= fewest],
        [] if learner.offload_optimizer else [("learner", "offload_optimizer", True)],
        [("learner", "ranks", learner.ranks * 2**n) for n in range(1, 7) if apart],
        [
            ("rollout", "tensor_parallel", n)
            for n in (2, 4, 8)
            if apart and n > rollout.tensor_parallel
        ],
    ]


def _changed(recipe: Recipe, changes: list[_Change]) -> Recipe:
    for section, key, value in changes:
        old = {"model": recipe.model, "learner": recipe.learner, "rollout": recipe.rollout}[section]
        recipe = recipe.model_copy(update={section: old.model_copy(update={key: value})})
    return recipe


def _text(change: _Change) -> str:
    section, key, value = change
    return f"{section}.{key}={str(value).lower()}"
