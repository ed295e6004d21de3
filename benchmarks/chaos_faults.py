"""The faults of chaos.py, disks left out: what each does, when, and what a run may make of it."""

import os
import random
import resource
import signal
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from benchmarks.chaos_run import CLOCK, PLANTED, ROOT, Command, writing
from grpo.store.checkpoint import RunFolder

START, STEP, CHECKPOINT, EVALUATION = "start", "step", "checkpoint", "evaluation"
ANYWHERE = (START, STEP, STEP, STEP, STEP, CHECKPOINT, EVALUATION)
ONCE_IT_LEARNS = (STEP, STEP, STEP, STEP, CHECKPOINT, EVALUATION)
_PORTS = 2000
_DAYS_S = 86_400
_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")


class Fault:
    """One fault of one run. `detail`: what exactly was done, once it is.

    phases, first_step: when it may strike
    codes: that the command which it strikes may end with
    why_not: the run ends otherwise than the undisturbed one; empty where it must not
    """

    phases: Sequence[str] = ANYWHERE
    first_step = 1
    codes: Sequence[int] = (0, 1)
    why_not = ""

    def __init__(self, folder: Path, dice: random.Random):
        self.folder = folder
        self.run = RunFolder(folder / "run")
        self.dice = dice
        self.detail = ""

    def prepare(self) -> dict[str, str]:
        """Before the command starts; what its environment has to hold."""
        return {}

    def strike(self, command: Command) -> bool:
        """At the moment. False where there is nothing to strike."""
        raise NotImplementedError

    def relent(self) -> None:
        """Called ever and again from then on, while the command is under way."""

    def undo(self) -> None:
        """Behind the command's end, and where the round is broken off: as often as one likes."""

    def clear(self) -> None:
        """At the very end of the round: what is not part of its folder goes."""


class Killed(Fault):
    """kill -9 on one of the processes of a name."""

    name = ""

    def strike(self, command: Command) -> bool:
        found = sorted(self.targets(command), key=lambda each: each.pid)
        if not found:
            return False
        target = self.dice.choice(found)
        self.detail = f"one of {len(found)}"
        with suppress(psutil.Error):
            target.kill()
        return True

    def targets(self, command: Command) -> list[psutil.Process]:
        return command.members(self.name)


class EngineKilled(Killed):
    name = "ray::_AsyncHost"


class EngineCoreKilled(Killed):
    name = "VLLM::EngineCore"


class RankKilled(Killed):
    name = "ray::_Host"


class ForkServerKilled(Killed):
    """The verifier's: the one of its processes whose parent is none of them."""

    server = True

    def targets(self, command: Command) -> list[psutil.Process]:
        found = command.members("…run_fork_server")
        pids = {each.pid for each in found}
        targets: list[psutil.Process] = []
        for each in found:
            with suppress(psutil.Error):
                if (each.ppid() not in pids) == self.server:
                    targets.append(each)
        return targets


class VerifierKilled(ForkServerKilled):
    codes = (0,)
    server = False


class DriverKilled(Fault):
    codes = (-signal.SIGKILL,)
    number = signal.SIGKILL

    def strike(self, command: Command) -> bool:
        command.look(at_once=True)
        command.process.send_signal(self.number)
        return True


class Terminated(DriverKilled):
    codes = (143,)
    number = signal.SIGTERM


class CtrlC(DriverKilled):
    codes = (130,)
    number = signal.SIGINT


