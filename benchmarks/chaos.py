"""Small runs to which one thing happens at a random moment, each compared with the run that nothing
happened to: `make chaos`.

    PYTHONPATH=. .venv/bin/python benchmarks/chaos.py [--rounds 200] [--only KIND ...]
        [--work .chaos] [--part 1/2]

A round is a number: which fault and when follow from it. What is done already is not done again, so
the same command goes on after a stop. A command that the fault ends is given again, after room is
made, until the run is finished. Then: is every step and every prompt there once, are the weights
those of the undisturbed run to the last bit, is any process left, did anybody see a traceback?

With --part, several commands share the rounds, and the one that ends last shows them all. Start the
second once the first has made its undisturbed run.

Into the work folder go rounds.jsonl (a line a round), table.md, and the folders of the rounds that
went wrong. Disks that fill up are mounted where nobody else sees them; without the right to mount,
these rounds are left out.
"""

import argparse
import json
import random
import shutil
import signal
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import chaos_disks as disks
from benchmarks import chaos_faults as faults
from benchmarks.chaos_disks import keep_mounts_private
from benchmarks.chaos_faults import CHECKPOINT, EVALUATION, START, Fault
from benchmarks.chaos_run import (
    CHECKPOINT_EVERY,
    EVAL_EVERY,
    STEPS,
    Command,
    Left,
    build_small_model,
    lost_and_repeated,
    recipe_text,
    step_lines,
    steps_done,
    tracebacks,
    writing,
)
from benchmarks.chaos_table import table

KINDS: dict[str, Callable[[Path, random.Random], Fault]] = {
    "engine actor killed": faults.EngineKilled,
    "engine core killed": faults.EngineCoreKilled,
    "learner rank killed": faults.RankKilled,
    "verifier worker killed": faults.VerifierKilled,
    "verifier fork server killed": faults.ForkServerKilled,
    "driver killed": faults.DriverKilled,
    "SIGTERM": faults.Terminated,
    "SIGINT": faults.CtrlC,
    "engine paused": faults.Paused,
    "full disk, rollouts": disks.NoRoomForRollouts,
    "full disk, metrics": disks.NoRoomForMetrics,
    "full disk, checkpoints": disks.NoRoomForCheckpoints,
    "full disk, evaluations": disks.NoRoomForEvaluations,
    "newest checkpoint truncated": faults.NewestTruncated,
    "reward nan": faults.NanReward,
    "gradient nan": faults.NanGradient,
    "weight nan": faults.NanWeight,
    "ports taken": faults.PortsTaken,
    "slow disk": faults.SlowDisk,
    "clock jump": faults.ClockJump,
}
_POLL_S = 0.02
_LIMIT_S = 600.0  # of one command
_ATTEMPTS = 4
_TAIL = 1500  # characters of a log
_READY = "agree on the first prompts"


@dataclass(frozen=True, slots=True)
class Undisturbed:
    """The run that nothing happened to: how long it takes, and what it leaves."""

    seconds: float
    start_s: float
    step_s: float
    left: Left


@dataclass(frozen=True, slots=True)
class Moment:
    """`share` of the way through the start, through step `step`, or through the evaluation behind
    it; or as soon as the checkpoint of that step is being written."""

    phase: str
    step: int
    share: float

    def seconds(self, usual: Undisturbed, folder: Path) -> float:
        """How long to wait, once it is the step's turn. A step takes what the run's last one took:
        the machine may be faster or slower by now."""
        if self.phase == CHECKPOINT:
            return 0.0
        if self.phase == START:
            return self.share * usual.start_s
        taken = [line["time/step_s"] for line in step_lines(folder) if "time/step_s" in line]
        return self.share * (taken[-1] if len(taken) > 1 else usual.step_s)

    def is_near(self, command: Command) -> bool:
        """Whether it is the step's turn."""
        if self.phase == START:
            return True
        if self.phase == CHECKPOINT:
            done = steps_done(command.folder)
            return writing(command.folder) == self.step or bool(done and done[-1] > self.step)
        before = self.step if self.phase == EVALUATION else self.step - 1
        return before in steps_done(command.folder) or (before == 0 and _READY in command.text())


@dataclass(slots=True)
class Facts:
    """What became of a round. `left`: processes that outlived their command by a minute."""

    seed: int
    kind: str
    moment: Moment
    outcome: str = "lost"
    detail: str = ""
    codes: list[int] = field(default_factory=list)
    over_s: float = 0.0
    next_step_s: float | None = None
    left: list[str] = field(default_factory=list)
    prompts_lost: list[int] = field(default_factory=list)
    prompts_repeated: list[int] = field(default_factory=list)
    steps_lost: list[int] = field(default_factory=list)
    steps_repeated: list[int] = field(default_factory=list)
    differs: str = ""
    why_not: str = ""
    tracebacks: int = 0
    problems: list[str] = field(default_factory=list)
    tail: str = ""


