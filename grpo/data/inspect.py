"""`grpo data show` and `grpo data check`: what a model will see, and what is wrong with it."""

import statistics
from collections.abc import Sequence
from typing import Any

from grpo.config.data import DataConfig
from grpo.console import Screen
from grpo.data.benchmarks import Benchmark, find_benchmarks
from grpo.data.contamination import Overlap
from grpo.data.load import Loaded, load_rows, stops
from grpo.data.prepare import (
    compare_with,
    problems_of,
    read,
    show_comparison,
    show_counts,
)
from grpo.data.stream import render
from grpo.errors import UserError
from grpo.types import Row, Turn

_LISTED = 10
_SHARED_CHARACTERS = 80
_HOW = {
    "exact": "equals a problem of",
    "contained": "holds a problem of",
    "ngram": "shares words with",
}


def show(config: DataConfig, count: int, tokenizer: Any, screen: Screen) -> None:
    """The first `count` rows as prompts; with a tokenizer their tokens, chat template included,
    and how long the prompts of all rows are."""
    rows = load_rows(config)
    for row in rows[:count]:
        screen.note(f"--- row {row.id}, answer {row.answer!r}")
        if tokenizer is None:
            screen.note(_message(row, config))
            continue
        token_ids = render(row, config, tokenizer)
        screen.note(tokenizer.decode(list(token_ids)))
        screen.note(f"({len(token_ids):,} tokens)")
    screen.note(f"{config.name}: {len(rows):,} rows")
    if tokenizer is not None:
        _show_lengths(rows, config, tokenizer, screen)


def _message(row: Row, config: DataConfig) -> str:
    """Without a tokenizer nothing is known of its chat template: roles stand for it."""
    message = config.template.replace("{problem}", row.problem)
    if not config.chat:
        return message
    declared = (Turn("system", config.system),) if config.system else ()
    turns = (*declared, *row.earlier, Turn("user", message))
    return "\n".join(f"[{turn.role}] {turn.text}" for turn in turns)


def _show_lengths(rows: Sequence[Row], config: DataConfig, tokenizer: Any, screen: Screen) -> None:
    lengths = []
    with screen.progress("measuring prompts", len(rows)) as bar:
        for row in rows:
            lengths.append(len(render(row, config, tokenizer)))
            bar.advance()
    lengths.sort()
    marks = [
        ("shortest", lengths[0]),
        ("median", statistics.median_low(lengths)),
        ("95 % are no longer than", lengths[-(-len(lengths) * 95 // 100) - 1]),
        ("99 % are no longer than", lengths[-(-len(lengths) * 99 // 100) - 1]),
        ("longest", lengths[-1]),
    ]
    screen.table("prompts", ("length", "tokens"), [(name, f"{n:,}") for name, n in marks])


def check(config: DataConfig, screen: Screen, *, strict: bool = False) -> None:
    """Prints every count of the rows, then compares them with the benchmarks that can be read.
    Raises UserError listing what would stop a training run: rows that the filters do not let pass,
    or none left; `strict`: rows that a benchmark asks, and benchmarks that cannot be read."""
    benchmarks = find_benchmarks(config.decontaminate.against)
    loaded = read(config, screen, tolerant=True)
    show_counts(loaded.counts, config, screen)
    _show_chats(loaded.rows, screen)
    faults = [fault for fault in loaded.faults if not stops(fault, config)]
    if faults:
        screen.note(f"left out, {len(faults):,} in all:")
        _list([fault.message for fault in faults], screen)
    errors = [fault.message for fault in loaded.faults if stops(fault, config)]
    if not loaded.rows:
        errors.append("the filters keep no row")
    if loaded.rows:
        in_benchmarks = _compare(benchmarks, loaded, config, screen)
        errors += [f"{what}, and --strict is set" for what in in_benchmarks if strict]
    if errors:
        number = "1 error" if len(errors) == 1 else f"{len(errors):,} errors"
        raise UserError("\n  ".join([f"data {config.name!r} has {number}:", *_first(errors)]))
    screen.note(f"{config.name} is fine: {len(loaded.rows[: config.rows]):,} rows to train on")


def _show_chats(rows: Sequence[Row], screen: Screen) -> None:
    """How many rows show the model more than their problem in the template."""
    chats = [{turn.role for turn in row.earlier} for row in rows if row.earlier]
    if chats:
        system = sum("system" in roles for roles in chats)
        earlier = sum(not roles.isdisjoint(("user", "assistant")) for roles in chats)
        screen.note(
            f"of {len(rows):,} rows {system:,} have a system turn and {earlier:,} earlier turns of "
            "the user or the assistant, which the model is shown as they are"
        )


def _compare(
    benchmarks: Sequence[Benchmark], loaded: Loaded, config: DataConfig, screen: Screen
) -> list[str]:
    """Shows which rows the benchmarks ask; what a strict check would not let pass."""
    problems: dict[str, list[str]] = {}
    unread: dict[str, str] = {}
    for benchmark in benchmarks:
        try:
            for name, of_name in problems_of([benchmark], screen).items():
                problems.setdefault(name, []).extend(of_name)  # two may have one name
        except UserError as error:
            unread[benchmark.name] = str(error)
    found, facts = compare_with(problems, loaded.rows, config, screen)
    show_comparison(facts, config, screen)
    if found.rows:
        screen.note(f"{len(found.rows):,} rows stand in benchmarks; grpo data prepare drops them:")
        _list([_told(overlap, loaded) for overlap in found.overlaps], screen)
    if unread:
        screen.warn(
            f"not compared with {', '.join(unread)}, which could not be read. "
            f"{next(iter(unread.values()))}"
        )
    said = [f"{len(found.rows):,} rows stand in benchmarks"] if found.rows else []
    return said + [f"{name} could not be read" for name in unread]


def _told(overlap: Overlap, loaded: Loaded) -> str:
    how = _HOW[overlap.kind]
    shared = " ".join(overlap.shared.split())[:_SHARED_CHARACTERS]
    return f"row {loaded.rows[overlap.index].id} {how} {overlap.benchmark}: {shared}"


def _list(lines: Sequence[str], screen: Screen) -> None:
    for line in _first(lines):
        screen.note(f"  {line}")


def _first(lines: Sequence[str]) -> list[str]:
    more = [f"... and {len(lines) - _LISTED:,} more"] if len(lines) > _LISTED else []
    return [*lines[:_LISTED], *more]
