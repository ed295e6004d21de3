"""Judges in processes of their own, with a hard deadline for each answer.

A verifier can hang in compiled code where no alarm reaches it, or take its process down. Here the
process past its deadline is killed and replaced, and every answer gets exactly one verdict.
"""

import importlib
import multiprocessing
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from pebble import ProcessExpired, ProcessPool

from grpo.types import Verdict

_START_TIMEOUT_S = 120.0
_REASON_CAP = 200
_judge: Callable[[str, str], Verdict] | None = None


def _start_worker(
    name: str, options: dict[str, Any], plugins: tuple[str, ...], parent: int
) -> None:
    """Runs once in every worker, before its first answer's deadline starts."""
    global _judge
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the driver to handle
    threading.Thread(target=_die_with, args=(parent,), daemon=True).start()
    for plugin in plugins:
        importlib.import_module(plugin)
    from grpo.verify import VERIFIERS

    _judge = VERIFIERS.bind(name, options)


def _die_with(parent: int) -> None:
    """Ends this worker when the driver is gone, even by kill -9."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def _judge_one(response: str, answer: str) -> Verdict:
    assert _judge is not None, "the worker was not started"
    return _judge(response, answer)


def _nothing() -> None:
    """Comes back when a worker is up."""


class VerifierPool:
    """A context manager; `submit` never raises what a verifier raises, it becomes the verdict."""

    def __init__(
        self,
        name: str,
        options: dict[str, Any],
        *,
        workers: int,
        timeout_s: float,
        plugins: tuple[str, ...] = (),
    ):
        self._timeout_s = timeout_s
        self._workers = workers
        self._lock = threading.Lock()
        self.counts: Counter[str] = Counter()
        self._pool = ProcessPool(
            max_workers=workers,
            initializer=_start_worker,
            initargs=(name, options, plugins, os.getpid()),
            context=multiprocessing.get_context("spawn"),
        )

    def __enter__(self) -> "VerifierPool":
        waiting = [self._pool.schedule(_nothing) for _ in range(self._workers)]
        for started in waiting:
            started.result(timeout=_START_TIMEOUT_S)
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(self, response: str, answer: str) -> Future[Verdict]:
        """A future verdict: "timeout" past the deadline; where its worker died the answer is
        judged once more and then "verifier crashed"."""
        verdict: Future[Verdict] = Future()
        self._schedule(verdict, response, answer, tries_left=1)
        return verdict

    def judge(self, responses: Sequence[str], answer: str) -> list[Verdict]:
        """Waits for all, in order."""
        return [future.result() for future in [self.submit(r, answer) for r in responses]]

    def close(self) -> None:
        """Kills the workers and reaps them."""
        self._pool.stop()
        self._pool.join()

    def _schedule(
        self, verdict: Future[Verdict], response: str, answer: str, tries_left: int
    ) -> None:
        started = time.monotonic()

        def done(future: Future[Verdict]) -> None:
            seconds = time.monotonic() - started
            error = future.exception()
            if isinstance(error, ProcessExpired) and tries_left:
                self._schedule(verdict, response, answer, tries_left - 1)
                return
            if error is None:
                result = future.result()
            elif isinstance(error, TimeoutError):
                result = Verdict(0.0, "", "timeout", seconds)
            elif isinstance(error, ProcessExpired):
                result = Verdict(0.0, "", "verifier crashed", seconds)
            else:
                said = f"verifier crashed: {type(error).__name__}: {error}"
                result = Verdict(0.0, "", said[:_REASON_CAP], seconds)
            with self._lock:
                self.counts[result.reason.partition(":")[0]] += 1
            verdict.set_result(result)

        future = self._pool.schedule(_judge_one, args=[response, answer], timeout=self._timeout_s)
        future.add_done_callback(done)
