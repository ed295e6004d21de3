"""A sandbox as the verifier holds it: start, run programs in it one after the other, close.

    with Sandbox(Limits(memory_mb=512)) as sandbox:
        outcome = sandbox.run("print(int(input()) + 1)", b"41", Allowance(cpu_s=2, wall_s=4))

Nothing that comes out of it is trusted: output is bytes up to a limit, and what it means is for
the caller to decide. Every wait has a deadline; past it the whole sandbox is killed.
"""

import contextlib
import os
import resource
import select
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self

from grpo.errors import RunError
from grpo.verify.sandbox import guest
from grpo.verify.sandbox.launch import LevelName, Limits, command, environment

_START_S = 20.0  # on a busy machine
_STOP_S = 5.0  # for the guest to kill and reap
_POLL_MS = 50
_CHUNK = 1 << 16
_STDERR_TAIL = 4096
_STACK_BYTES = 64 << 20  # recursion through C code, as judges of contests allow
_CREDENTIALS = struct.Struct("3i")

Status = Literal["exit", "time", "memory", "output", "lost"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one run ended.

    status: "exit": by itself, or by a signal of its own; "time", "memory", "output": it was stopped
        past that limit; "lost": the sandbox broke down under it
    code: exit code, negative for a signal
    stdout: all of it, up to the limit; stderr_tail: the last 4 KiB
    """

    status: Status
    code: int
    stdout: bytes
    stderr_tail: bytes
    cpu_s: float
    wall_s: float


@dataclass(frozen=True, slots=True)
class Allowance:
    """What one run may take, over and above the sandbox's limits. CPU seconds are those of all its
    processes; output is that of stdout, and again that of stderr."""

    cpu_s: float
    wall_s: float
    output_bytes: int = 16 << 20


class Sandbox:
    """One sandbox; use it as a context manager, from one thread.

    Raises RunError on entering where it does not start.
    """

    def __init__(self, limits: Limits, level: LevelName):
        self._limits = limits
        self.level: LevelName = level
        self._scratch = ""
        self._guest_pidfd = -1

    def __enter__(self) -> Self:
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.control.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        if self.level == "unsandboxed":
            self._scratch = tempfile.mkdtemp(prefix="grpo-unsandboxed-")
        with theirs, tempfile.TemporaryFile() as complaints, _large_stack():
            self._process = subprocess.Popen(
                command(self.level, theirs.fileno(), self._limits, self._scratch),
                pass_fds=[theirs.fileno()],
                env=environment(self.level, self._limits.packages),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=complaints,
                start_new_session=True,
                cwd="/",
            )
            theirs.close()
            pid = self._hello()
            if pid is None:
                complaints.seek(0)
                said = complaints.read(1 << 16).decode(errors="replace").strip()
                self.close()
                raise RunError(f"the {self.level} sandbox did not start: {last_line(said)}")
        self._guest_pidfd = os.pidfd_open(pid)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _hello(self) -> int | None:
        """The guest's process id as this side knows it; None where it does not answer in time."""
        self.control.settimeout(_START_S)
        try:
            word, ancillary, _, _ = self.control.recvmsg(64, socket.CMSG_SPACE(_CREDENTIALS.size))
        except TimeoutError:
            return None
        if word != guest.READY:
            return None
        pid, _, _ = _CREDENTIALS.unpack(ancillary[0][2])
        return pid

    def run(self, source: str, stdin: bytes, allowance: Allowance) -> Outcome:
        """Runs Python text to its end or to a limit."""
        return run_together([self.begin(source, stdin, allowance)])[0]

    def begin(
        self, source: str, stdin: bytes, allowance: Allowance, channel: int | None = None
    ) -> "Run":
        """Starts a run. `channel`: a descriptor that the program finds as number 3."""
        stdout, stdout_w = os.pipe()
        stderr, stderr_w = os.pipe()
        passed = [_in_memory(source.encode("utf-8", "replace")), _in_memory(stdin)]
        passed += [stdout_w, stderr_w]
        request = guest.REQUEST.pack(allowance.cpu_s)
        run = Run(self, (stdout, stderr), allowance)
        try:
            sent = passed if channel is None else [*passed, channel]
            socket.send_fds(self.control, [request], sent)
        except OSError:  # the guest is gone
            run.lose()
        for fd in passed:
            os.close(fd)
        return run

    def kill(self) -> None:
        """Kills the sandbox and all in it; the kernel needs no help from inside."""
        if self._guest_pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._guest_pidfd, signal.SIGKILL)
        else:
            self._process.kill()

    def close(self) -> None:
        """Ends and reaps every process of the sandbox. May be called twice."""
        self.control.close()
        for kill in (self.kill, self._process.kill):
            try:
                self._process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                kill()
        self._process.wait()
        if self._guest_pidfd >= 0:
            os.close(self._guest_pidfd)
            self._guest_pidfd = -1
        if self._scratch:
            shutil.rmtree(self._scratch, ignore_errors=True)
            self._scratch = ""