class NewestTruncated(DriverKilled):
    """The machine dies, and of a file that a resume reads of the newest checkpoint only half is
    there."""

    phases = (STEP,)
    first_step = 5  # so that there is a checkpoint before it
    _done = False

    def undo(self) -> None:
        if self._done:
            return
        self._done = True
        newest = (self.run.checkpoints / "latest").resolve()
        victim = self.dice.choice([newest / "state.json", *sorted(newest.glob("zero/zero/*.pt"))])
        os.truncate(victim, victim.stat().st_size // 2)
        self.detail = str(victim.relative_to(self.run.checkpoints))


class Paused(Fault):
    """Stopped for some seconds, as by a machine that swaps."""

    name = "ray::_AsyncHost"
    codes = (0,)

    def __init__(self, folder: Path, dice: random.Random):
        super().__init__(folder, dice)
        self._stopped: list[psutil.Process] = []
        self._until = 0.0

    def strike(self, command: Command) -> bool:
        for each in command.members(self.name):
            with suppress(psutil.Error):
                each.suspend()
                self._stopped.append(each)
        seconds = self.dice.uniform(3, 8)
        self._until = time.monotonic() + seconds
        self.detail = f"for {seconds:.1f} s"
        return bool(self._stopped)

    def relent(self) -> None:
        if time.monotonic() >= self._until:
            self.undo()

    def undo(self) -> None:
        while self._stopped:
            with suppress(psutil.Error):
                self._stopped.pop().resume()


class SlowDisk(Paused):
    """A checkpoint that takes some seconds more: the ranks that write it are stopped."""

    name = "ray::_Host"
    phases = (CHECKPOINT,)

    def strike(self, command: Command) -> bool:
        step = writing(self.folder)
        struck = super().strike(command)
        self.detail += f", step {step} being written" if step else ", just behind a checkpoint"
        return struck


# --- numbers, clocks, ports ---


class Planted(Fault):
    """What chaos_plugin.py does once a file of this name is there."""

    what = ""
    phases = (STEP,)
    codes = (0,)

    @property
    def _file(self) -> Path:
        return self.folder / PLANTED / self.what

    def prepare(self) -> dict[str, str]:
        self._file.parent.mkdir(parents=True)
        return {"GRPO_CHAOS_PLANTED": str(self._file.parent)}

    def strike(self, command: Command) -> bool:
        self._file.touch()
        return True

    def undo(self) -> None:
        if self._file.exists():
            self.detail = "never came to it"
            self._file.unlink()


class NanReward(Planted):
    what = "nan_reward"
    why_not = "the answer is judged again or counts as a crash of the verifier"


class NanGradient(Planted):
    what = "nan_gradient"
    why_not = "the optimizer step is left out"


class NanWeight(Planted):
    what = "nan_weight"


class ClockJump(Fault):
    codes = (0,)

    @property
    def _file(self) -> Path:
        return self.folder / CLOCK

    def prepare(self) -> dict[str, str]:
        path = f"{ROOT / 'benchmarks' / 'chaos_clock'}:{os.environ.get('PYTHONPATH', '')}"
        return {"PYTHONPATH": path, "GRPO_CHAOS_CLOCK": str(self._file)}

    def strike(self, command: Command) -> bool:
        days = self.dice.choice((-400, -3, 3, 400))
        self._file.write_text(str(days * _DAYS_S))
        self.detail = f"{days:+} days"
        return True


class PortsTaken(Fault):
    """Of the ports that systems give away, so many are taken from the start on."""

    phases = (START,)
    codes = (0,)

    def __init__(self, folder: Path, dice: random.Random):
        super().__init__(folder, dice)
        self._held: list[socket.socket] = []

    def prepare(self) -> dict[str, str]:
        low, high = map(int, _EPHEMERAL.read_text().split())
        most = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = min(_PORTS, (high - low) // 4)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(most[0], wanted + 512), most[1]))
        for port in self.dice.sample(range(low, high + 1), wanted):
            held = socket.socket()
            try:
                held.bind(("", port))
                held.listen(1)
            except OSError:  # somebody else has it
                held.close()
            else:
                self._held.append(held)
        self.detail = f"{len(self._held)} of {high - low + 1}"
        return {}

    def strike(self, command: Command) -> bool:
        return True

    def undo(self) -> None:
        while self._held:
            self._held.pop().close()
