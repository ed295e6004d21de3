"""Verifiers in processes of their own, under a deadline that nothing outlives.

    submit -> pebble's queue -> a worker judges -> Verdict
                                a worker past the deadline is killed and replaced

A keeper thread owns the processes: it starts them, replaces the whole pool should pebble give it
up, and hands what was not judged to the new one.
"""

import ctypes
import dataclasses
import importlib
import logging
import math
import multiprocessing
import os
import resource
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.synchronize import Semaphore
from types import TracebackType
from typing import Any, Self

import pebble

from grpo.errors import RunError, UserError
from grpo.types import Verdict
from grpo.verify import VERIFIERS

logger = logging.getLogger(__name__)

_START_TIMEOUT_S = 120.0  # on a busy machine the imports alone take many seconds
_POLL_S = 0.2
_ATTEMPTS = 2  # a worker may die through no fault of the answer (out of memory)
_RESTARTS = 3  # of the whole pool without a single verdict in between
_REASON_CAP = 200
_MEMORY_BYTES = 4 << 30  # that one worker may take on top of its imports
_PR_SET_PDEATHSIG = 1


@dataclasses.dataclass(eq=False)
class _Judgement:
    """One answer on its way to a verdict."""

    response: str
    answer: str
    future: Future[Verdict]
    attempts: int = 0


class VerifierPool:
    """`workers` processes that run one verifier; use it as a context manager.

    Raises UserError for an unknown verifier, wrong options or a plugin that does not import, and
    on entering RunError where the workers do not start. `counts` tells how often each reason was
    given, with all crashes under "verifier crashed".
    """

    def __init__(
        self,
        name: str,
        options: dict[str, Any],
        *,
        workers: int,
        timeout_s: float,
        plugins: tuple[str, ...] = (),
    ):
        _load(name, options, plugins)  # here a mistake is the user's, in a worker it is ours
        self.counts: Counter[str] = Counter()
        self._verifier = (name, options, plugins)
        self._workers = workers
        self._timeout_s = timeout_s
        self._context = multiprocessing.get_context("spawn")
        self._ready = self._context.Semaphore(0)
        self._lock = threading.RLock()
        self._pending: dict[_Judgement, None] = {}  # in the order of submission
        self._pool: pebble.ProcessPool | None = None
        self._restarts = 0
        self._closing = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="verifier-keeper", daemon=True)

    def __enter__(self) -> Self:
        self._keeper.start()
        deadline = time.monotonic() + _START_TIMEOUT_S
        ready = 0
        while ready < self._workers:
            ready += self._ready.acquire(timeout=_POLL_S)
            if self._restarts or time.monotonic() > deadline:
                self.close()
                raise RunError(
                    f"{self._workers} verifier workers did not start within "
                    f"{_START_TIMEOUT_S:.0f} s: what stopped them is printed above"
                )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def submit(self, response: str, answer: str) -> Future[Verdict]:
        """The future gives a verdict whatever the verifier does; `close` cancels what is left."""
        assert not self._closing.is_set(), "the verifier pool is closed"
        judgement = _Judgement(response, answer, Future())
        with self._lock:
            self._pending[judgement] = None
            self._schedule(judgement)
        return judgement.future

    def judge(self, responses: Sequence[str], answer: str) -> list[Verdict]:
        """Verdicts on all responses, in their order."""
        futures = [self.submit(response, answer) for response in responses]
        return [future.result() for future in futures]

    def close(self) -> None:
        """Kill and reap the workers, cancel what is not judged yet. May be called twice."""
        self._closing.set()
        self._keeper.join()
        with self._lock:
            abandoned = list(self._pending)
            self._pending.clear()
        for judgement in abandoned:
            judgement.future.cancel()

    def _keep(self) -> None:
        # Workers ask the kernel to die with the thread that started them (see _start_worker), so
        # they are started from this thread, which lives as long as they may.
        while not self._closing.is_set():
            pool = pebble.ProcessPool(
                max_workers=self._workers,
                initializer=_start_worker,
                initargs=(os.getpid(), self._ready, *self._verifier),
                context=self._context,  # pyright: ignore[reportArgumentType]
            )
            running = pool.active  # starts it
            with self._lock:
                self._pool = pool
                for judgement in list(self._pending):
                    self._schedule(judgement)
            while running and not self._closing.wait(_POLL_S):
                running = pool.active
            with self._lock:
                self._pool = None
            pool.stop()
            pool.join()
            if not self._closing.is_set():
                self._count_restart()

    def _count_restart(self) -> None:
        logger.warning("the verifier workers are restarted: one died between two answers")
        self._restarts += 1
        if self._restarts > _RESTARTS:
            with self._lock:
                judgements = list(self._pending)
            for judgement in judgements:
                self._finish(judgement, _crash("workers die as soon as they start"))

    def _schedule(self, judgement: _Judgement) -> None:
        """Without a pool, or with a broken one, it waits in `_pending` for the next."""
        if self._pool is None:
            return
        try:
            scheduled = self._pool.schedule(
                _judge, args=(judgement.response, judgement.answer), timeout=self._timeout_s
            )
        except RuntimeError:  # pebble's word for a broken pool; the keeper is about to see it
            return
        scheduled.add_done_callback(lambda done: self._done(judgement, done))

    def _done(self, judgement: _Judgement, done: Future[Verdict]) -> None:
        try:
            error = done.exception()
        except CancelledError:
            return
        if error is None:
            self._finish(judgement, done.result())
        elif isinstance(error, TimeoutError):
            self._finish(judgement, Verdict(0.0, "", "timeout", self._timeout_s))
        elif isinstance(error, BrokenProcessPool):
            return
        elif isinstance(error, pebble.ProcessExpired):
            judgement.attempts += 1
            if judgement.attempts < _ATTEMPTS:
                with self._lock:
                    self._schedule(judgement)
            else:
                self._finish(judgement, _crash(""))
        else:
            self._finish(judgement, _crash(_describe(error)))

    def _finish(self, judgement: _Judgement, verdict: Verdict) -> None:
        with self._lock:
            if judgement not in self._pending:
                return
            del self._pending[judgement]
            self._restarts = 0
            self.counts[verdict.reason.split(":")[0]] += 1
        if judgement.future.set_running_or_notify_cancel():
            judgement.future.set_result(verdict)


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _crash(what: str, seconds: float = 0.0) -> Verdict:
    reason = f"verifier crashed: {what}" if what else "verifier crashed"
    return Verdict(0.0, "", reason[:_REASON_CAP], seconds)


