"""The pool's side of its processes: the fork server that forks workers, and the workers."""

import dataclasses
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.reduction import send_handle
from typing import Any, Self

from grpo.types import Verdict

_START = (
    "import sys; sys.path[:] = sys.argv[3:]; from grpo.verify.worker import run_fork_server; "
    "run_fork_server(int(sys.argv[1]), int(sys.argv[2]))"
)
_POLL_S = 0.2
_REPLY_S = 60.0  # a fork and a kill take milliseconds, on a machine out of memory much longer
_EXIT_S = 5.0
_SEND_S = 5  # a worker that waits for an answer reads it at once


class ForkServerGone(Exception):
    """The fork server process does not answer: it did not start, or it died."""


@dataclasses.dataclass(eq=False)
class Submission:
    """One answer on its way to a verdict."""

    response: str
    answer: str
    facts: Mapping[str, Any]
    future: Future[Verdict]
    attempts: int = 0

    @property
    def size(self) -> int:
        return len(self.response) + len(self.answer) + len(self.facts["problem"])


@dataclasses.dataclass(eq=False)
class Worker:
    """A process and the answer that it is judging, if any; `deadline` is time.monotonic()'s."""

    pid: int
    pipe: Connection
    submission: Submission | None = None
    deadline: float = 0.0
    judged: int = 0

    def give(self, submission: Submission, timeout_s: float) -> None:
        """Raises OSError where the process is gone or does not read."""
        self.submission = submission
        self.deadline = time.monotonic() + timeout_s
        self.pipe.send((submission.response, submission.answer, submission.facts))


class ForkServer:
    """Starts a process that imports the verifier and forks workers; see grpo/verify/worker.py.

    Raises ForkServerGone, from every method, where that process fails; what it said stands on
    standard error. The thread that starts it must live as long as it: the kernel ends them
    together.
    """

    def __init__(self, name: str, options: dict[str, Any], plugins: tuple[str, ...]):
        self._control, theirs = Pipe()
        handle = theirs.fileno()
        # Not by multiprocessing, which would run the caller's main script in it once more.
        arguments = [sys.executable, "-u", "-c", _START, str(handle), str(os.getpid()), *sys.path]
        with theirs:
            self._process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                pass_fds=[handle],
                start_new_session=True,  # Ctrl-C is the driver's to handle
            )
        with suppress(OSError):  # it is gone, as `wait_ready` finds out
            self._control.send((name, options, plugins))

    def wait_ready(self, timeout_s: float, stop: Callable[[], bool]) -> Self:
        """Imports take seconds, on a busy machine many."""
        deadline = time.monotonic() + timeout_s
        while not self._control.poll(_POLL_S):
            if stop() or time.monotonic() > deadline:
                raise ForkServerGone(f"the verifier was not imported within {timeout_s:.0f} s")
        self._receive()
        return self

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def fork(self) -> Worker | None:
        """None where the system gives no more processes."""
        ours, theirs = Pipe()
        try:
            with theirs:
                self._control.send("fork")
                send_handle(self._control, theirs.fileno(), self._process.pid)
            pid = self._receive()
        except (OSError, ForkServerGone) as error:
            ours.close()
            raise ForkServerGone(str(error)) from error
        if pid == 0:
            ours.close()
            return None
        _limit_sending(ours)
        return Worker(pid, ours)

    def end(self, worker: Worker) -> None:
        """Kills and reaps it, with what it started."""
        worker.pipe.close()
        try:
            self._control.send(worker.pid)
        except OSError as error:
            raise ForkServerGone(str(error)) from error
        self._receive()

    def close(self) -> None:
        """The process exits by itself when its socket closes; workers that are left die too."""
        self._control.close()
        try:
            self._process.wait(_EXIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_EXIT_S)

    def _receive(self) -> Any:
        try:
            if self._control.poll(_REPLY_S):
                return self._control.recv()
        except (EOFError, OSError) as error:
            raise ForkServerGone(f"it ended with exit code {self._process.poll()}") from error
        raise ForkServerGone(f"it gave no reply within {_REPLY_S:.0f} s")


def _limit_sending(pipe: Connection) -> None:
    """Without it a worker that does not read could block the pool with an answer longer than the
    pipe's buffer."""
    with socket.socket(fileno=os.dup(pipe.fileno())) as view:
        view.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", _SEND_S, 0))
