"""A benchmark's rows, and verdicts on answers to them."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace

from grpo.config.recipe import Choice, VerifierConfig
from grpo.config.suite import BenchmarkConfig, DateWindow
from grpo.console import Screen
from grpo.data import load_rows
from grpo.errors import UserError
from grpo.eval.store import Answered
from grpo.types import Row, Verdict
from grpo.verify.pool import VerifierPool

Waiting = tuple[Answered, Sequence[Future[Verdict]]]


@dataclass(frozen=True, slots=True)
class VerifierPools:
    """Where a benchmark's answers get their verdicts: in a pool of its own, or in one that is
    running already and judges in exactly the way that the benchmark asks for.

    workers, plugins: of a pool that is started
    """

    workers: int
    plugins: tuple[str, ...] = ()
    running: tuple[VerifierConfig, VerifierPool] | None = None

    @contextmanager
    def pool(self, asked: Choice, timeout_s: float) -> Iterator[VerifierPool]:
        if self.running is not None:
            config, pool = self.running
            same = (config.name, config.options) == (asked.name, asked.options)
            if same and config.timeout_s == timeout_s:
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
        reasons = group.finish_reasons or ("stop",) * len(group.responses)
        return group, [
            verifier.submit(
                text,
                group.answer,
                problem=group.problem,
                truncated=reason == "length",
                thinking=group.thinking,
            )
            for text, reason in zip(group.responses, reasons, strict=True)
        ]
    known: list[Future[Verdict]] = []
    for verdict in group.verdicts:
        known.append(Future())
        known[-1].set_result(verdict)
    return group, known


def with_verdicts(
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


def benchmark_rows(config: BenchmarkConfig) -> list[Row]:
    """The benchmark's rows with all that it asks of them; those outside the date window left out.
    Raises UserError."""
    needed = {*config.by} | ({config.window.column} if config.window else set())
    wanted = needed | {column for columns in config.reference.values() for column in columns}
    wanted |= {config.starter} if config.starter else set()
    rows = load_rows(config.data, wanted)
    if missing := needed - {column for row in rows for column in row.extra}:
        raise UserError(
            f"benchmark {config.name!r}: no row of {config.data.name!r} has a column "
            f"{min(missing)!r} (by, window): name one that is there, or leave it out with by=[] or "
            "window=null"
        )
    kept = [_completed(row, config) for row in rows if _within(config.window, row)]
    if not kept:
        assert config.window is not None
        raise UserError(
            f"benchmark {config.name!r}: no row has a {config.window.column} from "
            f"{config.window.start} to {config.window.end}: widen window"
        )
    return kept


def labels_of(row: Row, config: BenchmarkConfig) -> dict[str, str]:
    """What the row says in the columns `by`. One that is empty gives no label."""
    return {name: str(row.extra[name]) for name in config.by if _says(row, name)}


def _says(row: Row, column: str) -> bool:
    return row.extra.get(column) not in (None, "")


def _within(window: DateWindow | None, row: Row) -> bool:
    if window is None:
        return True
    start = window.start.isoformat()
    date = str(row.extra.get(window.column, ""))[: len(start)]  # a time of day may follow
    return start <= date <= window.end.isoformat()


def _completed(row: Row, config: BenchmarkConfig) -> Row:
    """The row with its starting code and its reference of several parts."""
    if config.starter is not None and _says(row, config.starter):
        code = row.extra[config.starter]
        row = replace(row, problem=f"{row.problem}\n\n```python\n{code}\n```")
    if not config.reference:
        return row
    parts = {
        key: next(row.extra[column] for column in columns if _says(row, column))
        for key, columns in config.reference.items()
        if any(_says(row, column) for column in columns)
    }
    if not parts:
        raise UserError(
            f"benchmark {config.name!r}, row {row.id!r}: holds none of the columns of reference "
            f"({', '.join(column for columns in config.reference.values() for column in columns)})"
        )
    return replace(row, answer=json.dumps(parts))
