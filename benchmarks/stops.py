"""A run that is told to stop, at every kind of moment: which exit code, how soon, what is saved,
and whether the same command goes on as if nothing had been: `make stops`.

    PYTHONPATH=. .venv/bin/python benchmarks/stops.py [--work .stops] [--only MOMENT ...]

Each moment meets SIGTERM and SIGINT, once and twice: the second signal 1.5 s behind the first.
Where the run is in the middle of something, it is held there for 3 s, which are part of the seconds
that its end takes. What is done already is not done again: the same command goes on after a stop.
Into the work folder go stops.jsonl, table.md, and the folders of the runs that went wrong.
"""

import argparse
import json
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from benchmarks.chaos_run import (
    EVAL_EVERY,
    PLANTED,
    STEPS,
    Command,
    Left,
    build_small_model,
    recipe_text,
    steps_done,
    tracebacks,
)

SIGNALS = {"SIGTERM": signal.SIGTERM, "SIGINT": signal.SIGINT}
TIMES = (1, 2)
# What the log says at the moment; for what is held, behind which step it is.
STARTS = {"start: imports": "", "start: Ray": "starting vLLM", "start: engines": ""}
HELD = {"sampling": 3, "learning": 3, "sync": 3, "checkpoint": 3, "evaluation": EVAL_EVERY}
MOMENTS = (*STARTS, *HELD)
_AGAIN_S = 1.5
_IMPORTS_S, _ENGINES_S = 1.0, 8.0
_POLL_S = 0.02
_LIMIT_S = 600.0


@dataclass(slots=True)
class Stop:
    """One run. seconds: from the first signal to the end; finished, saved: the last step in the
    metrics, and the newest checkpoint's; differs: from the undisturbed run, once it was resumed"""

    moment: str
    signal: str
    times: int
    code: int | None = None
    seconds: float = 0.0
    finished: int = 0
    saved: int = 0
    left: list[str] = field(default_factory=list)
    tracebacks: int = 0
    resumed: int | None = None
    differs: str = ""
    problems: list[str] = field(default_factory=list)


