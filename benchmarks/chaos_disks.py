"""The faults of chaos.py that are full disks."""

import ctypes
import errno
import math
import os
import random
import subprocess
import time
from pathlib import Path

from benchmarks.chaos_faults import EVALUATION, ONCE_IT_LEARNS, STEP, Fault
from benchmarks.chaos_run import Command

_CLONE_NEWNS = 0x00020000
_DISK = "64m"
_FILLER = ".filler"
_SOON_S = 3.0
_UNNOTICED_S = 120.0  # for a disk that the run does not write to any more


def keep_mounts_private() -> str:
    """From here on, mounts are seen by this process and its children alone, and go with them. Why
    that cannot be had, if it cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS):
        return f"no mounts here: {os.strerror(ctypes.get_errno())}"
    done = subprocess.run(["mount", "--make-rprivate", "/"], capture_output=True, text=True)
    return "" if done.returncode == 0 else f"no mounts here: {done.stderr.strip()}"


class FullDisk(Fault):
    """A folder of the run is a disk of its own, which fills up. In half of the rounds somebody
    makes room soon after it has been noticed; in the others, once the run has ended."""

    codes = (0, 2)
    phases = ONCE_IT_LEARNS
    place = ""

    def __init__(self, folder: Path, dice: random.Random):
        super().__init__(folder, dice)
        self._mounted = self._is_full = False
        self._is_freed = dice.random() < 0.5
        self._struck_at = self._room_at = 0.0
        self._command: Command | None = None

    @property
    def disk(self) -> Path:
        return self.run.path / self.place

    def prepare(self) -> dict[str, str]:
        self.disk.mkdir(parents=True)
        arguments = ["mount", "-t", "tmpfs", "-o", f"size={_DISK}", "tmpfs", str(self.disk)]
        subprocess.run(arguments, check=True)
        self._mounted = True
        return {}

    def strike(self, command: Command) -> bool:
        self._command, self._struck_at = command, time.monotonic()
        self.detail = "room made in time" if self._is_freed else "room made after the end"
        self._is_full = True
        with (self.disk / _FILLER).open("wb", buffering=0) as filler:
            try:
                while True:
                    filler.write(bytes(1 << 16))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
        return True

    def relent(self) -> None:
        if not self._is_full or self._command is None:
            return
        now = time.monotonic()
        if not self._room_at:
            if "disk.wait_minutes" in self._command.text():
                self._room_at = now + self.dice.uniform(0, _SOON_S) if self._is_freed else math.inf
            elif now > self._struck_at + _UNNOTICED_S:
                self._room_at = now
        elif now >= self._room_at:
            self._free()

    def _free(self) -> None:
        if self._is_full:
            (self.disk / _FILLER).unlink(missing_ok=True)
            self._is_full = False

    def undo(self) -> None:
        self._free()

    def clear(self) -> None:
        if self._mounted:
            subprocess.run(["umount", "--lazy", str(self.disk)], check=True)
            self._mounted = False


class NoRoomForRollouts(FullDisk):
    place = "rollouts"
    phases = (STEP,)


class NoRoomForCheckpoints(FullDisk):
    place = "checkpoints"


class NoRoomForEvaluations(FullDisk):
    place = "eval"
    phases = (EVALUATION, EVALUATION, STEP)


class NoRoomForMetrics(FullDisk):
    """metrics.jsonl is a link to a file on that disk."""

    place = "metrics_disk"
    phases = (STEP,)

    def prepare(self) -> dict[str, str]:
        made = super().prepare()
        self.run.metrics.symlink_to(self.disk / "metrics.jsonl")
        return made
