"""What every attack is held to: nothing is left of it, and this process has not grown."""

import ctypes
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from grpo.verify.sandbox import Allowance, LevelName, Limits, Sandbox, why_not

LEVELS: tuple[LevelName, ...] = ("bubblewrap", "namespaces")
WORKING = [name for name in LEVELS if why_not(name) is None]

LIMITS = Limits(memory_mb=256, processes=16, file_mb=4, scratch_mb=8)
SHORT = Allowance(cpu_s=1.0, wall_s=2.0, output_bytes=1 << 20)
# For what ends by itself, on a busy machine.
LONG = Allowance(cpu_s=5.0, wall_s=30.0, output_bytes=1 << 20)
LATEST_S = 60.0  # a deadline, and killing and reaping on a busy machine
GROWTH_KB = 64 << 10
_PR_SET_CHILD_SUBREAPER = 36


@pytest.fixture(params=WORKING or ["none"])
def level(request: pytest.FixtureRequest) -> LevelName:
    if request.param == "none":
        pytest.skip("; ".join(f"{name}: {why_not(name)}" for name in LEVELS))
    return request.param


@pytest.fixture
def sandbox(level: LevelName) -> Iterator[Sandbox]:
    with Sandbox(LIMITS, level) as opened:
        yield opened


def parents() -> dict[int, int]:
    """Every process, zombies included, with its parent."""
    found: dict[int, int] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                stat = (folder / "stat").read_bytes()
            except OSError:
                continue
            found[int(folder.name)] = int(stat.rpartition(b")")[2].split()[1])
    return found


def descendants() -> set[int]:
    parent_of = parents()
    mine = {os.getpid()}
    while True:
        more = {pid for pid, parent in parent_of.items() if parent in mine} | mine
        if more == mine:
            return mine - {os.getpid()}
        mine = more


def peak_kb() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1])
    raise AssertionError("no VmHWM")


@pytest.fixture(autouse=True)
def contained() -> Iterator[None]:
    """Orphans come to this process, so whatever is left is among its descendants."""
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)
    before = descendants()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    peak_before_kb = peak_kb()
    start = time.monotonic()
    yield
    took_s = time.monotonic() - start
    left = descendants() - before
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 0)
    assert left == set(), "processes are left"
    assert peak_kb() - peak_before_kb < GROWTH_KB
    assert took_s < LATEST_S
