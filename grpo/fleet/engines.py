"""All rollout workers as one: prompts go out, groups come back as they finish."""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any

from grpo.errors import RunError, WorkerFault
from grpo.fleet.cluster import Call, Worker, gather
from grpo.fleet.stragglers import Patience
from grpo.rollout.outlook import SoFar
from grpo.rollout.sampling import Sampling
from grpo.types import Group, Prompt

START_TIMEOUT_S = 1800.0
POLL_S = 0.5  # how soon a stop is noticed
# Answers in flight per engine: several times what vLLM runs at once, so that it never runs out.
_MOST_ANSWERS = 4096
# An engine that works ends its requests within a second; who stops has little time (stop.grace_s).
ABORT_S = 5.0
_ASK_S = 2.0  # between two questions to an engine how far it is
_log = logging.getLogger(__name__)


class RolloutPool:
    """Routes whole groups to the least busy engine, so that siblings share a prefix cache.

    `timeout_key`: the recipe key that sets `timeout_s`, for error messages.
    """

    def __init__(self, workers: Sequence[Worker], timeout_s: float, timeout_key: str = ""):
        self.workers = list(workers)
        self._timeout_s, self._timeout_key = timeout_s, timeout_key

    def start(self) -> None:
        """Brings the engines up, all at once."""
        gather([w.call("start") for w in self.workers], START_TIMEOUT_S)

    def stream(
        self, count: int, sampling: Sampling, seed_of: Callable[[Prompt], int]
    ) -> "RolloutStream":
        """Samples `count` answers to every prompt submitted to it."""
        limit = (self._timeout_s, self._timeout_key)
        return RolloutStream(self.workers, count, sampling, seed_of, *limit)

    def sample(
        self,
        prompts: Sequence[Prompt],
        count: int,
        sampling: Sampling,
        seed_of: Callable[[Prompt], int],
        stop: Callable[[], bool] = lambda: False,
        *,
        watch: Callable[[SoFar], None] = lambda so_far: None,
    ) -> Iterator[Group]:
        """Yields a group per prompt in the order in which they finish. What a failed engine was at
        is sampled by the others. `watch` hears now and then how far the groups are that have not
        finished.

        Once `stop()` is true, running requests are aborted and nothing more is yielded. Raises
        WorkerFault if no group finishes within the pool's timeout.
        """
        stream = self.stream(count, sampling, seed_of)
        stream.submit(prompts)
        while stream.running:
            if stop():
                stream.abort()
                return
            yield from stream.finished(POLL_S)
            watch(SoFar.of(stream.so_far().values()))
            if len(stream.lost) == len(self.workers):
                raise next(iter(stream.lost.values()))

    def score(self, token_ids: list[int]) -> list[list[float]]:
        """Each engine's logprobs of tokens 1.. of one sequence."""
        return self.everywhere("score", token_ids)

    def everywhere(self, method: str, *args: Any) -> list[Any]:
        """Calls every engine and waits for all of them."""
        calls = [w.call(method, *args) for w in self.workers]
        return gather(calls, self._timeout_s, self._timeout_key)


