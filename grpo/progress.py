"""What is shown while something goes on: a bar or a spinner in a terminal, else a line every 10 s.

A line is due where nothing has been said for so long, whoever was the last to say something. A
thread looks for that, since who works or waits has no time to; it ends with the work.
"""

import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

PLAIN_PROGRESS_EVERY_S = 10.0
_EARLY_S = 0.2  # a thread wakes a little late
_SOON_S = 0.01  # between two looks at least


class ProgressBar(Protocol):
    def advance(self, n: int = 1) -> None: ...

    def update(self, done: int, total: int, detail: str = "", left: str = "") -> None:
        """`left`: how long the rest takes, in words, from somebody who knows better than the bar,
        to which all parts are alike."""
        ...


class Spell(Protocol):
    """Work that has no parts to count."""

    def say(self, title: str) -> None:
        """What is worked on from now on."""
        ...


class Display(Protocol):
    """Of several, one within the other, the innermost is shown."""

    def start(self) -> None: ...

    def stop(self) -> None: ...


class Lines:
    """The plain lines of a screen: `write` writes one, and others may write, too (`heard`)."""

    def __init__(self, write: Callable[[str], None], clock: Callable[[], float]):
        self.write = write
        self.clock = clock
        self._turns = threading.RLock()  # a signal's handler may come in the middle of a turn
        self.heard()

    def heard(self) -> None:
        """Something was written."""
        self._written_s = self.clock()

    @property
    def left_s(self) -> float:
        """Seconds until a line is due."""
        return self._written_s + PLAIN_PROGRESS_EVERY_S - _EARLY_S - self.clock()

    def take_turn(self) -> bool:
        """Whether a line is due: then the caller writes it, and nobody else."""
        with self._turns:
            if self.left_s > 0:
                return False
            self.heard()
            return True


class _Plain(ABC):
    """Something that goes on, with a line where one is due."""

    def __init__(self, lines: Lines):
        self._lines = lines
        self._started_s = lines.clock()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._ended = threading.Event()
        arguments = (self._ended,)
        thread = threading.Thread(target=self._watch, args=arguments, name="progress", daemon=True)
        with suppress(RuntimeError):  # the system gives no more threads: work goes on in silence
            thread.start()
            self._thread = thread

    def stop(self) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _watch(self, ended: threading.Event) -> None:
        # Where nobody reads any more, the next word of who works meets the same error.
        with suppress(OSError, ValueError):  # ValueError: it is closed
            while not ended.wait(max(_SOON_S, self._lines.left_s)):
                self._look()

    def _look(self) -> None:
        if self._lines.take_turn():
            self._lines.write(self._line())

    @property
    def _elapsed_s(self) -> float:
        return self._lines.clock() - self._started_s

    @abstractmethod
    def _line(self) -> str: ...


class PlainBar(_Plain):
    def __init__(self, lines: Lines, title: str, total: int, unit: str):
        super().__init__(lines)
        self._title, self._total, self._unit = title, total, f" {unit}" if unit else ""
        self._done = 0
        self._detail = self._left = ""

    def advance(self, n: int = 1) -> None:
        self._done += n
        if self._done < self._total:  # the last line comes at the end, with the whole time
            self._look()

    def update(self, done: int, total: int, detail: str = "", left: str = "") -> None:
        self._done, self._total, self._detail, self._left = done, total, detail, left
        self._look()

    def last_line(self) -> None:
        """None for short work."""
        if self._elapsed_s >= PLAIN_PROGRESS_EVERY_S:
            self._lines.write(f"{self._counted()} in {duration(self._elapsed_s)}")

    def _line(self) -> str:
        elapsed_s, done = self._elapsed_s, self._done
        left_s = elapsed_s / done * (self._total - done) if done else math.nan
        left = self._left or duration(left_s)
        return f"{self._counted()} after {duration(elapsed_s)}, ETA {left}"

    def _counted(self) -> str:
        share = f" ({self._done / self._total:.0%})" if self._total else ""
        detail = f", {self._detail}" if self._detail else ""
        return f"{self._title}: {self._done}/{self._total}{self._unit}{share}{detail}"


class PlainSpell(_Plain):
    def __init__(self, lines: Lines, title: str, usual_s: float | None):
        super().__init__(lines)
        self._title, self._usual = title, _usual(usual_s)

    def say(self, title: str) -> None:
        self._title, self._usual, self._started_s = title, "", self._lines.clock()

    def _line(self) -> str:
        usual = f" ({self._usual})" if self._usual else ""
        return f"{self._title}: {duration(self._elapsed_s)}{usual}"


class _Left(TimeRemainingColumn):
    def __init__(self) -> None:
        super().__init__(table_column=Column(no_wrap=True))

    def render(self, task: Task) -> Text:
        left: str = task.fields["left"]
        return Text(left, style="progress.remaining") if left else super().render(task)


class RichBar:
    def __init__(self, console: Console, title: str, total: int, unit: str):
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None, table_column=Column(ratio=1)),  # what the words leave
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            _Left(),
            TextColumn("{task.fields[detail]}", markup=False),
        )
        self._progress = Progress(*columns, console=console, transient=True, expand=True)
        self._task = self._progress.add_task(title, total=total, unit=unit, detail="", left="")
        self.start, self.stop = self._progress.start, self._progress.stop

    def advance(self, n: int = 1) -> None:
        self._progress.advance(self._task, n)

    def update(self, done: int, total: int, detail: str = "", left: str = "") -> None:
        self._progress.update(self._task, completed=done, total=total, detail=detail, left=left)

    def last_line(self) -> None:
        """What follows it says enough."""


class RichSpell:
    def __init__(self, console: Console, title: str, usual_s: float | None):
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            TimeElapsedColumn(),
            TextColumn("{task.fields[usual]}", markup=False),
        )
        self._progress = Progress(*columns, console=console, transient=True)
        self._task = self._progress.add_task(title, total=None, usual=_usual(usual_s))
        self.start, self.stop = self._progress.start, self._progress.stop

    def say(self, title: str) -> None:
        self._progress.reset(self._task, total=None, description=title, usual="")


def _usual(seconds: float | None) -> str:
    return "" if seconds is None else f"usually {duration(seconds)}"


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
