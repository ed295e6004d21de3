"""Which level of isolation this machine gives, found by trying it."""

import functools
from dataclasses import dataclass
from typing import Literal

from grpo.errors import RunError, UserError
from grpo.verify.sandbox.host import Allowance, Sandbox
from grpo.verify.sandbox.launch import LevelName, Limits, bubblewrap_obstacle, machine_obstacle

_LIMITS = Limits(memory_mb=512, processes=8, scratch_mb=1)
_ALLOWANCE = Allowance(cpu_s=10.0, wall_s=20.0, output_bytes=4096)

# Children until the limit holds, at most two more than it allows; interfaces; a file of the host.
_PROGRAM = f"""
import os, signal
children = 0
try:
    for _ in range({_LIMITS.processes + 1}):
        if os.fork() == 0:
            signal.pause()
        children += 1
except BlockingIOError:
    pass
with open("/proc/net/dev") as file:
    interfaces = [line.split(":")[0].strip() for line in file if ":" in line]
print(children, interfaces, os.path.exists("/etc/passwd"), os.listdir("."))
"""
_EXPECTED = f"{_LIMITS.processes - 1} ['lo'] False []\n".encode()


@dataclass(frozen=True, slots=True)
class Level:
    """The best level that works here. `obstacles` says why each better one does not."""

    name: Literal["bubblewrap", "namespaces", "none"]
    obstacles: tuple[str, ...]

    def __str__(self) -> str:
        what = {
            "bubblewrap": "bubblewrap: programs run in namespaces set up by bwrap",
            "namespaces": "namespaces: programs run in namespaces set up by grpo itself",
            "none": "none: programs run only where allow_unsandboxed is true",
        }[self.name]
        return "; ".join([what, *self.obstacles])


@functools.cache
def level() -> Level:
    """Tries bubblewrap, then namespaces. A fraction of a second, once in a process."""
    found = []
    for name in ("bubblewrap", "namespaces"):
        obstacle = why_not(name)
        if obstacle is None:
            return Level(name, tuple(found))
        found.append(f"{name}: {obstacle}")
    return Level("none", tuple(found))


@functools.cache
def why_not(name: LevelName) -> str | None:
    """Why the level does not work here; None where it does: a sandbox starts, holds its process
    limit, and sees no network interface and no file of the host."""
    obstacle = machine_obstacle()
    if obstacle is None and name == "bubblewrap":
        obstacle = bubblewrap_obstacle()
    if obstacle is not None:
        return obstacle
    try:
        with Sandbox(_LIMITS, name) as sandbox:
            outcome = sandbox.run(_PROGRAM, b"", _ALLOWANCE)
    except RunError as error:
        return str(error)
    if outcome.stdout != _EXPECTED:
        said = (outcome.stdout + outcome.stderr_tail).decode(errors="replace").strip()
        return f"its limits do not hold: {outcome.status}, {said[-200:]!r}"
    return None


def choose_level(allow_unsandboxed: bool) -> LevelName:
    """The level to run at. Raises UserError where there is none and none is not allowed."""
    best = level()
    if best.name != "none":
        return best.name
    if machine_obstacle() is None and allow_unsandboxed:
        return "unsandboxed"
    raise UserError(
        f"no sandbox for programs on this machine ({'; '.join(best.obstacles)}): install "
        "bubblewrap and allow user namespaces (docs/sandbox.md says how), or set the verifier's "
        "option allow_unsandboxed: true, which runs what the model writes as your own user"
    )