def _load(
    name: str, options: dict[str, Any], plugins: tuple[str, ...]
) -> Callable[[str, str], Verdict]:
    for plugin in plugins:
        try:
            importlib.import_module(plugin)
        except ImportError as error:
            raise UserError(
                f"plugins: {plugin!r} cannot be imported ({error}): expected the dotted name of a "
                "module; install it or put its folder on PYTHONPATH"
            ) from error
    return VERIFIERS.bind(name, options)


_verifier: Callable[[str, str], Verdict] | None = None  # of this worker


def _start_worker(
    driver_pid: int, ready: Semaphore, name: str, options: dict[str, Any], plugins: tuple[str, ...]
) -> None:
    """Runs in each worker before it takes an answer, so imports never count as judging."""
    global _verifier
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's to handle
    # Die at once when pebble stops a worker: a Python handler would wait for the end of a
    # long integer operation, and the whole pool would wait with it.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if sys.platform == "linux":
        # A driver killed with SIGKILL cannot stop its workers; the kernel does. Elsewhere a worker
        # notices the closed pipe after the answer that it is judging.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != driver_pid:  # it died before the line above
            os._exit(1)
    _verifier = _load(name, options, plugins)
    _limit_memory()
    ready.release()


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


def _judge(response: str, answer: str) -> Verdict:
    assert _verifier is not None
    start = time.perf_counter()
    try:
        verdict = _verifier(response, answer)
        if not math.isfinite(verdict.reward):
            raise ValueError(f"reward {verdict.reward} is not finite")
    except Exception as error:  # foreign code on hostile text: what it raises is the verdict
        return _crash(_describe(error), time.perf_counter() - start)
    return dataclasses.replace(verdict, seconds=time.perf_counter() - start)
