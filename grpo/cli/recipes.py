"""`grpo recipes`: what comes with the package."""

import shutil
from pathlib import Path
from typing import Annotated

import typer

from grpo.cli.exit_codes import exit_codes
from grpo.config.shipped import Kind, find, first_comment, shipped
from grpo.console import Screen
from grpo.errors import UserError

_TITLES: tuple[tuple[Kind, str], ...] = (
    ("recipes", "recipes, for grpo train NAME"),
    ("data", "data sets, for data=NAME"),
    ("eval", "suites, for grpo eval --suite NAME and eval.suite=NAME"),
)


def recipes(
    name: Annotated[
        str | None, typer.Argument(help="print this recipe, data set or suite, comments included")
    ] = None,
    copy: Annotated[
        bool, typer.Option("--copy", help="write it here as NAME.yaml, to be changed")
    ] = False,
) -> None:
    """List the recipes, data sets and suites that come with grpo. Each works by its name wherever
    a file does:

        grpo recipes tiny_cpu --copy

        grpo train tiny_cpu schedule.steps=20 eval.suite=arithmetic
    """
    with exit_codes("nothing was changed"):
        if name is None:
            if copy:
                raise UserError("--copy: say which one, e.g. grpo recipes tiny_cpu --copy")
            for kind, title in _TITLES:
                rows = [(stem, first_comment(file)) for stem, file in shipped(kind).items()]
                Screen().table(title, ("name", "what it is"), rows)
            return
        kinds = [kind for kind, _ in _TITLES if name in shipped(kind)]
        if len(kinds) > 1:
            each = " or ".join(f"{kind}/{name}" for kind in kinds)
            raise UserError(f"{name!r} is the name of {len(kinds)} files: say {each}")
        file = find(name, None)
        if not copy:
            Screen().note(f"# {file}\n{file.read_text(encoding='utf-8')}")
            return
        here = Path(file.name)
        if here.exists():
            raise UserError(f"{here} is here already: delete or rename it first")
        shutil.copyfile(file, here)
        Screen().note(f"wrote {here}")
