"""What runs in a verifier pool's other processes.

    fork server imports the verifier once, and forks a worker whenever the pool asks for one
    worker      judges one answer after the other until its pipe closes, or the pool kills it

A fork takes milliseconds where a fresh interpreter takes seconds to import sympy, so replacing a
worker costs next to nothing. The fork server itself judges nothing and has one thread; what a
plugin starts or opens on import (threads, CUDA) does not survive the fork.
"""

import ctypes
import dataclasses
import math
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle
from pathlib import Path
from typing import Any, NoReturn

from grpo.parent import die_with_parent
from grpo.plugins import import_plugins
from grpo.registry import call
from grpo.types import MOST_REWARD, Verdict
from grpo.verify import VERIFIERS

Verifier = Callable[..., Verdict]  # see grpo/verify/registry.py

_MEMORY_BYTES = 4 << 30  # that one worker may take on top of its imports
_PR_SET_CHILD_SUBREAPER = 36
_REASON_CAP = 200
_REAP_EVERY_S = 1.0
# What reading and writing raise once the pool is closed, or its process is gone.
_GONE = (EOFError, BrokenPipeError, ConnectionResetError)
_PARSED_CAP = 10_000  # a verdict fits into the pipe's buffer, so sending it never blocks

# What is built on a first answer is built before the fork, so that every worker has it. math: the
# tables that sympy and ANTLR make for the first expressions of a kind, 0.4 s in all. code: what
# level of isolation the machine gives, which takes two sandboxes to find out.
_WARM_UP = {
    "math": (
        (r"\boxed{\frac{1}{2}}", "$x^2+1$"),
        (r"\boxed{\sqrt{3} \cdot \frac{1}{2}}", "2"),
        (r"\boxed{(x+1)^2}", "x^2+2x+2"),
        (r"\boxed{\{1, \pi\}}", "(1, 2]"),
        (r"The answer is \boxed{$3$}.", "(4, 5)"),
    ),
    "code": (("```python\nprint(1)\n```", '{"inputs": [""], "outputs": ["1"]}'),),
}


def load(name: str, options: dict[str, Any], plugins: tuple[str, ...]) -> Verifier:
    """The verifier with its options. Raises UserError for an unknown name, a wrong option or a
    plugin that does not import."""
    import_plugins(plugins)
    return VERIFIERS.bind(name, options)


def crash(what: str, seconds: float = 0.0) -> Verdict:
    reason = f"verifier crashed: {what}" if what else "verifier crashed"
    return Verdict(0.0, "", reason[:_REASON_CAP], seconds)


def run_fork_server(handle: int, driver_pid: int) -> None:
    """Serves the pool on the socket `handle` until it is closed.

    First comes (name, options, plugins), answered by "ready". Then "fork" with a socket for the
    new worker, answered by its pid, or by 0 where the system gives no more processes; or a pid,
    which is killed with its whole process group and answered by its wait status.
    """
    die_with_parent(driver_pid)
    control = Connection(handle)
    try:
        asked_for = control.recv()
    except _GONE:
        return
    verifier = _warmed_up(*asked_for)
    _adopt_orphans()
    with suppress(*_GONE):
        control.send("ready")
        _serve(control, verifier)


def _warmed_up(name: str, options: dict[str, Any], plugins: tuple[str, ...]) -> Verifier:
    verifier = load(name, options, plugins)
    for response, answer in _WARM_UP.get(name, ()):
        verifier(response, answer)
    if plugins:  # a plugin's verifier may well ask `math`
        for response, answer in _WARM_UP["math"]:
            VERIFIERS["math"](response, answer)
    return verifier


def _serve(control: Connection, verifier: Verifier) -> NoReturn:
    """Ends by raising what says that nobody asks any more."""
    workers: set[int] = set()
    while True:
        while not control.poll(_REAP_EVERY_S):
            _reap_orphans(workers)
        command = control.recv()
        if command == "fork":
            pid = _fork(control, verifier)
            workers.add(pid)
            control.send(pid)
        else:
            workers.discard(command)
            control.send(_end(command))


def _fork(control: Connection, verifier: Verifier) -> int:
    handle = recv_handle(control)
    server_pid = os.getpid()
    try:
        pid = os.fork()
    except OSError:
        pid = 0
    else:
        if pid == 0:
            control.close()
            _work(Connection(handle), verifier, server_pid)
    os.close(handle)
    return pid


def _end(pid: int) -> int:
    """Only here is a worker reaped, so until then its number belongs to nobody else."""
    for kill in (os.killpg, os.kill):
        with suppress(ProcessLookupError):
            kill(pid, signal.SIGKILL)
    return os.waitpid(pid, 0)[1]


def _adopt_orphans() -> None:
    """What a killed worker had started (a sandbox dies with it) is left to this process, not to the
    machine's init, which in a container may reap nothing."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _reap_orphans(workers: set[int]) -> None:
    """Waits for those that have ended."""
    with suppress(OSError):  # a kernel without this file, or one of them is gone already
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        for pid in set(map(int, children)) - workers:
            os.waitpid(pid, os.WNOHANG)


def _work(pipe: Connection, verifier: Verifier, server_pid: int) -> NoReturn:
    """What the fork server would do next is not for a worker, so this never returns."""
    try:
        os.setsid()  # what it starts is killed with it
        die_with_parent(server_pid)
        _limit_memory()
        while True:
            response, answer, facts = pipe.recv()
            pipe.send(judge(verifier, response, answer, facts))
    except _GONE:
        os._exit(0)
    finally:
        os._exit(1)


def judge(
    verifier: Verifier, response: str, answer: str, facts: Mapping[str, Any]
) -> tuple[Verdict, bool]:
    """(the verdict, whether the process is spent and must not judge again)."""
    start = time.perf_counter()
    try:
        verdict = call(verifier, response, answer, **facts)
        plain = Verdict(_reward(verdict), str(verdict.parsed)[:_PARSED_CAP], str(verdict.reason))
    except MemoryError as error:  # maybe what earlier answers left behind
        return crash(_describe(error), time.perf_counter() - start), True
    except BaseException as error:  # foreign code on hostile text: what it raises is the verdict
        return crash(_describe(error), time.perf_counter() - start), False
    return dataclasses.replace(plain, seconds=time.perf_counter() - start), False


def _reward(verdict: Any) -> float:
    """Of what a verifier gave, which may be anything."""
    if not isinstance(verdict, Verdict):
        raise TypeError(f"it gave {type(verdict).__name__}, and a verdict is grpo.types.Verdict")
    reward: Any = verdict.reward
    if isinstance(reward, str | bytes):  # float() would read it
        raise TypeError(f"reward {reward!r} is text: give a number")
    if not math.isfinite(reward):
        raise ValueError(f"reward {reward} is not finite")
    if abs(reward) > MOST_REWARD:
        raise ValueError(f"reward {reward} is beyond {MOST_REWARD:,.0f}: scale it down")
    return float(reward)


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _limit_memory() -> None:
    """Python integers grow without bound: end in MemoryError, not in a machine out of memory."""
    if sys.platform != "linux":
        return
    with open("/proc/self/statm", encoding="ascii") as statm:
        mapped = int(statm.read().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = mapped + _MEMORY_BYTES
    if hard == resource.RLIM_INFINITY or wanted < hard:
        resource.setrlimit(resource.RLIMIT_AS, (wanted, hard))
