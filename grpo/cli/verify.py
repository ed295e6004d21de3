"""`grpo verify`. Heavy modules are imported by the command."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from grpo.cli.exit_codes import exit_codes
from grpo.config.data import DataConfig
from grpo.config.recipe import VerifierConfig
from grpo.errors import UserError

LIMIT, MOST, MOST_GUESSED = 0.02, 0.005, 0.05

_Limit = Annotated[
    float, typer.Option(min=0, max=1, help="the share of rows that may never be rewarded")
]
_Most = Annotated[
    float,
    typer.Option(
        min=0,
        max=1,
        help="the share of rows that one attack may be paid for, and of the wrong answers of "
        "one kind that may be accepted",
    ),
]
_MostGuessed = Annotated[
    float,
    typer.Option(
        min=0,
        max=1,
        help="the share of rows that may be had by saying the problem's only, first or last "
        "number, or one of two choices",
    ),
]


def verify(
    dataset: Annotated[
        str,
        typer.Argument(help="one that comes with grpo, e.g. dapo_math_17k, or a .yaml file"),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            help="keys of the declaration, e.g. rows=1000; of the verifier, e.g. "
            "verifier.timeout_s=5; plugins=[MODULE]",
            metavar="[KEY=VALUE]...",
        ),
    ] = None,
    path: Annotated[
        Path | None,
        typer.Option(help="read this local .jsonl, .json or .parquet file, without any network"),
    ] = None,
    *,
    verifier: Annotated[str, typer.Option(help="math, exact, countdown, or a plugin's")] = "math",
    limit: _Limit = LIMIT,
    most: _Most = MOST,
    most_guessed: _MostGuessed = MOST_GUESSED,
    out: Annotated[
        Path | None, typer.Option(help="the JSON file [default: runs/verify/NAME.VERIFIER.json]")
    ] = None,
) -> None:
    """Audit data and verifier together, before a GPU is paid for.

    Every row's reference answer is judged against itself as a model might write it, wrong answers
    made from it are judged, too, and answers made from the problem alone, without solving it: its
    own text, its formulas and numbers, many boxes, both choices, an empty box. Lists the rows that
    can never be rewarded, the wrong answers that were accepted, the rows that can be had without
    solving them, and how long verdicts take:

        grpo verify math_train --path math.jsonl verifier.options.float_rounding=4

    Of one problem at most 20 formulas and 20 numbers are tried. The rows that can be had are
    written beside the JSON file, as .giveaways.jsonl, and grpo data prepare leaves them out with
    filters.giveaways=drop.

    Exits with 1 above --limit, --most or --most-guessed.
    """
    with exit_codes("the same command begins again"):
        from grpo.console import Screen
        from grpo.preflight.audit import audit
        from grpo.preflight.audit_report import Limits, report

        config, judge, plugins = settings(dataset, overrides or [], path, verifier)
        if out is not None and out.is_dir():
            raise UserError(f"--out {str(out)!r} is a folder: name a file in it")
        screen = Screen()
        result = audit(config, judge, plugins, screen)
        report(result, (config, judge), Limits(limit, most, most_guessed), out, screen)


def settings(
    dataset: str, overrides: Sequence[str], path: Path | None, verifier: str
) -> tuple[DataConfig, VerifierConfig, tuple[str, ...]]:
    """The declaration, the verifier and its plugins, with the command line's changes. Raises
    UserError."""
    from grpo.config.load import load_data, parse_override
    from grpo.registry import nearest

    of_data = [text for text in overrides if not _is_for_the_verifier(text)]
    settings_of_it: dict[str, Any] = {"name": verifier, "workers": len(os.sched_getaffinity(0))}
    plugins: Any = []
    for text in filter(_is_for_the_verifier, overrides):
        keys, value = parse_override(text)
        if keys == ["plugins"]:
            plugins = value
        else:
            _set(settings_of_it, keys[1:], value, text)
    if not isinstance(plugins, list) or not all(isinstance(name, str) for name in plugins):
        raise UserError(f"plugins: expected a list of modules such as [my_parts], got {plugins!r}")
    try:
        checked = VerifierConfig.model_validate(settings_of_it)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, ("verifier", *first["loc"])))
        known = [f"verifier.{name}" for name in VerifierConfig.model_fields]
        hint = nearest(key, known) if first["type"] == "extra_forbidden" else ""
        raise UserError(f"{key}: {first['msg']}, got {first['input']!r}{hint}") from None
    if checked.shadows:
        raise UserError(
            "verifier.shadows: an audit judges by one verifier; give each its own --verifier"
        )
    config = load_data(dataset, of_data)
    if path is not None:
        config = config.model_copy(update={"path": str(path)})
    return config, checked, tuple(plugins)


def _is_for_the_verifier(text: str) -> bool:
    return text.startswith(("verifier.", "plugins="))


def _set(tree: dict[str, Any], parts: list[str], value: Any, text: str) -> None:
    for part in parts[:-1]:
        tree = tree.setdefault(part, {})
        if not isinstance(tree, dict):
            raise UserError(f"{text!r}: {part} has no keys of its own")
    tree[parts[-1]] = value
