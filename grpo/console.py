"""What a person sees while a run goes: rich in a terminal, plain lines in a file or a pipe."""

import math
import re
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from grpo.progress import (
    Display,
    Lines,
    PlainBar,
    PlainSpell,
    ProgressBar,
    RichBar,
    RichSpell,
    Spell,
    duration,
)
from grpo.types import ScoredGroup

PROMPT_CHARACTERS = 400
ANSWER_CHARACTERS = 1000


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
        self._lines = Lines(self.note, clock)
        self._displays: list[Display] = []  # one within the other

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
    def progress(self, title: str, total: int, unit: str = "") -> Iterator[ProgressBar]:
        """A bar with an ETA in a terminal; else a line where nothing was said for 10 s, and one at
        the end of longer work. `unit`: what is counted."""
        if self._draws:
            bar = RichBar(self._out, title, total, unit)
        else:
            bar = PlainBar(self._lines, title, total, unit)
        with self._shown(bar):
            yield bar
        bar.last_line()

    @contextmanager
    def waiting(self, title: str, usual_s: float | None = None) -> Iterator[Spell]:
        """Around work that has no parts to count: a spinner with the time in a terminal; else a
        line where nothing was said for 10 s. `usual_s`: how long it takes as a rule."""
        if self._draws:
            spell = RichSpell(self._out, title, usual_s)
        else:
            spell = PlainSpell(self._lines, title, usual_s)
        with self._shown(spell):
            yield spell

    @property
    def _draws(self) -> bool:
        """Whether rich can draw over lines: neither a pipe that is to have colours can, nor a
        terminal that is dumb."""
        return self._out.is_interactive and self._out.file.isatty()

    @contextmanager
    def _shown(self, display: Display) -> Iterator[None]:
        if self._displays:
            self._displays[-1].stop()
        try:
            self._displays.append(display)
            display.start()
            yield
        finally:
            # A signal may end any of these lines: what is over must not be shown again.
            if display in self._displays:
                self._displays.remove(display)
            try:
                display.stop()
            finally:
                if self._displays:
                    self._displays[-1].start()

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
        # What is drawn on a terminal makes room for lines of its own console only.
        drawn = bool(self._displays) and self._draws and self._err.is_terminal
        self._print(self._out if drawn else self._err, Text(f"warning: {text}", "yellow"))

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
            # In one piece: another thread may write at the same time.
            console.file.write(f"{safe}\n")
            console.file.flush()
        if console is self._out:
            self._lines.heard()


def _is_number(cell: str) -> bool:
    """With a unit or without; ? and - stand for unknown numbers."""
    return (
        re.fullmatch(r"[-+]?\d[\d,.]*(e[-+]?\d+)?( ?(%|[a-zA-Z]{1,3}))?|[-?]|nan|", cell)
        is not None
    )


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
