"""Verifiers in processes of their own, under a deadline that nothing outlives.

    submit -> queue -> a worker judges one answer -> Verdict
                       past the deadline it is killed and replaced

One thread, the dispatcher, hands answers out, takes verdicts in and watches the deadlines. Each
worker has a pipe of its own and one answer at a time, so a death is nobody else's and is known at
once. One worker more than asked for stands by: where one dies, the next answer waits for nothing.
An answer's deadline begins when a worker gets it; time in the queue does not count.
"""

import logging
import selectors
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from multiprocessing import Pipe
from types import TracebackType
from typing import Any, Self

from grpo.errors import RunError
from grpo.types import Verdict
from grpo.verify.fork_server import ForkServer, ForkServerGone, Submission, Worker
from grpo.verify.worker import crash, load

logger = logging.getLogger(__name__)

_START_TIMEOUT_S = 120.0  # on a busy machine the imports alone take many seconds
_RETRY_S = 0.5  # after workers could not be started; doubled each time
_LONGEST_RETRY_S = 30.0
_ATTEMPTS = 2  # a worker may die through no fault of the answer (out of memory)
_STARTS = 3  # that fail in a row before those who wait get an error
_JUDGED_BY_ONE = 10_000  # answers; what sympy's caches and leaks have gathered goes with the worker
# What the queue and the workers hold at once; `submit` waits where there is no room.
_MOST_ANSWERS = 1024
_MOST_CHARACTERS = 64 << 20


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
        load(name, options, plugins)  # here a mistake is the user's, in the fork server it is ours
        self.counts: Counter[str] = Counter()
        self._verifier = (name, options, plugins)
        self._num_workers = workers
        self._timeout_s = timeout_s
        # Guards the three below, and wakes who waits for room or for the start.
        self._changed = threading.Condition()
        self._waiting: deque[Submission] = deque()
        self._pending: dict[Submission, None] = {}  # waiting or with a worker, by submission
        self._characters = 0  # of the pending
        self._started = False
        self._closing = False
        self._broken: BaseException | None = None
        # The dispatcher's own.
        self._fork_server: ForkServer | None = None
        self._workers: list[Worker] = []
        self._dead: list[Worker] = []  # to be killed, if they still live, and reaped
        self._failed_starts = 0
        self._retry_at = 0.0
        self._selector = selectors.DefaultSelector()
        self._bell, self._button = Pipe(duplex=False)
        self._rung = False
        self._dispatcher = threading.Thread(
            target=self._dispatch, name="verifier-dispatcher", daemon=True
        )

    def __enter__(self) -> Self:
        self._dispatcher.start()
        try:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._started or self._failed_starts or self._broken, _START_TIMEOUT_S
                )
        except BaseException:
            self.close()
            raise
        if not self._started:
            self.close()
            raise RunError("the verifier's workers do not start: what stops them is printed above")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def submit(
        self,
        response: str,
        answer: str,
        *,
        problem: str = "",
        truncated: bool = False,
        thinking: bool = False,
    ) -> Future[Verdict]:
        """The future gives a verdict whatever the verifier does; `close` cancels what is left.
        What follows `answer` is for verifiers that ask for it (grpo/verify/registry.py).

        Waits while the pool holds 1,024 answers or 64 Mi characters without a verdict. Room is
        made by the pool's own thread, whatever the caller's does meanwhile.
        """
        facts = {"problem": problem, "truncated": truncated, "thinking": thinking}
        submission = Submission(response, answer, facts, Future())
        with self._changed:
            # A callback of a verdict runs on the dispatcher, which must not wait for itself.
            if threading.current_thread() is not self._dispatcher:
                self._changed.wait_for(lambda: self._closing or self._has_room(submission.size))
            if self._broken is not None:
                raise RunError("the verifier pool failed") from self._broken
            assert not self._closing, "the verifier pool is closed"
            self._pending[submission] = None
            self._characters += submission.size
            self._waiting.append(submission)
            self._ring()
        return submission.future

    def judge(self, responses: Sequence[str], answer: str) -> list[Verdict]:
        """Verdicts on all responses, in their order."""
        return list(self.stream((response, answer, "") for response in responses))

    def stream(self, items: Iterable[tuple[str, str, str]]) -> Iterator[Verdict]:
        """Verdicts on (response, answer, problem), in their order. No more are taken than the pool
        has room for. The responses are whole: none was cut off or begins within thinking."""
        futures: deque[Future[Verdict]] = deque()
        for response, answer, problem in items:
            if len(futures) == _MOST_ANSWERS:
                yield futures.popleft().result()
            futures.append(self.submit(response, answer, problem=problem))
        while futures:
            yield futures.popleft().result()

    def close(self) -> None:
        """Kill and reap the workers, cancel what is not judged yet. May be called twice."""
        with self._changed:
            self._closing = True
            self._ring()
            self._changed.notify_all()
        self._dispatcher.join()
        with self._changed:
            abandoned = list(self._pending)
            self._pending.clear()
        for submission in abandoned:
            submission.future.cancel()

    def _has_room(self, size: int) -> bool:
        if not self._pending:
            return True  # an answer may be larger than the room for all
        full = len(self._pending) >= _MOST_ANSWERS
        return not full and self._characters + size <= _MOST_CHARACTERS

    def _ring(self) -> None:
        """Wakes the dispatcher; one byte in the pipe is enough."""
        if not self._rung:
            self._rung = True
            self._button.send_bytes(b"!")

    # --- the dispatcher ---

    def _dispatch(self) -> None:
        self._selector.register(self._bell, selectors.EVENT_READ)
        try:
            while not self._closing:
                try:
                    self._round()
                except ForkServerGone as error:
                    self._start_failed(str(error))
        except BaseException as error:  # a fault of ours: nobody may wait for a verdict for ever
            logger.exception("the verifier pool failed")
            self._break(error)
        finally:
            self._dismiss()
            self._selector.close()

    def _round(self) -> None:
        for key, _ in self._selector.select(self._nap_s()):
            if isinstance(key.data, Worker):
                self._hear(key.data)
            else:
                with self._changed:
                    self._bell.recv_bytes()
                    self._rung = False
        for worker in [w for w in self._workers if w.submission is not None]:
            if time.monotonic() < worker.deadline:
                continue
            if worker.pipe.poll():  # just in time
                self._hear(worker)
            elif worker.submission is not None:
                self._finish(worker.submission, Verdict(0.0, "", "timeout", self._timeout_s))
                self._remove(worker)
        self._hand_out()
        # Only then: the others need not wait for it.
        self._bury()
        self._staff()

    def _nap_s(self) -> float | None:
        """Until the next deadline or the next try to start workers; None: until something comes."""
        ends = [worker.deadline for worker in self._workers if worker.submission is not None]
        if len(self._workers) <= self._num_workers:
            ends.append(self._retry_at)
        return max(0.0, min(ends) - time.monotonic()) if ends else None

    def _staff(self) -> None:
        """Brings the workers to their number, and one that stands by."""
        if len(self._workers) > self._num_workers or time.monotonic() < self._retry_at:
            return
        if self._fork_server is None:
            self._fork_server = ForkServer(*self._verifier)
            self._fork_server.wait_ready(_START_TIMEOUT_S, lambda: self._closing)
        while len(self._workers) <= self._num_workers:
            worker = self._fork_server.fork()
            if worker is None:
                return self._no_more_processes()
            self._workers.append(worker)
            self._selector.register(worker.pipe, selectors.EVENT_READ, worker)
        if not self._started:
            with self._changed:
                self._started = True
                self._changed.notify_all()
        self._hand_out()

    def _hand_out(self) -> None:
        idle = [worker for worker in self._workers if worker.submission is None]
        busy = len(self._workers) - len(idle)
        for worker in idle[: max(0, self._num_workers - busy)]:
            submission = self._next()
            if submission is None:
                return
            try:
                worker.give(submission, self._timeout_s)
            except OSError:
                self._lose(worker)

    def _next(self) -> Submission | None:
        """The answer that has waited longest; those that were cancelled meanwhile are dropped."""
        with self._changed:
            while self._waiting:
                submission = self._waiting.popleft()
                if not submission.future.cancelled():
                    return submission
                self._forget(submission)
        return None

    def _hear(self, worker: Worker) -> None:
        try:
            verdict, is_spent = worker.pipe.recv()
        except Exception:  # it died, or what it wrote is no verdict: either way it is done for
            return self._lose(worker)
        if worker.submission is None:  # it was not asked
            return self._lose(worker)
        submission, worker.submission = worker.submission, None
        submission.attempts += 1
        worker.judged += 1
        self._failed_starts = 0
        if is_spent and submission.attempts < _ATTEMPTS:
            self._again(submission)
        else:
            self._finish(submission, verdict)
        if is_spent or worker.judged == _JUDGED_BY_ONE:
            self._remove(worker)

    def _lose(self, worker: Worker) -> None:
        """The worker died. Its answer is judged once more, by another."""
        if self._fork_server is not None and not self._fork_server.is_alive():
            # The others die, too: an answer given to one of them now would lose its second chance.
            raise ForkServerGone("it died")
        submission, worker.submission = worker.submission, None
        if submission is None:
            logger.warning("a verifier worker died between two answers and is replaced")
        else:
            submission.attempts += 1
            if submission.attempts < _ATTEMPTS:
                self._again(submission)
            else:
                self._finish(submission, crash(""))
        self._remove(worker)

    def _again(self, submission: Submission) -> None:
        with self._changed:
            self._waiting.appendleft(submission)

    def _remove(self, worker: Worker) -> None:
        self._workers.remove(worker)
        self._selector.unregister(worker.pipe)
        self._dead.append(worker)

    def _bury(self) -> None:
        while self._dead and self._fork_server is not None:
            self._fork_server.end(self._dead.pop())

    def _finish(self, submission: Submission, verdict: Verdict) -> None:
        with self._changed:
            if submission not in self._pending:
                return
            self._forget(submission)
            self.counts[verdict.reason.split(":")[0]] += 1
        if submission.future.set_running_or_notify_cancel():
            submission.future.set_result(verdict)

    def _forget(self, submission: Submission) -> None:
        del self._pending[submission]
        self._characters -= submission.size
        self._changed.notify_all()

    # --- when processes cannot be had ---

    def _no_more_processes(self) -> None:
        logger.warning("the system gives no more processes for verifier workers")
        self._count_failure()

    def _start_failed(self, what: str) -> None:
        """The fork server is gone and its workers with it; a new one is tried."""
        if self._closing:
            return
        logger.warning("the verifier workers are restarted: %s", what)
        server, self._fork_server = self._fork_server, None
        for worker in list(self._workers):
            self._lose(worker)
        self._dead.clear()
        if server is not None:
            server.close()
        self._count_failure()

    def _count_failure(self) -> None:
        self._failed_starts += 1
        pause_s = min(_RETRY_S * 2**self._failed_starts, _LONGEST_RETRY_S)
        self._retry_at = time.monotonic() + pause_s
        if self._failed_starts >= _STARTS and not self._workers:
            with self._changed:
                submissions = list(self._pending)
                self._waiting.clear()
            for submission in submissions:
                self._finish(submission, crash("its processes do not start"))
        with self._changed:
            self._changed.notify_all()

    def _break(self, error: BaseException) -> None:
        with self._changed:
            self._broken, self._closing = error, True
            submissions = list(self._pending)
            self._pending.clear()
            self._changed.notify_all()
        for submission in submissions:
            if submission.future.set_running_or_notify_cancel():
                submission.future.set_exception(RunError(f"the verifier pool failed: {error}"))

    def _dismiss(self) -> None:
        server, self._fork_server = self._fork_server, None
        try:
            for worker in [*self._workers, *self._dead]:
                if server is not None:
                    server.end(worker)
        except ForkServerGone:
            pass  # its workers went with it
        if server is not None:
            server.close()
