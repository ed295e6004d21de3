"""`grpo plan`: the command line's side of it."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from grpo.cli.exit_codes import exit_codes
from grpo.errors import UserError

_KINDS: dict[str, Literal["cuda", "cpu"]] = {"gpu": "cuda", "cpu": "cpu"}


def plan(
    recipe: Annotated[Path, typer.Argument(help="a recipe file")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="keys to change, e.g. learner.ranks=4", metavar="[KEY=VALUE]..."),
    ] = None,
    device_gib: Annotated[
        float | None,
        typer.Option(help="of each GPU, or of the host on CPU; default: what is here"),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="gpu or cpu; default: what is here", metavar="gpu|cpu")
    ] = None,
) -> None:
    """Predict how full every device will be, phase by phase, without starting anything.

    Needs the model's config.json only. Says what does not fit and what would help, and exits
    with 1 then:

        grpo plan recipes/qwen3_1p7b_ba.yaml --device gpu --device-gib 80
    """
    with exit_codes("nothing was started"):
        from grpo.config.load import load_recipe
        from grpo.console import Screen
        from grpo.preflight.plan import here, predict

        if device not in (None, *_KINDS):
            raise UserError(f"--device {device}: expected gpu or cpu")
        if device_gib is not None and device_gib <= 0:
            raise UserError(f"--device-gib {device_gib:g}: expected a size above 0")
        place = here(_KINDS.get(device or ""), device_gib)
        if not predict(load_recipe(recipe, overrides or []), place, Screen()):
            raise typer.Exit(1)
