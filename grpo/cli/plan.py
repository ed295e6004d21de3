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
    *,
    gpus: Annotated[
        int | None, typer.Option(help="of a node; default: those here, or as many as are asked for")
    ] = None,
    gpu_gib: Annotated[
        float | None, typer.Option(help="of each GPU; default: what is here")
    ] = None,
    nodes: Annotated[
        int | None, typer.Option(help="machines with so many GPUs; default: 1")
    ] = None,
    host_gib: Annotated[
        float | None, typer.Option(help="of each node's main memory; default: what is here")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="gpu or cpu; default: what is here", metavar="gpu|cpu")
    ] = None,
) -> None:
    """Predict how full every device will be, phase by phase, without starting anything.

    Needs the model's config.json only. Says what does not fit and what would help, and exits
    with 1 then; with 2 where engines and ranks cannot be placed, or nothing would help:

        grpo plan qwen3_1p7b_ba --gpus 8 --gpu-gib 80
    """
    with exit_codes("nothing was started"):
        from grpo.config.load import load_recipe
        from grpo.console import Screen
        from grpo.preflight.layout import described
        from grpo.preflight.plan_report import predict

        if device not in (None, *_KINDS):
            raise UserError(f"--device {device}: expected gpu or cpu")
        machine = described(_KINDS.get(device or ""), gpus, gpu_gib, nodes, host_gib)
        if not predict(load_recipe(recipe, overrides or []), machine, Screen()):
            raise typer.Exit(1)