class RolloutStream:
    """Prompts go in at any time, groups come out in the order in which they finish.

    No engine is sent more than it can work on; the other prompts wait here. A call to pause or
    abort an engine therefore gets through at once, however many groups are under way.

    An engine that fails is lost: its prompts wait for another one, or until it is `found` again.
    """

    def __init__(
        self,
        workers: Sequence[Worker],
        count: int,
        sampling: Sampling,
        seed_of: Callable[[Prompt], int],
        timeout_s: float,
        timeout_key: str,
    ):
        self._workers = workers
        self._count = count
        self._sampling = sampling
        self._seed_of = seed_of
        self._timeout_s, self._timeout_key = timeout_s, timeout_key
        self._waiting: deque[Prompt] = deque()
        self._busy = {worker.name: 0 for worker in workers}  # tokens in flight, at most
        self._sent = {worker.name: 0 for worker in workers}  # groups in flight
        self._running: dict[int, tuple[Call, Prompt, int]] = {}  # with the seed
        # How far the engines are, by name: what each was asked and has not answered yet, what it
        # said last, and who cannot say.
        self._asked: dict[str, Call] = {}
        self._said: dict[str, Mapping[tuple[int, int], SoFar] | None] = {}
        self._mute: set[str] = set()
        self._ask_at = 0.0
        self._lost: dict[str, WorkerFault] = {}
        self._done: SimpleQueue[Call] = SimpleQueue()
        self._patience = Patience("sample", workers[0].usual)
        self._since = time.monotonic()  # the last group finished, or work began

    @property
    def running(self) -> int:
        """Groups that were submitted and have not come out yet."""
        return len(self._running) + len(self._waiting)

    @property
    def lost(self) -> dict[str, WorkerFault]:
        """What happened to the engines that are sent nothing any more, by name."""
        return dict(self._lost)

    def found(self, name: str) -> None:
        """The engine has a new process, with the weights of the others."""
        del self._lost[name]
        self._mute.discard(name)
        self._said.pop(name, None)

    def submit(self, prompts: Sequence[Prompt]) -> None:
        if not self.running:
            self._begin_to_wait()
        self._waiting.extend(prompts)
        self._send()

    def finished(self, wait_s: float) -> list[Group]:
        """The groups that have finished; waits up to `wait_s` for the first.

        Raises WorkerFault if none finishes within the pool's timeout.
        """
        if not self._running:
            if self._waiting:  # for an engine to be found again
                time.sleep(wait_s)
                self._begin_to_wait()
                self._send()
            return []
        done = self._next_done(wait_s)
        if not done:
            self._patience.look([call for call, *_ in self._running.values()])
            waited_s = time.monotonic() - self._since
            if waited_s > self._timeout_s:
                names = ", ".join(sorted({call.worker.name for call, *_ in self._running.values()}))
                limit = f"; {self._timeout_key} sets this limit" if self._timeout_key else ""
                raise WorkerFault(
                    f"{names} sample",
                    f"no group from {names} within {self._timeout_s:.0f} s{limit}",
                )
            return []
        self._patience.end()
        self._begin_to_wait()
        settled = [self._settle(call) for call in done]
        self._send()
        return [group for group in settled if group is not None]

    def so_far(self) -> dict[int, SoFar]:
        """How far the groups are that engines have, by serial, as these said a few seconds ago at
        most; those of which nothing is known yet are left out. Waits for no engine: what it answers
        now is told the next time."""
        for name, call in list(self._asked.items()):
            if call.future.done():
                del self._asked[name]
                if call.worker in self._workers:  # else it was replaced meanwhile
                    self._said[name] = call.answer()
        if time.monotonic() >= self._ask_at:
            self._ask_at = time.monotonic() + _ASK_S
            for worker in self._workers:
                if self._sent[worker.name] and worker.name not in {*self._asked, *self._lost}:
                    self._ask(worker)
        there = [said for name, said in self._said.items() if said and name not in self._lost]
        running = {(prompt.serial, seed) for _, prompt, seed in self._running.values()}
        return {key[0]: so_far for said in there for key, so_far in said.items() if key in running}

    def _ask(self, worker: Worker) -> None:
        """One that failed to answer is not asked again. Had it died, it would be lost by now."""
        if self._said.get(worker.name, {}) is not None:
            self._asked[worker.name] = worker.call("progress")
        elif worker.name not in self._mute:
            self._mute.add(worker.name)
            _log.info(
                "%s cannot say how far it is: its answers are counted a group at a time. See %s",
                worker.name,
                worker.log,
            )

    def abort(self) -> None:
        """Aborts every running request; what they had sampled is lost. An engine that does not
        even do that is left to its end: who aborts wants to stop, and has steps to save first."""
        self._waiting.clear()
        wait_s = min(ABORT_S, self._timeout_s)
        try:
            there = [worker for worker in self._workers if worker.name not in self._lost]
            gather([worker.call("abort") for worker in there], wait_s, self._timeout_key)
            gather([call for call, *_ in self._running.values()], wait_s, self._timeout_key)
        except RunError as error:
            _log.warning("sampling could not be stopped, and ends with the engines: %s", error)
            self._running.clear()
            return
        while self._running:
            for call in self._next_done(wait_s):
                self._settle(call)
        self._waiting.clear()  # of an engine that failed meanwhile

    def _begin_to_wait(self) -> None:
        self._since = time.monotonic()
        self._patience.begin()

    def _next_done(self, wait_s: float) -> list[Call]:
        """Every call that has ended; waits up to `wait_s` for the first."""
        done: list[Call] = []
        with suppress(Empty):
            done.append(self._done.get(timeout=wait_s))
            while True:
                done.append(self._done.get_nowait())
        return done

    def _settle(self, call: Call) -> Group | None:
        """The group of a call that has ended. None where its engine failed: the prompt is the next
        to be sent."""
        _, prompt, _ = self._running.pop(id(call))
        self._busy[call.worker.name] -= self._most_tokens(prompt)
        self._sent[call.worker.name] -= 1
        try:
            return call.result()
        except WorkerFault as fault:
            if call.worker in self._workers:  # else it was replaced meanwhile
                self._lost.setdefault(call.worker.name, fault)
            self._waiting.appendleft(prompt)
            return None

    def _send(self) -> None:
        """Sends waiting prompts to the least busy engines until those are full."""
        most = max(1, _MOST_ANSWERS // self._count)
        while self._waiting:
            free = [
                worker
                for worker in self._workers
                if self._sent[worker.name] < most and worker.name not in self._lost
            ]
            if not free:
                return
            prompt = self._waiting.popleft()
            worker = min(free, key=lambda w: self._busy[w.name])
            self._busy[worker.name] += self._most_tokens(prompt)
            self._sent[worker.name] += 1
            seed = self._seed_of(prompt)
            call = worker.call("sample", prompt, self._count, self._sampling, seed)
            self._running[id(call)] = call, prompt, seed
            call.when_done(self._done.put)

    def _most_tokens(self, prompt: Prompt) -> int:
        return len(prompt.token_ids) + self._sampling.max_tokens