class Run:
    """One run under way. Its output is read as it comes and kept up to the limit."""

    def __init__(self, sandbox: Sandbox, streams: tuple[int, int], allowance: Allowance):
        self._sandbox = sandbox
        self._open = set(streams)
        self._stdout_fd = streams[0]
        self._stdout, self._stderr_tail = bytearray(), b""
        self._stderr_bytes = 0
        self._allowance = allowance
        self._start = time.monotonic()
        self._deadline = self._start + allowance.wall_s
        self._status: Status = "exit"
        self._stopped = False
        self._reply: tuple[int, float] = (0, 0.0)
        self.finished = False

    def lose(self) -> None:
        self._status, self.finished = "lost", True

    def wait_on(self) -> list[int]:
        control = [] if self.finished else [self._sandbox.control.fileno()]
        return [*self._open, *control]

    def proceed(self, ready: set[int]) -> None:
        """Reads what there is, and stops the run that is past its deadline."""
        for fd in self._open & ready:
            self._read(fd)
        if not self.finished and self._sandbox.control.fileno() in ready:
            self._read_reply()
        if self.finished or time.monotonic() < self._deadline:
            return
        if not self._stopped:
            self.stop("time")
        else:  # it does not even obey the guest's SIGKILL
            self._sandbox.kill()
            self.lose()

    def stop(self, why: Status) -> None:
        """Kills the processes of the run; the sandbox stays."""
        if self.finished or self._stopped:
            return
        self._status, self._stopped = why, True
        self._deadline = time.monotonic() + _STOP_S
        with contextlib.suppress(OSError):  # the guest is gone: the next read says so
            self._sandbox.control.send(guest.STOP)

    def _read(self, fd: int) -> None:
        data = os.read(fd, _CHUNK)
        if not data:
            os.close(fd)
            self._open.discard(fd)
        elif fd == self._stdout_fd:
            self._stdout += data[: self._allowance.output_bytes - len(self._stdout)]
            if len(self._stdout) >= self._allowance.output_bytes:
                self.stop("output")
        else:
            self._stderr_tail = (self._stderr_tail + data)[-_STDERR_TAIL:]
            self._stderr_bytes += len(data)
            if self._stderr_bytes >= self._allowance.output_bytes:
                self.stop("output")

    def _read_reply(self) -> None:
        self.finished = True
        try:
            reply = self._sandbox.control.recv(64)
        except OSError:
            reply = b""
        if len(reply) != guest.REPLY.size:
            self.lose()
            return
        status, cpu_s, over_memory = guest.REPLY.unpack(reply)
        self._reply = (os.waitstatus_to_exitcode(status), cpu_s)
        if self._status == "exit" and over_memory:
            self._status = "memory"
        elif self._status == "exit" and cpu_s > self._allowance.cpu_s:
            self._status = "time"

    def outcome(self) -> Outcome:
        """After its end. What is still in the pipes is read: nobody is left to write to them."""
        wall_s = time.monotonic() - self._start
        while self._open:
            ready, _, _ = select.select(list(self._open), [], [], 0)
            for fd in ready:
                self._read(fd)
            if not ready:  # somebody unsandboxed has escaped with it
                for fd in self._open:
                    os.close(fd)
                self._open = set()
        code, cpu_s = self._reply
        return Outcome(self._status, code, bytes(self._stdout), self._stderr_tail, cpu_s, wall_s)


def run_together(runs: Sequence[Run]) -> list[Outcome]:
    """Outcomes once the first of the runs has ended, which stops the others."""
    while not all(run.finished for run in runs):
        poller = select.poll()
        for run in runs:
            for fd in run.wait_on():
                poller.register(fd, select.POLLIN)
        ready = {fd for fd, _ in poller.poll(_POLL_MS)}
        for run in runs:
            run.proceed(ready)
        if runs[0].finished:
            for run in runs[1:]:
                run.stop("exit")
    return [run.outcome() for run in runs]


def _in_memory(data: bytes) -> int:
    """A descriptor of a file that holds the data and has no name."""
    fd = os.memfd_create("run")
    with open(fd, "wb", closefd=False) as file:
        file.write(data)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


@contextlib.contextmanager
def _large_stack() -> Iterator[None]:
    """A process gets the layout for its largest stack from whoever starts it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    wanted = _STACK_BYTES if hard == resource.RLIM_INFINITY else min(_STACK_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_STACK, (wanted, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_STACK, (soft, hard))


def last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1][:200] if lines else "it said nothing"