def prepared(folder: Path, model: Path) -> Path:
    """A folder with the recipe of chaos.py's run, which can be held."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / PLANTED).mkdir(parents=True)
    recipe = yaml.safe_load(recipe_text(folder, model))
    recipe["plugins"] = ["benchmarks.stops_plugin"]
    recipe["verifier"]["name"] = "stops_sampled"
    recipe["surrogate"]["name"] = "stops_clip"
    recipe["eval"]["suite"]["benchmarks"][0]["verifier"] = "stops_evaluated"
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


def started(folder: Path) -> Command:
    return Command(folder, {"GRPO_CHAOS_PLANTED": str(folder / PLANTED)})


def finished(command: Command) -> int:
    """Waits for its end; the exit code."""
    while command.code is None:
        command.look()
        if time.monotonic() - command.began > _LIMIT_S:
            command.kill()
        time.sleep(_POLL_S)
    return command.code


def saved(folder: Path) -> int:
    newest = folder / "run" / "checkpoints" / "latest"
    return int(newest.resolve().name.removeprefix("step_")) if newest.exists() else 0


def wait_for(moment: str, command: Command) -> None:
    """Until the run is there; or over, which is then seen by its code."""
    planted = command.folder / PLANTED
    if moment in HELD:
        behind = HELD[moment]
        while command.code is None and behind not in steps_done(command.folder):
            command.look()
            time.sleep(_POLL_S)
        (planted / f"hold_{moment}").touch()
    while command.code is None:
        command.look()
        begun_s = time.monotonic() - command.began
        if (
            (moment == "start: imports" and begun_s > _IMPORTS_S)
            or (moment in STARTS and STARTS[moment] and STARTS[moment] in command.text())
            or (moment == "start: engines" and begun_s > _ENGINES_S and _engines(command))
            or (planted / f"holding_{moment}").exists()
        ):
            return
        time.sleep(_POLL_S)


def _engines(command: Command) -> bool:
    return bool(command.members("VLLM::EngineCore"))


def play(stop: Stop, folder: Path, usual: Left) -> None:
    command = started(folder)
    number = SIGNALS[stop.signal]
    wait_for(stop.moment, command)
    command.look(at_once=True)
    began = time.monotonic()
    command.process.send_signal(number)
    if stop.times == 2:
        time.sleep(_AGAIN_S)
        if command.code is None:
            command.process.send_signal(number)
    stop.code = finished(command)
    stop.seconds = round(time.monotonic() - began, 1)
    stop.left = command.left()
    stop.finished, stop.saved = max(steps_done(folder), default=0), saved(folder)
    again = started(folder)
    stop.resumed = finished(again)
    stop.tracebacks = tracebacks(folder)
    if stop.resumed == 0:
        stop.differs = Left.of(folder).differs(usual)
    stop.problems = problems(stop)


def problems(stop: Stop) -> list[str]:
    number = int(SIGNALS[stop.signal])
    # Told twice, it may be hit again while Python itself is ending; shells show the same figure.
    codes = (128 + number, -number)[: stop.times]
    wrong = {
        f"ended with {stop.code}": stop.code not in codes,
        f"of {stop.finished} steps, {stop.saved} saved": (
            stop.times == 1 and stop.saved != stop.finished
        ),
        f"left: {stop.left}": bool(stop.left),
        f"{stop.tracebacks} tracebacks": stop.tracebacks > 0,
        f"resumed, it ended with {stop.resumed}": stop.resumed != 0,
        f"then not as undisturbed: {stop.differs}": bool(stop.differs),
    }
    return [told for told, is_so in wrong.items() if is_so]


def undisturbed(work: Path) -> Left:
    folder, model = work / "undisturbed", work / "model"
    if not model.exists():
        build_small_model(model)
    if len(steps_done(folder)) < STEPS:
        command = started(prepared(folder, model))
        if finished(command):
            sys.exit(f"the undisturbed run ended with {command.code}:\n{command.text()[-1500:]}")
    return Left.of(folder)


def table(stops: Sequence[dict[str, Any]]) -> str:
    lines = [
        "| told to stop | by | times | exit code | s to the end | steps finished | of them saved | "
        "processes left | tracebacks | resumed: the same to the bit |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for stop in sorted(stops, key=lambda each: (MOMENTS.index(each["moment"]), each["times"])):
        same = "yes" if stop["resumed"] == 0 and not stop["differs"] else "**no**"
        cells = [
            *(stop[key] for key in ("moment", "signal", "times", "code", "seconds", "finished")),
            stop["saved"],
            len(stop["left"]),
            stop["tracebacks"],
            same,
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path(".stops"))
    parser.add_argument("--only", nargs="+", choices=MOMENTS)
    arguments = parser.parse_args()
    work = arguments.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    usual, file = undisturbed(work), work / "stops.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    stops = [json.loads(line) for line in lines]
    done = {(each["moment"], each["signal"], each["times"]) for each in stops}
    every = [(m, s, t) for m in arguments.only or MOMENTS for t in TIMES for s in SIGNALS]
    for which in every:
        if which in done:
            continue
        stop = Stop(*which)
        folder = work / "-".join(map(str, which)).replace(": ", "-")
        play(stop, prepared(folder, work / "model"), usual)
        if not stop.problems:
            shutil.rmtree(folder)
        stops.append(asdict(stop))
        with file.open("a") as lines_file:
            lines_file.write(json.dumps(asdict(stop)) + "\n")
        print(f"{which}: {stop.code} in {stop.seconds} s {'; '.join(stop.problems)}", flush=True)
    (work / "table.md").write_text(table(stops) + "\n")
    print(f"\n{table(stops)}")
    return 1 if any(each["problems"] for each in stops) else 0


if __name__ == "__main__":
    sys.exit(main())