def drawn(seed: int) -> tuple[str, random.Random]:
    """The kind of a round, and the dice for all the rest. Every len(KINDS) rounds in a row have
    each kind once."""
    names = list(KINDS)
    random.Random(seed // len(names)).shuffle(names)
    return names[seed % len(names)], random.Random(f"round {seed}")


def draw_moment(fault: Fault, dice: random.Random) -> Moment:
    # Behind the last step there is little left that may go wrong.
    phase, step = dice.choice(fault.phases), dice.randint(fault.first_step, STEPS - 1)
    if phase == CHECKPOINT:
        step = CHECKPOINT_EVERY * dice.randint(1, STEPS // CHECKPOINT_EVERY)
    if phase == EVALUATION:
        step = EVAL_EVERY * dice.randint(1, STEPS // EVAL_EVERY)
    return Moment(phase, 0 if phase == START else step, round(dice.random(), 3))


def prepared(folder: Path, model: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(recipe_text(folder, model))


# --- the run that nothing happens to ---


def undisturbed(work: Path) -> Undisturbed:
    """Made once, and kept in the work folder."""
    model, folder, file = work / "model", work / "undisturbed", work / "undisturbed.json"
    if not model.exists():
        build_small_model(model)
    if not file.exists():
        shutil.rmtree(folder, ignore_errors=True)
        prepared(folder, model)
        command, start_s = Command(folder, {}), 0.0
        try:
            while command.code is None:
                command.look()
                if not start_s and _READY in command.text():
                    start_s = time.monotonic() - command.began
                time.sleep(_POLL_S)
        finally:
            command.kill()
        if command.code:
            sys.exit(f"the undisturbed run ended with {command.code}:\n{command.text()[-_TAIL:]}")
        taken = [line["time/step_s"] for line in step_lines(folder) if "time/step_s" in line]
        seconds = time.monotonic() - command.began
        facts = {"seconds": seconds, "start_s": start_s, "step_s": statistics.median(taken)}
        file.write_text(json.dumps(facts | {"recipe": recipe_text("", "")}))
    stored = json.loads(file.read_text())
    if stored.pop("recipe") != recipe_text("", ""):
        sys.exit(f"{work} holds rounds of another recipe: remove it, or choose another --work")
    return Undisturbed(**stored, left=Left.of(folder))


# --- a round ---


class Round:
    """One run, from its start to its comparison."""

    def __init__(self, seed: int, work: Path, usual: Undisturbed, kind: str = ""):
        drawn_kind, dice = drawn(seed)
        self.folder = work / "rounds" / f"{seed:04d}"
        shutil.rmtree(self.folder, ignore_errors=True)
        prepared(self.folder, work / "model")
        self.usual = usual
        self.fault = KINDS[kind or drawn_kind](self.folder, dice)
        self.facts = Facts(seed, kind or drawn_kind, draw_moment(self.fault, dice))
        self.commands: list[Command] = []
        self.struck_at, self.struck_step = 0.0, 0

    def play(self) -> Facts:
        """The facts; the folder goes where there is nothing wrong with them."""
        facts, began = self.facts, time.monotonic()
        try:
            environment = self.fault.prepare()
            while len(facts.codes) < _ATTEMPTS and facts.codes[-1:] != [0]:
                self._run(environment)
                self.fault.undo()
            facts.over_s = round(time.monotonic() - began - self.usual.seconds, 1)
            facts.left = [name for command in self.commands for name in command.left()]
            self._compare()
        finally:
            for command in self.commands:
                command.kill()
            self.fault.undo()
            self.fault.clear()
        if not facts.problems:
            shutil.rmtree(self.folder)
        return facts

    def _run(self, environment: dict[str, str]) -> None:
        """The command once, to its end; the fault strikes in the first one."""
        command = Command(self.folder, environment)
        self.commands.append(command)
        near_at = 0.0
        while command.code is None:
            command.look()
            now = time.monotonic()
            if now - command.began > _LIMIT_S:
                self.facts.problems.append(f"not finished within {_LIMIT_S:.0f} s")
                command.kill()
            elif self.struck_at:
                self.fault.relent()
                self._look_for_the_next_step()
            elif len(self.commands) == 1:
                near_at = near_at or (now if self.facts.moment.is_near(command) else 0.0)
                wait_s = self.facts.moment.seconds(self.usual, self.folder)
                if near_at and now - near_at >= wait_s:
                    self._strike(command)
            time.sleep(_POLL_S)
        self.facts.codes.append(command.code)

    def _strike(self, command: Command) -> None:
        """Again a moment later, where there is nothing to strike yet."""
        self.struck_step = max(steps_done(self.folder), default=0)
        if self.fault.strike(command):
            self.struck_at = time.monotonic()

    def _look_for_the_next_step(self) -> None:
        done = steps_done(self.folder)
        if self.facts.next_step_s is None and done and done[-1] > self.struck_step:
            self.facts.next_step_s = round(time.monotonic() - self.struck_at, 1)

    def _compare(self) -> None:
        facts, fault = self.facts, self.fault
        facts.detail, facts.why_not = fault.detail, fault.why_not
        facts.tracebacks = tracebacks(self.folder)
        facts.problems += [f"a process is left: {name}" for name in facts.left]
        if facts.tracebacks:
            facts.problems.append(f"{facts.tracebacks} tracebacks")
        if facts.codes[0] not in (0, *fault.codes):
            facts.problems.append(f"ended with {facts.codes[0]}, not {fault.codes}")
        wrong = self._wrong() if facts.codes[-1] == 0 else [f"never finished: {facts.codes}"]
        facts.problems += wrong
        if wrong:
            facts.outcome = "lost"
        elif not self.struck_at:
            facts.outcome = "missed"
        else:
            facts.outcome = "healed inside" if len(facts.codes) == 1 else "ended and resumed"
        if facts.problems:
            facts.tail = self.commands[0].text()[-_TAIL:]
            if len(self.commands) > 1:
                facts.tail += f"\n--- last command\n{self.commands[-1].text()[-_TAIL:]}"

    def _wrong(self) -> list[str]:
        """What the finished run has lost, or has twice, or has otherwise than it should."""
        facts, left = self.facts, Left.of(self.folder)
        prompts = range(max(left.serials, default=-1) + 1)
        facts.steps_lost, facts.steps_repeated = lost_and_repeated(left.steps, range(1, STEPS + 1))
        facts.prompts_lost, facts.prompts_repeated = lost_and_repeated(left.serials, prompts)
        facts.differs = left.differs(self.usual.left)
        found = {
            "steps lost": facts.steps_lost,
            "steps repeated": facts.steps_repeated,
            "prompts lost": facts.prompts_lost,
            "prompts repeated": facts.prompts_repeated,
            "not as undisturbed": "" if facts.why_not else facts.differs,
        }
        return [f"{what}: {which}" for what, which in found.items() if which]


def rounds_of(file: Path) -> list[dict[str, Any]]:
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text().splitlines()]


def finish(rounds: Sequence[dict[str, Any]], work: Path) -> int:
    """Shows and writes the table; the exit code."""
    missed = sum(each["outcome"] == "missed" for each in rounds)
    text = table(rounds, KINDS)
    if missed:
        text += f"\n\nIn {missed} further rounds the run was over before its moment had come."
    (work / "table.md").write_text(text + "\n")
    print(f"\n{text}")
    wrong = [each for each in rounds if each["problems"]]
    for each in wrong:
        print(f"\nround {each['seed']}, {each['kind']}: {'; '.join(each['problems'])}")
    return 1 if wrong else 0


def _part(text: str) -> tuple[int, int]:
    part, _, parts = text.partition("/")
    if not (part.isdigit() and parts.isdigit() and 1 <= int(part) <= int(parts)):
        raise argparse.ArgumentTypeError(f"{text!r} is not one of several, such as 1/2")
    return int(part), int(parts)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--only", nargs="+", choices=KINDS, help="rounds of these kinds alone")
    parser.add_argument("--part", type=_part, default=(1, 1), help="which of how many, as 1/2")
    parser.add_argument("--work", type=Path, default=Path(".chaos"))
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    work = arguments.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    no_mounts = keep_mounts_private()
    usual = undisturbed(work)
    file = work / "rounds.jsonl"
    done = {each["seed"] for each in rounds_of(file)}
    part, parts = arguments.part
    for seed in range(arguments.rounds):
        kind, _ = drawn(seed)
        if seed in done or seed % parts != part - 1 or kind not in (arguments.only or KINDS):
            continue
        if no_mounts and "full disk" in kind:
            print(f"round {seed}: {kind}: left out, {no_mounts}", flush=True)
            continue
        facts = Round(seed, work, usual).play()
        with file.open("a") as lines:
            lines.write(json.dumps(asdict(facts)) + "\n")
        wrong = f": {'; '.join(facts.problems)}" if facts.problems else ""
        print(f"round {seed}: {kind}, {facts.outcome} {facts.codes}{wrong}", flush=True)
    return finish(rounds_of(file), work)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("stopped: the same command goes on with the next round")
