"""The `grpo` command. Heavy modules are imported by the command that needs them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from grpo.cli.data import data_app
from grpo.cli.exit_codes import exit_codes
from grpo.cli.export import export
from grpo.cli.plan import plan
from grpo.cli.recipes import recipes
from grpo.cli.said import show_log
from grpo.cli.verify import verify
from grpo.errors import UserError

if TYPE_CHECKING:
    from grpo.console import Screen

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Reinforcement learning with verifiable rewards: vLLM samples, a rule-based verifier "
    "judges, DeepSpeed ZeRO-3 learns.",
)

Recipe = Annotated[
    Path, typer.Argument(help="a file, or the name of one that comes with grpo: tiny_cpu")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        help="keys to change, e.g. learner.lr=1e-5 aggregate=token_mean", metavar="[KEY=VALUE]..."
    ),
]
Engine = Annotated[
    list[str] | None,
    typer.Option(
        help="for vLLM's engine, e.g. max_num_seqs=64; as often as needed", metavar="KEY=VALUE"
    ),
]
TrustRemoteCode = Annotated[bool, typer.Option(help="run the Python files that the model brings")]


app.add_typer(data_app, name="data")
app.command()(verify)
app.command()(plan)
app.command()(recipes)
app.command()(export)
RESUMES = "the same command goes on from where it was"


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

        grpo train tiny_cpu name=mine aggregate=token_mean schedule.steps=20
    """
    with exit_codes(RESUMES):
        with _at_once(f"{recipe.stem}: reading the recipe") as screen:
            _check_machine()
            from grpo.config.load import load_recipe
            from grpo.train.run import train as run

            loaded = load_recipe(recipe, overrides or [])
        run(loaded, screen, resume)


@app.command()
def check(recipe: Recipe, overrides: Overrides = None) -> None:
    """Check a recipe without starting anything: keys, options, files, data rows."""
    with exit_codes(RESUMES):
        _check_machine(missing_are_fine=True)
        from grpo.config.load import load_recipe
        from grpo.console import Screen
        from grpo.plugins import import_plugins
        from grpo.preflight.check import check_recipe

        loaded = load_recipe(recipe, overrides or [])
        import_plugins(loaded.plugin_names())
        checked, screen = check_recipe(loaded), Screen()
        screen.table(f"{recipe} is fine", ("what", "value"), checked.facts)
        for warning in checked.warnings:
            screen.warn(warning)


@app.command(name="eval")
def evaluate(
    *,
    target: Annotated[
        str | None,
        typer.Argument(help="a run folder, a checkpoint, a model folder or a Hugging Face name"),
    ] = None,
    overrides: Overrides = None,
    suite: Annotated[
        Path, typer.Option(help="benchmarks to run: a file, or a name such as math500")
    ] = Path("arithmetic"),
    answers: Annotated[
        Path | None, typer.Option(help="judge these answers (.jsonl, .parquet, a folder) instead")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="where the JSON result goes")] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16", "auto"],
        typer.Option(help="numbers that vLLM computes with; auto: as the model was saved"),
    ] = "float32",
    engines: Annotated[
        int | None,
        typer.Option(min=1, help="vLLM engines [default: as many as fit the GPUs, on CPU 1]"),
    ] = None,
    tensor_parallel: Annotated[
        int, typer.Option(min=1, help="GPUs of one engine, for a model larger than one")
    ] = 1,
    engine: Engine = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Evaluate a run, a checkpoint or any model on a suite: avg@k, pass@k, best@k, maj@k with 95 %
    intervals, as a table and as JSON, all answers beside it. The same command goes on after an
    interruption. Overrides change the suite (samples=4, benchmarks.0.data.path=FILE).

    With --answers no model is needed:

        grpo eval --answers answers.jsonl --suite math500 data.path=math500.jsonl
    """
    with exit_codes(RESUMES):
        from grpo.config.load import load_suite

        changes = overrides or []
        if answers is not None:
            from grpo.console import Screen
            from grpo.eval.answers import evaluate_answers

            if target is not None and "=" not in target:
                raise UserError(f"{target} and --answers {answers}: give one of them")
            changes = [target, *changes] if target is not None else changes
            evaluate_answers(load_suite(suite, changes), answers, out, Screen())
            return
        if target is None or ("=" in target and not Path(target).exists()):
            raise UserError("what to evaluate is missing: a run, a model, or --answers FILE")
        with _at_once(f"{suite.stem} on {target}: reading the suite") as screen:
            _check_machine()
            from grpo.eval.run import EngineOptions, evaluate_model

            extra = _engine_options(engine or [])
            options = EngineOptions(dtype, engines, tensor_parallel, extra, trust_remote_code)
            loaded = load_suite(suite, changes)
        evaluate_model(target, loaded, options, out, screen)


@contextmanager
def _at_once(first_word: str) -> Iterator["Screen"]:
    """Around the imports of a command that takes long: they take seconds, on a slow disk many."""
    from grpo.console import Screen

    screen = Screen()
    screen.note(first_word)
    with screen.waiting("importing"):
        yield screen


def _check_machine(missing_are_fine: bool = False) -> None:
    """Before the imports that another version of a library may break."""
    from grpo.preflight.machine import check_machine, look

    check_machine(look(), missing_are_fine=missing_are_fine)


def _engine_options(texts: list[str]) -> dict[str, Any]:
    from grpo.config.load import parse_override

    parsed = map(parse_override, texts)
    return {".".join(keys): value for keys, value in parsed}


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(metavar="A.json", help="a result of grpo eval")],
    second: Annotated[Path, typer.Argument(metavar="B.json", help="another, same benchmarks")],
) -> None:
    """Compare two results problem by problem: B minus A of every score, with its 95 % interval."""
    with exit_codes(RESUMES):
        from grpo.console import Screen
        from grpo.eval.compare import compare as run

        run(first, second, Screen())


@app.command()
def doctor() -> None:
    """Show what this machine has and can do: versions and whether they are supported, devices,
    attention, memory, and how far programs that a model writes can be shut in (verifier code)."""
    with exit_codes("nothing was changed"):
        from grpo.console import Screen
        from grpo.preflight.doctor import examine

        Screen().table("this machine", ("what", "finding"), examine())


@app.command()
def report(run: Annotated[Path, typer.Argument(help="a run folder")]) -> None:
    """Draw a run's curves (reward.png, length.png) from what it has logged so far."""
    with exit_codes(RESUMES):
        from grpo.report.curves import write_curves
        from grpo.store.checkpoint import RunFolder

        if not (run / "metrics.jsonl").is_file():
            raise UserError(f"{run} is not a run folder: it has no metrics.jsonl")
        for path in write_curves(RunFolder(run)):
            typer.echo(f"wrote {path}")


def start() -> None:
    _quieten()
    show_log()
    app()


def _quieten() -> None:
    """Keeps libraries from talking over the run; set before any of them is imported."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not Path("/proc/driver/nvidia").exists():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed warns where it has to guess
