"""Changes of a recipe that would make it fit, each tried before it is named."""

from collections.abc import Callable, Iterator
from typing import Any

from pydantic import ValidationError

from grpo.config.recipe import Recipe
from grpo.learner.flops import ModelShape
from grpo.learner.memory import ENGINE_SHARE, longest_sequence
from grpo.preflight.layout import Machine, fault, takes_turns
from grpo.preflight.plan import plan

_FEWEST_TOKENS = 512  # a smaller micro-batch would not be worth a forward pass
_LORA_RANK = 32
# Of memory in GiB: cards that one can rent.
_CARDS = (16, 24, 32, 40, 48, 64, 80, 96, 141, 180, 288)

Value = str | int | float | bool
Change = dict[str, Value]  # dotted key -> value


def text(change: Change) -> str:
    """As the command line takes it."""
    return " ".join(f"{key}={str(value).lower()}" for key, value in change.items())


def changed(recipe: Recipe, change: Change) -> Recipe | None:
    """None where the recipe refuses it."""
    values: dict[str, Any] = recipe.model_dump()
    for dotted, value in change.items():
        *sections, key = dotted.split(".")
        inside = values
        for section in sections:
            inside[section] = inside[section] or {}
            inside = inside[section]
        inside[key] = value
    try:
        return Recipe.model_validate(values)
    except ValidationError:
        return None


def fits(recipe: Recipe, shape: ModelShape, machine: Machine) -> bool:
    """It can be placed there, and every phase has room."""
    if fault(recipe, shape, machine) is not None:
        return False
    return all(phase.fits for phase in plan(recipe, shape, machine))


def changes_that_fit(recipe: Recipe, shape: ModelShape, machine: Machine) -> list[str]:
    """Overrides that make everything fit there. Where single changes do: of each kind the mildest,
    the cheapest kind first. Else one set of several, with another layout if need be; [] where
    nothing here helps."""

    def would_fit(change: Change) -> bool:
        other = changed(recipe, change)
        return other is not None and fits(other, shape, machine)

    layouts = list(_layouts(recipe, machine))
    alone: list[Change] = []
    if fault(recipe, shape, machine) is None:
        alone = _one_of_each(_kinds(recipe, machine), {}, would_fit)
    alone += [layout for layout in layouts if would_fit(layout)][:1]
    if alone:
        return [text(change) for change in alone]
    for layout in ({}, *layouts):
        other = changed(recipe, layout)
        if other is None:
            continue
        found = _one_of_each(_kinds(other, machine), layout, would_fit)
        found = found or _together(_kinds(other, machine), layout, would_fit)
        if found:
            return [text(change) for change in found]
    return []


def smallest_card(recipe: Recipe, shape: ModelShape, machine: Machine) -> int | None:
    """GiB of the smallest GPU on which the recipe would fit, with changes or without; None where
    the largest is too small."""
    for gib in _CARDS:
        larger = Machine(machine.kind, gib, machine.gpus, machine.nodes, machine.host_gib)
        if gib > machine.gib and (
            fits(recipe, shape, larger) or changes_that_fit(recipe, shape, larger)
        ):
            return gib
    return None


Kinds = list[list[Change]]
Test = Callable[[Change], bool]


def _one_of_each(kinds: Kinds, base: Change, would_fit: Test) -> list[Change]:
    found = [next((c for c in kind if would_fit(base | c)), None) for kind in kinds]
    return [base | change for change in found if change is not None]


def _together(kinds: Kinds, base: Change, would_fit: Test) -> list[Change]:
    """One set, kind after kind until it fits, each as mild as the others allow."""
    together = dict(base)
    for number, kind in enumerate(kinds, start=1):
        for change in kind:
            if would_fit(together | change):
                return [_mildest(kinds[:number], together | change, would_fit)]
        together |= kind[-1]
    return []


