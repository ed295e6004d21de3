"""`grpo plan`: what it prints."""

from grpo.config.recipe import Recipe
from grpo.console import Screen
from grpo.errors import UserError
from grpo.learner.flops import ModelShape
from grpo.learner.memory import GIB, setting_of
from grpo.learner.shapes import model_shape
from grpo.preflight.advice import changed, changes_that_fit, smallest_card
from grpo.preflight.engine import engine_memory, kv_bytes_per_token
from grpo.preflight.layout import Machine, decided, fault, gpus_used, takes_turns
from grpo.preflight.plan import HOST, Phase, engine_share, kv_cache, plan


def predict(recipe: Recipe, machine: Machine, screen: Screen) -> bool:
    """Prints a table for every kind of device, and what would help; whether everything fits. Raises
    UserError for a layout that cannot be placed, and where nothing would help."""
    shape, source = model_shape(recipe)
    why = fault(recipe, shape, machine)
    if why is not None:
        changes = changes_that_fit(recipe, shape, machine)
        mends = [f"would fit with: {change}" for change in changes]
        raise UserError("\n".join([why, *(mends or [_larger(recipe, shape, machine)])]))
    phases = plan(recipe, shape, machine)
    screen.note(f"model: {source}, {shape.parameters / 1e9:.2f} G parameters")
    if machine.kind == "cuda":
        screen.note(f"placement on {machine}: {decided(recipe, machine)}")
    counts = _counts(recipe, machine)
    for where in dict.fromkeys(phase.where for phase in phases):
        number = f"{counts[where]} x " if where in counts else ""
        gib = f", {machine.gib:.0f} GiB" if where != HOST else ""
        title = f"{number}{where}{gib}: GiB by phase, the fullest first"
        _table(title, [phase for phase in phases if phase.where == where], screen)
    _facts(recipe, shape, machine, screen)
    crowded = [phase for phase in phases if not phase.fits]
    for phase in crowded:
        over = (phase.total - phase.limit) / GIB
        screen.note(f"does not fit: {phase.where}, {phase.name}: {over:.1f} GiB too many")
    if crowded:
        changes = changes_that_fit(recipe, shape, machine)
        if not changes:
            raise UserError(_too_small(recipe, shape, machine))
        for change in changes:
            screen.note(f"would fit with: {change}")
    return not crowded


def _too_small(recipe: Recipe, shape: ModelShape, machine: Machine) -> str:
    return (
        f"{machine}: too small for {shape.parameters / 1e9:.2f} G parameters; no smaller "
        "micro-batch, offloading, adapters or other layout would do. "
        + _larger(recipe, shape, machine)
    )


def _larger(recipe: Recipe, shape: ModelShape, machine: Machine) -> str:
    gib = smallest_card(recipe, shape, machine) if machine.kind == "cuda" else None
    return "Use a smaller model" if gib is None else f"Use GPUs of {gib} GiB, or a smaller model"


def _counts(recipe: Recipe, machine: Machine) -> dict[str, int]:
    if machine.kind == "cpu":
        return {}
    if takes_turns(recipe, machine):
        return {"shared GPU": gpus_used(recipe, machine)}
    engines = recipe.rollout.engines * recipe.rollout.tensor_parallel
    return {"learner GPU": recipe.learner.ranks, "engine GPU": engines}


def _facts(recipe: Recipe, shape: ModelShape, machine: Machine, screen: Screen) -> None:
    setting = setting_of(recipe, shape, machine.kind)
    adapters = f"{setting.adapters / 1e6:.1f} M of adapters are trained; " if setting.lora else ""
    screen.note(
        f"{adapters}micro-batches of {setting.tokens:,} tokens; "
        f"{kv_bytes_per_token(recipe, shape) / 1024:.0f} KiB of KV cache per token"
    )
    if machine.kind == "cpu":
        return
    engine, cache = engine_memory(recipe, shape), kv_cache(recipe, shape, machine)
    fit = engine.sequences(cache)
    screen.note(
        f"each engine: {engine_share(recipe, shape, machine):.2f} of a GPU, {cache / GIB:.1f} GiB "
        f"of it KV cache: {cache / engine.token:,.0f} tokens, {fit:.1f} longest sequences of "
        f"{engine.longest:,} at once (at most {engine.most} are run, rollout.engine.max_num_seqs)"
    )
    group = recipe.rollout.group_size
    if 1 <= fit < group:
        screen.warn(
            f"the KV cache holds {fit:.1f} longest sequences, fewer than a group of {group}: "
            f"siblings that get long wait for each other{_more_room(recipe, shape, machine)}"
        )


def _more_room(recipe: Recipe, shape: ModelShape, machine: Machine) -> str:
    """What resting weights would do for the cache, where they would."""
    resting = changed(recipe, {"learner.offload_weights": True})
    if resting is None or recipe.learner.offload_weights or not takes_turns(recipe, machine):
        return ""
    held = engine_memory(resting, shape).sequences(kv_cache(resting, shape, machine))
    return f"; {held:.1f} with learner.offload_weights=true"


def _table(title: str, phases: list[Phase], screen: Screen) -> None:
    """A column for each phase, a row for each part."""
    parts = dict.fromkeys(part for phase in phases for part in phase.parts)
    rows: list[list[str]] = []
    for part in parts:
        cells = [phase.parts.get(part) for phase in phases]
        rows.append([part, *("" if c is None else f"{c / GIB:.2f}" for c in cells)])
    limited = [phase.limit < float("inf") for phase in phases]
    rows.append(["together", *(f"{phase.total / GIB:.2f}" for phase in phases)])
    limits = zip(phases, limited, strict=True)
    rows.append(["of", *(f"{phase.limit / GIB:.2f}" if known else "" for phase, known in limits)])
    if any(limited):
        rows.append(["fits", *("yes" if phase.fits else "NO" for phase in phases)])
    screen.table(title, ["part", *(phase.name for phase in phases)], rows)
