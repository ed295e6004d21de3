"""What a person sees while a run goes: rich in a terminal, plain lines in a file or a pipe."""

import math
import re
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from grpo.types import ScoredGroup

PLAIN_PROGRESS_EVERY_S = 10.0
PROMPT_CHARACTERS = 400
ANSWER_CHARACTERS = 1000


class ProgressBar(Protocol):
    def advance(self, n: int = 1) -> None: ...

    def extend(self, n: int) -> None: ...


class Screen:
    """Everything goes to `out` except warnings, which go to `err`."""

    def __init__(
        self,
        out: TextIO | None = None,
        err: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._out = Console(file=out or sys.stdout, highlight=False, markup=False, emoji=False)
        self._err = Console(file=err or sys.stderr, highlight=False, markup=False, emoji=False)
        self._clock = clock

    def step_line(
        self, step: int, steps: int, metrics: Mapping[str, float], eta_s: float | None = None
    ) -> None:
        """One line; a metric that is missing is left out."""
        width = len(str(steps))
        line = Text.assemble((f"step {step:>{width}}/{steps}", "bold"))
        for label, value in _step_parts(metrics):
            line.append(f"  {label} ", "dim").append(value)
        seconds = _seconds_part(metrics)
        if seconds:
            line.append(f"  {seconds}")
        if eta_s is not None:
            line.append("  ETA ", "dim").append(duration(eta_s))
        self._print(self._out, line)

    @contextmanager
    def progress(self, title: str, total: int) -> Iterator[ProgressBar]:
        """A bar with an ETA in a terminal; else a line every 10 s, none for shorter work."""
        if not self._out.is_terminal:
            plain = _PlainProgress(self.note, self._clock, title, total)
            yield plain
            plain.last_line()
            return
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self._out, transient=True) as progress:
            yield _RichProgress(progress, title, total)

    def samples(self, step: int, groups: Sequence[ScoredGroup], count: int) -> None:
        """`count` answers, of as many different prompts as there are, shortened in the middle."""
        for group, index in _pick(groups, count):
            verdict = group.verdicts[index]
            response = group.group.responses[index]
            head = (
                f"--- step {step}, prompt {group.group.prompt.serial}, answer {index}: "
                f"reward {verdict.reward:g}, parsed {shorten(verdict.parsed, 80)!r} "
                f"(wanted {shorten(group.group.prompt.row.answer, 80)!r}), "
                f"{shorten(verdict.reason, 200)}, {len(response.token_ids)} tokens"
            )
            self._print(self._out, Text(head, "bold"))
            problem = shorten(group.group.prompt.row.problem, PROMPT_CHARACTERS)
            self._print(self._out, Text.assemble(("prompt: ", "dim"), problem))
            answer = shorten(response.text, ANSWER_CHARACTERS)
            self._print(self._out, Text.assemble(("answer: ", "dim"), answer))

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Texts on the left, numbers on the right. A terminal gets it in its width, long cells on
        several lines; a file or a pipe gets one line a row, for whatever reads it."""
        cells = [[printable(str(cell)) for cell in row] for row in rows]
        numeric = [all(map(_is_number, column)) for column in zip(*cells, strict=True)]
        numeric = numeric or [False] * len(columns)
        if not self._out.is_terminal:
            self._plain_table(title, [list(columns), *cells], numeric)
            return
        table = Table(title=Text(title), title_justify="left")
        for column, of_numbers in zip(columns, numeric, strict=True):
            table.add_column(
                Text(column), justify="right" if of_numbers else "left", overflow="fold"
            )
        for row in cells:
            table.add_row(*[Text(cell) for cell in row])
        self._out.print(table)

    def note(self, text: str) -> None:
        self._print(self._out, Text(text))

    def warn(self, text: str) -> None:
        self._print(self._err, Text(f"warning: {text}", "yellow"))

    def _plain_table(self, title: str, lines: list[list[str]], numeric: list[bool]) -> None:
        widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
        self.note(title)
        for line in lines:
            padded = [
                cell.rjust(width) if of_numbers else cell.ljust(width)
                for cell, width, of_numbers in zip(line, widths, numeric, strict=True)
            ]
            self.note("  " + "  ".join(padded).rstrip())

    def _print(self, console: Console, text: Text) -> None:
        encoding = console.encoding
        # A stream that is not UTF-8 must not end a run over one strange character.
        safe = printable(text.plain).encode(encoding, "backslashreplace").decode(encoding)
        if console.is_terminal:
            # soft_wrap: the terminal breaks long lines, so that copied text stays whole
            console.print(text if safe == text.plain else Text(safe), soft_wrap=True)
        else:
            print(safe, file=console.file, flush=True)


class _RichProgress:
    def __init__(self, progress: Progress, title: str, total: int):
        self._progress = progress
        self._total = total
        self._task = progress.add_task(title, total=total)

    def advance(self, n: int = 1) -> None:
        self._progress.advance(self._task, n)

    def extend(self, n: int) -> None:
        """There is more to do than was thought."""
        self._total += n
        self._progress.update(self._task, total=self._total)


class _PlainProgress:
    def __init__(
        self, write: Callable[[str], None], clock: Callable[[], float], title: str, total: int
    ):
        self._write, self._clock, self._title, self._total = write, clock, title, total
        self._done = 0
        self._started_s = self._written_s = clock()

    def advance(self, n: int = 1) -> None:
        self._done += n
        now_s = self._clock()
        # The last one is written at the end, with the whole time.
        if now_s - self._written_s < PLAIN_PROGRESS_EVERY_S or self._done >= self._total:
            return
        self._written_s = now_s
        elapsed_s = now_s - self._started_s
        left_s = elapsed_s / self._done * (self._total - self._done) if self._done else math.nan
        self._write(f"{self._counted()} after {duration(elapsed_s)}, ETA {duration(left_s)}")

    def extend(self, n: int) -> None:
        self._total += n

    def last_line(self) -> None:
        if self._clock() - self._started_s >= PLAIN_PROGRESS_EVERY_S:
            self._write(f"{self._counted()} in {duration(self._clock() - self._started_s)}")

    def _counted(self) -> str:
        share = f" ({self._done / self._total:.0%})" if self._total else ""
        return f"{self._title}: {self._done}/{self._total}{share}"


def _is_number(cell: str) -> bool:
    """With a unit or without; ? and - stand for unknown numbers."""
    return (
        re.fullmatch(r"[-+]?\d[\d,.]*(e[-+]?\d+)?( ?(%|[a-zA-Z]{1,3}))?|[-?]|nan|", cell)
        is not None
    )


def duration(seconds: float) -> str:
    """7.2s, 5m12s, 2h31m, 3d04h; ? for what is not known."""
    if not math.isfinite(seconds):
        return "?"
    if seconds < 59.95:
        return f"{max(seconds, 0.0):.1f}s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"


def printable(text: str) -> str:
    """Without control characters: a sampled escape sequence must not repaint the terminal."""
    return "".join(
        "\N{REPLACEMENT CHARACTER}"
        if unicodedata.category(character) in ("Cc", "Cs") and character not in "\n\t"
        else character
        for character in text
    )


def shorten(text: str, limit: int) -> str:
    """Cut in the middle: the question starts a prompt, the result ends an answer."""
    text = text.strip()
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]} [... {len(text) - 2 * half} characters ...] {text[-half:]}"


def _step_parts(metrics: Mapping[str, float]) -> list[tuple[str, str]]:
    formats: tuple[tuple[str, str, Callable[[float], str]], ...] = (
        ("reward/mean", "reward", lambda value: f"{value:.3f}"),
        ("length/mean", "length", lambda value: f"{value:.0f}"),
        ("truncated/share", "cut", lambda value: f"{value:.1%}"),
        ("learn/grad_norm", "grad", lambda value: f"{value:.3g}"),
        ("mismatch/mean_abs", "mismatch", lambda value: f"{value:.2g}"),
        ("throughput/sampled_tokens_per_s", "tok/s", lambda value: f"{value:,.0f}"),
    )
    return [(label, shown(metrics[name])) for name, label, shown in formats if name in metrics]


def _seconds_part(metrics: Mapping[str, float]) -> str:
    # Of sampling beside the learner only the waiting is part of the step.
    wait_s, rollout_s = metrics.get("time/wait_s", math.inf), metrics.get("time/rollout_s", 0.0)
    beside = wait_s < rollout_s or (rollout_s == 0 and math.isfinite(wait_s))
    phases = [
        f"{phase} {duration(metrics[f'time/{phase}_s'])}"
        for phase in ("wait" if beside else "rollout", "learn", "sync")
        if f"time/{phase}_s" in metrics
    ]
    if "time/step_s" not in metrics:
        return " + ".join(phases)
    whole = duration(metrics["time/step_s"])
    return f"{whole} ({' + '.join(phases)})" if phases else whole


def _pick(groups: Sequence[ScoredGroup], count: int) -> list[tuple[ScoredGroup, int]]:
    siblings = max((len(group.verdicts) for group in groups), default=0)
    order = [
        (group, index)
        for index in range(siblings)
        for group in groups
        if index < len(group.verdicts)
    ]
    return order[:count]