def _mildest(kinds: Kinds, change: Change, would_fit: Test) -> Change:
    """Without what turns out to be needless, the costliest kind first, and what is left weakened as
    far as it goes."""
    for kind in reversed(kinds):
        fewer = {key: value for key, value in change.items() if key not in kind[0]}
        change = next((c for c in (fewer, *(fewer | k for k in kind)) if would_fit(c)), change)
    return change


def _kinds(recipe: Recipe, machine: Machine) -> Kinds:
    """What can be given up, kind by kind by what it costs, each from mild to strong."""
    model, learner = recipe.model, recipe.learner
    checkpointing: list[Change] = []
    if not model.gradient_checkpointing:
        checkpointing = [{"model.gradient_checkpointing": True}]
    elif model.checkpoint_every > 1:
        checkpointing = [{"model.checkpoint_every": 1}]
    fewest = max(_FEWEST_TOKENS, longest_sequence(recipe))
    tokens = [learner.micro_batch_tokens // 2**n for n in range(1, 16)]
    on_gpus = machine.kind == "cuda"
    resting = on_gpus and takes_turns(recipe, machine) and not learner.offload_weights
    offloading = on_gpus and not learner.offload_optimizer
    kinds: Kinds = [
        checkpointing,
        [{"learner.micro_batch_tokens": n} for n in tokens if n >= fewest],
        _smaller_shares(recipe) if on_gpus else [],
        [{"learner.offload_weights": True}] if resting else [],
        [{"learner.offload_optimizer": True}] if offloading else [],
        *(_more_gpus(recipe) if on_gpus and machine.gpus is None else []),
        [{"learner.lora.rank": _LORA_RANK}] if learner.lora is None else [],
    ]
    return [kind for kind in kinds if kind]


def _smaller_shares(recipe: Recipe) -> list[Change]:
    key = "gpu_memory_utilization"
    share = float(recipe.rollout.engine.get(key, ENGINE_SHARE))
    return [{f"rollout.engine.{key}": s / 100} for s in range(90, 45, -5) if s / 100 < share]


def _more_gpus(recipe: Recipe) -> Kinds:
    """Where nobody has said how many there are."""
    if recipe.placement == "colocated":
        return []
    parallel, ranks = recipe.rollout.tensor_parallel, recipe.learner.ranks
    return [
        [{"learner.ranks": ranks * 2**n} for n in range(1, 7)],
        [{"rollout.tensor_parallel": n} for n in (2, 4, 8) if n > parallel],
    ]


def _layouts(recipe: Recipe, machine: Machine) -> Iterator[Change]:
    """Other ways to use all GPUs of a machine that is known: those that keep apart what was apart
    first, the nearest to the recipe's shares first; then all shared."""
    gpus, rollout = machine.all_gpus, recipe.rollout
    if gpus is None:
        return
    wanted = rollout.engines * rollout.tensor_parallel
    wanted_share = wanted / (wanted + recipe.learner.ranks)
    apart = [
        (parallel, engines, gpus - engines * parallel)
        for parallel in (1, 2, 4, 8)
        if parallel >= rollout.tensor_parallel
        for engines in range(1, (gpus - 1) // parallel + 1)
    ]
    apart.sort(key=lambda made: (made[0], abs(made[0] * made[1] / gpus - wanted_share)))
    ways = [("disaggregated", *layout) for layout in apart]
    together = ("colocated", 1, gpus, gpus)
    ways = [together, *ways] if takes_turns(recipe, machine) else [*ways, together]
    for placement, parallel, engines, ranks in ways:
        whole: dict[str, tuple[Value, Value]] = {
            "placement": (recipe.placement, placement),
            "rollout.engines": (rollout.engines, engines),
            "rollout.tensor_parallel": (rollout.tensor_parallel, parallel),
            "learner.ranks": (recipe.learner.ranks, ranks),
        }
        if change := {key: new for key, (old, new) in whole.items() if old != new}:
            yield change
