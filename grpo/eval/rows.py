"""A benchmark's rows with what they say of themselves, and verdicts on answers to them."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from grpo.config.recipe import BenchmarkConfig, Choice, DateWindow, VerifierConfig
from grpo.console import Screen
from grpo.data import load_rows, read
from grpo.data.read import open_source
from grpo.data.rows import to_row
from grpo.errors import UserError
from grpo.eval.store import Answered
from grpo.types import Row, Verdict
from grpo.verify.pool import VerifierPool

Record = dict[str, Any]
Waiting = tuple[Answered, Sequence[Future[Verdict]]]


@dataclass(frozen=True, slots=True)
class Judges:
    """How answers are judged: processes, plugins that register verifiers, and a running pool that
    is used by benchmarks with the same verifier."""

    workers: int
    plugins: tuple[str, ...] = ()
    running: tuple[VerifierConfig, VerifierPool] | None = None

    @contextmanager
    def pool(self, asked: Choice, timeout_s: float) -> Iterator[VerifierPool]:
        if self.running is not None:
            config, pool = self.running
            if (config.name, config.options) == (asked.name, asked.options):
                yield pool
                return
        with VerifierPool(
            asked.name,
            asked.options,
            workers=self.workers,
            timeout_s=timeout_s,
            plugins=self.plugins,
        ) as pool:
            yield pool


def submit(group: Answered, verifier: VerifierPool) -> Waiting:
    """The group on its way to its verdicts, which it may have already."""
    if group.verdicts is None:
        return group, [verifier.submit(text, group.answer) for text in group.responses]
    known: list[Future[Verdict]] = []
    for verdict in group.verdicts:
        known.append(Future())
        known[-1].set_result(verdict)
    return group, known


def judged(
    name: str, waiting: Iterable[Waiting], screen: Screen, stop: Callable[[], bool]
) -> list[Answered] | None:
    """The groups with their verdicts, in the order of the rows; None where `stop` says so."""
    ordered = sorted(waiting, key=lambda item: item[0].serial)
    groups: list[Answered] = []
    with screen.progress(f"judge {name}", len(ordered)) as bar:
        for group, futures in ordered:
            if stop():
                return None
            groups.append(replace(group, verdicts=tuple(future.result() for future in futures)))
            bar.advance()
    return groups


def benchmark_rows(config: BenchmarkConfig) -> tuple[list[Row], list[dict[str, str]]]:
    """The benchmark's rows, and for each its values in the columns `by`; those outside the date
    window left out. A row in which a column is empty has no such value. Raises UserError."""
    rows = load_rows(config.data)
    if not (config.by or config.window or config.reference or config.starter):
        return rows, [{} for _ in rows]
    said = _records(config)
    kept: list[Row] = []
    labels: list[dict[str, str]] = []
    for row in rows:
        record = said.get(_key(row), {})
        if _within(config.window, record):
            kept.append(_completed(row, record, config))
            labels.append({name: str(record[name]) for name in config.by if name in record})
    if not kept:
        assert config.window is not None
        raise UserError(
            f"benchmark {config.name!r}: no row has a {config.window.column} from "
            f"{config.window.start} to {config.window.end}: widen window"
        )
    return kept, labels


def _within(window: DateWindow | None, record: Record) -> bool:
    if window is None:
        return True
    start = window.start.isoformat()
    date = str(record.get(window.column, ""))[: len(start)]  # a time of day may follow
    return start <= date <= window.end.isoformat()


def _completed(row: Row, record: Record, config: BenchmarkConfig) -> Row:
    """The row with its starting code and its reference of several parts."""
    if config.starter is not None and config.starter in record:
        row = replace(row, problem=f"{row.problem}\n\n```python\n{record[config.starter]}\n```")
    if not config.reference:
        return row
    parts = {
        key: next(record[column] for column in columns if column in record)
        for key, columns in config.reference.items()
        if any(column in record for column in columns)
    }
    if not parts:
        raise UserError(
            f"benchmark {config.name!r}, row {row.id!r}: holds none of the columns of reference "
            f"({', '.join(column for columns in config.reference.values() for column in columns)})"
        )
    return replace(row, answer=json.dumps(parts))


def _records(config: BenchmarkConfig) -> dict[tuple[str, str], Record]:
    """What every row holds in the columns that the benchmark names, empty ones left out."""
    needed = {*config.by} | ({config.window.column} if config.window else set())
    wanted = needed | {column for columns in config.reference.values() for column in columns}
    wanted |= {config.starter} if config.starter else set()
    said: dict[tuple[str, str], Record] = {}
    for item in open_source(config.data).items():
        row = to_row(item, config.data) if isinstance(item, read.Record) else None
        if not isinstance(item, read.Record) or not isinstance(row, Row):
            continue
        needed -= item.value.keys()
        mine = {name: item.value[name] for name in wanted if item.value.get(name) not in (None, "")}
        said.setdefault(_key(row), mine)
    if needed:
        raise UserError(
            f"benchmark {config.name!r}: no row of {config.data.name!r} has a column "
            f"{min(needed)!r} (by, window): name one that is there, or leave it out with by=[] or "
            "window=null"
        )
    return said


def _key(row: Row) -> tuple[str, str]:
    return row.id, row.problem
