"""`grpo data prepare|show|check`. Heavy modules are imported by the command that needs them."""

from pathlib import Path
from typing import Annotated, Any

import typer

from grpo.cli.exit_codes import exit_codes
from grpo.config.data import DataConfig
from grpo.errors import UserError

data_app = typer.Typer(
    no_args_is_help=True,
    help="Data sets: read, filter and decontaminate one, look at its rows, find its faults.",
)

Name = Annotated[
    str,
    typer.Argument(help="one that comes with grpo, e.g. dapo_math_17k, or a .yaml file"),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        help="keys to change, e.g. filters.language=latin rows=1000", metavar="[KEY=VALUE]..."
    ),
]
PathOption = Annotated[
    Path | None,
    typer.Option(help="read this local .jsonl, .json or .parquet file, without any network"),
]
Against = Annotated[
    list[str] | None,
    typer.Option(
        help="a suite (.yaml) or a file of problems to compare with, in place of the "
        "declaration's; as often as needed",
        metavar="FILE",
    ),
]


@data_app.command()
def prepare(
    name: Name,
    overrides: Overrides = None,
    path: PathOption = None,
    out: Annotated[
        Path | None,
        typer.Option(help="where it goes: .jsonl or .parquet [default: prepared/NAME.jsonl]"),
    ] = None,
    against: Against = None,
    force: Annotated[bool, typer.Option(help="do it again, over any file")] = False,
) -> None:
    """Write a file to train on: filtered, without duplicates, without what benchmarks ask.

    Beside it goes FILE.prepared.json with every count and the checksum. What is there already is
    not done again. Offline, from local files:

        grpo data prepare dapo_math_17k --path dapo.jsonl --against math500.jsonl
    """
    with exit_codes("the same command begins again"):
        from grpo.console import Screen
        from grpo.data.prepare import prepare as run

        run(_declaration(name, overrides, path, against), out, Screen(), force=force)


@data_app.command()
def show(
    name: Name,
    overrides: Overrides = None,
    path: PathOption = None,
    count: Annotated[int, typer.Option(min=0, help="rows to print")] = 3,
    tokenizer: Annotated[
        str | None,
        typer.Option(help="a model folder or Hugging Face name: chat template and token lengths"),
    ] = None,
) -> None:
    """Print rows as the model will see them, and how long the prompts are."""
    with exit_codes("the same command begins again"):
        from grpo.console import Screen
        from grpo.data.inspect import show as run

        config = _declaration(name, overrides, path, None)
        run(config, count, None if tokenizer is None else _tokenizer(tokenizer), Screen())


@data_app.command()
def check(
    name: Name,
    overrides: Overrides = None,
    path: PathOption = None,
    against: Against = None,
    strict: Annotated[
        bool, typer.Option(help="rows that stand in benchmarks are errors, too")
    ] = False,
) -> None:
    """Count rows that cannot be read, lack an answer, repeat or stand in benchmarks.

    Exits with 2 where a training run would refuse the data.
    """
    with exit_codes("the same command begins again"):
        from grpo.console import Screen
        from grpo.data.inspect import check as run

        run(_declaration(name, overrides, path, against), Screen(), strict=strict)


def _declaration(
    name: str, overrides: list[str] | None, path: Path | None, against: list[str] | None
) -> DataConfig:
    """The command line's options go last, over the declaration and its overrides."""
    from grpo.config.load import load_data

    config = load_data(name, overrides or [])
    changes: dict[str, Any] = {} if path is None else {"path": str(path)}
    if against:
        changes["decontaminate"] = config.decontaminate.model_copy(update={"against": against})
    return config.model_copy(update=changes)


def _tokenizer(model: str) -> Any:
    from grpo.learner.base_model import looks_local
    from grpo.learner.model_files import load_tokenizer

    if looks_local(model) and not Path(model).is_dir():
        raise UserError(f"--tokenizer {model!r}: no such folder")
    try:
        return load_tokenizer(model)
    except UserError as error:
        raise UserError(
            f"--tokenizer {model!r} cannot be loaded: {error}. Name a model folder with a "
            "tokenizer in it, or a Hugging Face model that the network reaches"
        ) from None
