"""The `grpo` command. Heavy modules are imported by the command that needs them."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from grpo.errors import Interrupted, RunError, UserError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Reinforcement learning with verifiable rewards: vLLM samples, a rule-based verifier "
    "judges, DeepSpeed ZeRO-3 learns.",
)

Recipe = Annotated[Path, typer.Argument(help="a recipe file, e.g. recipes/tiny_cpu.yaml")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        help="keys to change, e.g. learner.lr=1e-5 aggregate=token_mean", metavar="[KEY=VALUE]..."
    ),
]


@contextmanager
def _exit_codes() -> Iterator[None]:
    """0 ok, 1 failed, 2 bad input, 130 interrupted; a traceback only for a fault of ours."""
    try:
        yield
    except UserError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    except RunError as error:
        typer.echo(f"failed: {error}", err=True)
        raise typer.Exit(1) from None
    except (Interrupted, KeyboardInterrupt):
        typer.echo("interrupted; the same command goes on from the last checkpoint", err=True)
        raise typer.Exit(130) from None


@app.command()
def train(
    recipe: Recipe,
    overrides: Overrides = None,
    resume: Annotated[
        str, typer.Option(help="auto, never, or a checkpoint folder", metavar="auto|never|DIR")
    ] = "auto",
) -> None:
    """Train as a recipe says.

    Starts in runs/NAME, or goes on from its newest checkpoint. Any key of the recipe can be set
    on the command line:

        grpo train recipes/tiny_cpu.yaml name=mine aggregate=token_mean schedule.steps=20
    """
    with _exit_codes():
        from grpo.console import Screen
        from grpo.loading import load_recipe
        from grpo.train import train as run

        run(load_recipe(recipe, overrides or []), Screen(), resume)


@app.command()
def check(recipe: Recipe, overrides: Overrides = None) -> None:
    """Check a recipe without starting anything: keys, options, files, data rows."""
    with _exit_codes():
        from grpo.check import check_recipe
        from grpo.console import Screen
        from grpo.loading import load_recipe
        from grpo.session import import_plugins

        loaded = load_recipe(recipe, overrides or [])
        import_plugins(loaded.plugins)
        Screen().table(f"{recipe} is fine", ("what", "value"), check_recipe(loaded))


@app.command(name="eval")
def evaluate(
    target: Annotated[
        str,
        typer.Argument(help="a run folder, a checkpoint, a model folder or a Hugging Face name"),
    ],
    overrides: Overrides = None,
    suite: Annotated[
        Path, typer.Option(help="benchmarks to run, e.g. eval/arithmetic.yaml")
    ] = Path("eval/arithmetic.yaml"),
    out: Annotated[Path | None, typer.Option(help="where the JSON result goes")] = None,
    dtype: Annotated[str, typer.Option(help="bfloat16 or float32")] = "float32",
) -> None:
    """Evaluate a run, a checkpoint or any model on a suite: avg@k, pass@k, maj@k with 95 %
    intervals, as a table and as JSON. Overrides change the suite (benchmarks.0.samples=4)."""
    with _exit_codes():
        from grpo.console import Screen
        from grpo.evaluate import evaluate_model
        from grpo.loading import load_suite

        evaluate_model(target, load_suite(suite, overrides or []), dtype, out, Screen())


@app.command()
def report(run: Annotated[Path, typer.Argument(help="a run folder")]) -> None:
    """Draw a run's curves (reward.png, length.png) from what it has logged so far."""
    with _exit_codes():
        from grpo.checkpoint import RunFolder
        from grpo.report import write_curves

        if not (run / "metrics.jsonl").is_file():
            raise UserError(f"{run} is not a run folder: it has no metrics.jsonl")
        for path in write_curves(RunFolder(run)):
            typer.echo(f"wrote {path}")


def main() -> None:
    _quieten()
    try:
        sys.exit(app())
    except KeyboardInterrupt:  # before a command had begun to listen
        sys.exit(130)


def _quieten() -> None:
    """Keeps libraries from talking over the run; set before any of them is imported."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not Path("/proc/driver/nvidia").exists():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed warns where it has to guess
