"""Two runs of `grpo train` that take turns on one machine, a block of steps each.

    python benchmarks/turns.py SOCKET STEPS RECIPE [KEY=VALUE ...]   # one of them

Whatever a shared machine does then happens to both. A run stands still while the other works,
except for what its engines still have to sample: the first steps of a block do not count. Both
start at once, and the turns begin after the first step of each.
"""

import itertools
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from multiprocessing.connection import Client, Listener
from pathlib import Path
from statistics import median
from typing import Any

from common import accepted

from grpo.config.load import load_recipe
from grpo.console import Screen
from grpo.store.log import read_metrics
from grpo.train.run import train

# Of a block: the engines may have worked ahead while the other run had the machine, and nothing is
# in a cache any more.
UNCOUNTED = 2


class Turns(Screen):
    """The trainer's screen, which waits for its turn after the first step and hands the machine
    over after every `block` steps."""

    def __init__(self, line: Any, block: int):
        super().__init__(sys.stderr)
        self._line = line
        self._block = block

    def step_line(
        self, step: int, steps: int, metrics: Mapping[str, float], eta_s: float | None = None
    ) -> None:
        super().step_line(step, steps, metrics, eta_s)
        over = step % self._block == 0 and step < steps
        if over:
            self._line.send(step)
        if over or step == 1:
            self._line.recv()


def in_blocks(recipe: Path, runs: Sequence[Sequence[str]], block: int, folder: Path) -> None:
    """Trains the recipe with each of these overrides, every run in a process of its own, until all
    have ended; one that fails ends this process. The order is reversed in every second round. What
    they print goes into the folder."""
    with ExitStack() as stack:
        started: list[tuple[Listener, subprocess.Popen[bytes], Path]] = []
        for number, overrides in enumerate(runs):
            socket, log = folder / f"socket_{number}", folder / f"log_{number}"
            listener = stack.enter_context(Listener(str(socket)))
            output = stack.enter_context(log.open("wb"))
            command = [sys.executable, __file__, str(socket), str(block), str(recipe), *overrides]
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
            stack.callback(process.wait)
            stack.callback(process.terminate)
            started.append((listener, process, log))
        sides = [(accepted(*side), *side[1:]) for side in started]
        while sides:
            for side in list(sides):
                if not _has_worked(*side):
                    sides.remove(side)
            sides.reverse()


def _has_worked(line: Any, process: subprocess.Popen[bytes], log: Path) -> bool:
    """Gives this run the machine for a block; False where it has ended."""
    line.send("your turn")
    try:
        step: int = line.recv()
    except EOFError:
        if process.wait():
            sys.exit(f"a run failed:\n{log.read_text()[-2000:]}")
        return False
    print(f"{log.name}: step {step}", file=sys.stderr, flush=True)
    return True


def block_seconds(run: Path, block: int) -> list[float]:
    """The median seconds of a step in each whole block but the first: from one line of
    metrics.jsonl to the next, so that whatever is done between two steps is in it."""
    times = {row["step"]: row["time"] for row in steps(run)}
    seconds = {b: times[b] - times[a] for a, b in itertools.pairwise(sorted(times))}
    found: list[float] = []
    for first in range(block + 1, max(times) - block + 2, block):
        found.append(median(seconds[step] for step in range(first + UNCOUNTED, first + block)))
    return found


def steps(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl that are of a step."""
    return [row for row in read_metrics(run / "metrics.jsonl") if "time/step_s" in row]


def main(socket: str, block: str, recipe: str, *overrides: str) -> None:
    with Client(socket) as line:
        train(load_recipe(Path(recipe), list(overrides)), Turns(line, int(block)), "never")


if __name__ == "__main__":
    main(*sys.argv[1:])
