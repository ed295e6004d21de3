"""Writes the tables of docs/plan.md: which recipe of the package fits on which machine.

    make plans            # or: python docs/_tools/fits.py

What `grpo plan` says of every recipe on four machines, recipes of which it says the same together.
"""

from collections.abc import Iterator
from pathlib import Path

from grpo.config.load import load_recipe, parse_override
from grpo.config.recipe import Recipe
from grpo.config.shipped import shipped
from grpo.learner.flops import ModelShape
from grpo.learner.memory import GIB
from grpo.learner.shapes import model_shape
from grpo.preflight.advice import Value, changed, changes_that_fit, fits, smallest_card
from grpo.preflight.engine import engine_memory
from grpo.preflight.layout import Machine, decided
from grpo.preflight.plan import HOST, kv_cache, plan

PAGE = Path(__file__).parents[1] / "plan.md"
BEGIN, END = "<!-- written by docs/_tools/fits.py -->", "<!-- end -->"
MACHINES = (
    Machine("cuda", 24, gpus=1),
    Machine("cuda", 80, gpus=1),
    Machine("cuda", 80, gpus=8),
    Machine("cuda", 80, gpus=8, nodes=2),
)
_COLUMNS = "| recipes | fits | placed | fullest phase, GiB | longest sequences | would fit with |"
_RULE = "|---|---|---|---|---|---|"


def families() -> list[tuple[list[str], Recipe]]:
    """The recipes that a plan cannot tell apart, with one of them."""
    found: dict[str, tuple[list[str], Recipe]] = {}
    for name, path in shipped("recipes").items():
        recipe = load_recipe(path)
        seen = (
            *(recipe.placement, recipe.model, recipe.sync, recipe.schedule.max_staleness),
            recipe.regularization.kl > 0,
        )
        rollout = recipe.rollout.model_copy(update={"prompts": 1, "group_size": 2})
        learner = recipe.learner.model_copy(update={"lr": 1.0, "warmup_steps": 0})
        names, _ = found.setdefault(repr((seen, rollout, learner)), ([], recipe))
        names.append(name)
    return list(found.values())


def tables() -> str:
    every = [(names, recipe, model_shape(recipe)[0]) for names, recipe in families()]
    lines: list[str] = []
    for machine in MACHINES:
        lines += ["", f"### {str(machine)[0].upper()}{str(machine)[1:]}", "", _COLUMNS, _RULE]
        for names, recipe, shape in every:
            called = ", ".join(f"`{name}`" for name in names)
            lines.append(f"| {called} | {' | '.join(_cells(recipe, shape, machine))} |")
    return "\n".join([*lines, ""])


def _cells(recipe: Recipe, shape: ModelShape, machine: Machine) -> Iterator[str]:
    """As it stands where it fits, else with the first change that makes it fit."""
    if fits(recipe, shape, machine):
        yield "yes"
        yield from _placed(recipe, shape, machine)
        yield ""
        return
    yield "no"
    changes = changes_that_fit(recipe, shape, machine)
    if not changes:
        gib = smallest_card(recipe, shape, machine)
        yield from ("", "", "", f"nothing here, but with GPUs of {gib} GiB it would")
        return
    there = changed(recipe, dict(parse(word) for word in changes[0].split()))
    assert there is not None
    yield from _placed(there, shape, machine)
    yield " or ".join(f"`{change}`" for change in changes)


def parse(word: str) -> tuple[str, Value]:
    (*sections, key), value = parse_override(word)
    return ".".join([*sections, key]), value


def _placed(recipe: Recipe, shape: ModelShape, machine: Machine) -> Iterator[str]:
    yield decided(recipe, machine)
    fullest: dict[str, str] = {}
    for phase in plan(recipe, shape, machine):  # the fullest of each device comes first
        if phase.where != HOST:
            told = f"{phase.where}: {phase.name} {phase.total / GIB:.1f}"
            fullest.setdefault(phase.where, told)
    yield "; ".join(fullest.values())
    held = engine_memory(recipe, shape).sequences(kv_cache(recipe, shape, machine))
    yield f"{held:,.0f}"


def page(text: str) -> str:
    """The page with its tables as they are now."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{tables()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"wrote {PAGE}")
