"""Seconds from the command to the end of the first training step, ours and TRL's.

    .venv/bin/python benchmarks/trl_first_step.py --case real --model .real/smollm2-135m

Cases, models and what both sides do are those of trl_step.py, but each side runs alone, one after
the other, `--rounds` times: `grpo train` up to the line of its first step, and TRL's script up to
the end of its first optimizer steps. Files are in the system's cache where the machine keeps them.
"""

import argparse
import signal
import subprocess
import sys
import time
from multiprocessing.connection import Listener
from pathlib import Path

from common import Row, Turns, accepted, command, parser, report
from trl_step import CASES, chosen, environment, environment_variables, overrides, rival

from grpo.config.recipe import Recipe

FIRST = "step 1/"


def ours_s(case: str, model: Path, arguments: argparse.Namespace) -> float:
    """Until `grpo train` says that its first step is done. It is stopped there, as by Ctrl-C."""
    given = CASES[case]
    asked = [*given.changes, *overrides(case, model, arguments.steps), *arguments.overrides]
    program = Path(sys.executable).with_name("grpo")
    started = time.perf_counter()
    process = subprocess.Popen(
        [program, "train", str(given.recipe), "--resume", "never", *asked],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    said: list[str] = []
    for line in process.stdout:
        said.append(line)
        if FIRST in line:
            break
    seconds = time.perf_counter() - started
    process.send_signal(signal.SIGINT)
    process.communicate()
    if not said or FIRST not in said[-1]:
        sys.exit(f"grpo train ended before its first step:\n{''.join(said[-20:])}")
    return seconds


def theirs_s(python: Path, recipe: Recipe, model: Path, per_device: int) -> float:
    """Until TRL's script tells of its first step. It is killed there."""
    out, program = rival(python, recipe, model, per_device)
    with Listener(str(out / "turns")) as listener, (out / "log").open("w") as log:
        started = time.perf_counter()
        process = subprocess.Popen(
            program, env=environment_variables(), stdout=log, stderr=subprocess.STDOUT
        )
        try:
            line = accepted(listener, process, out / "log")
            line.recv()
            line.send("your turn")
            line.recv()
            return time.perf_counter() - started
        finally:
            process.kill()
            process.wait()


def main(arguments: argparse.Namespace) -> None:
    python = environment(arguments.environment)
    model, recipe = chosen(arguments.case, arguments)
    turns = Turns([], [])
    for _ in range(arguments.rounds):
        turns.rival_s.append(theirs_s(python, recipe, model, CASES[arguments.case].per_device))
        turns.ours_s.append(ours_s(arguments.case, model, arguments))
    row = Row(
        f"from the command to the end of the first step, {arguments.case}",
        f"{sorted(turns.ours_s)[arguments.rounds // 2]:.0f} s",
        f"{sorted(turns.rival_s)[arguments.rounds // 2]:.0f} s",
        turns.cost,
    )
    results = {"ours_s": turns.ours_s, "trl_s": turns.rival_s}
    report("trl_first_step", command(), results, [row], arguments.json)


if __name__ == "__main__":
    options = parser(__doc__)
    options.add_argument("--environment", type=Path, default=Path(".bench/trl"))
    options.add_argument("--case", default="varied", choices=list(CASES))
    options.add_argument("--model", type=Path, help="begin with this folder")
    options.add_argument("--steps", type=int, default=4, help="of the recipe; one is taken")
    options.add_argument("--rounds", type=int, default=1)
    options.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    main(options.parse_args())
