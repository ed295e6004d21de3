"""All rollout workers as one: prompts go out, groups come back as they finish."""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any

from grpo.errors import RunError
from grpo.fleet.cluster import Call, Worker, gather
from grpo.fleet.stragglers import Patience
from grpo.rollout.sampling import Sampling
from grpo.types import Group, Prompt

_START_TIMEOUT_S = 1800.0
POLL_S = 0.5  # how soon a stop is noticed
# Answers in flight per engine: several times what vLLM runs at once, so that it never runs out.
_MOST_ANSWERS = 4096
ABORT_S = 60.0  # an engine that works ends its requests within a second
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
        gather([w.call("start") for w in self.workers], _START_TIMEOUT_S)

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
    ) -> Iterator[Group]:
        """Yields a group per prompt in the order in which they finish.

        Once `stop()` is true, running requests are aborted and nothing more is yielded. Raises
        RunError if no group finishes within the pool's timeout.
        """
        stream = self.stream(count, sampling, seed_of)
        stream.submit(prompts)
        while stream.running:
            if stop():
                stream.abort()
                return
            yield from stream.finished(POLL_S)

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
        self._running: dict[int, Call] = {}
        self._done: SimpleQueue[Call] = SimpleQueue()
        self._patience = Patience("sample", workers[0].usual)
        self._since = time.monotonic()  # the last group finished, or work began

    @property
    def running(self) -> int:
        """Groups that were submitted and have not come out yet."""
        return len(self._running) + len(self._waiting)

    def submit(self, prompts: Sequence[Prompt]) -> None:
        if not self.running:
            self._begin_to_wait()
        self._waiting.extend(prompts)
        self._send()

    def finished(self, wait_s: float) -> list[Group]:
        """The groups that have finished; waits up to `wait_s` for the first.

        Raises RunError if none finishes within the pool's timeout.
        """
        if not self._running:
            return []
        done = self._next_done(wait_s)
        if not done:
            self._patience.look(list(self._running.values()))
            waited_s = time.monotonic() - self._since
            if waited_s > self._timeout_s:
                names = ", ".join(sorted({c.worker.name for c in self._running.values()}))
                limit = f"; {self._timeout_key} sets this limit" if self._timeout_key else ""
                raise RunError(f"no group from {names} within {self._timeout_s:.0f} s{limit}")
            return []
        self._patience.end()
        self._begin_to_wait()
        groups = [self._settle(call) for call in done]
        self._send()
        return groups

    def abort(self) -> None:
        """Aborts every running request; what they had sampled is lost. An engine that does not
        even do that is left to its end: who aborts wants to stop, and has steps to save first."""
        self._waiting.clear()
        wait_s = min(ABORT_S, self._timeout_s)
        try:
            gather([w.call("abort") for w in self._workers], wait_s, self._timeout_key)
            gather(self._running.values(), wait_s, self._timeout_key)
        except RunError as error:
            _log.warning("sampling could not be stopped, and ends with the engines: %s", error)
            self._running.clear()
            return
        while self._running:
            for call in self._next_done(wait_s):
                self._settle(call)

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

    def _settle(self, call: Call) -> Group:
        """The group of a call that has ended. Raises what the call raised."""
        del self._running[id(call)]
        group: Group = call.result()
        self._busy[call.worker.name] -= self._most_tokens(group.prompt)
        self._sent[call.worker.name] -= 1
        return group

    def _send(self) -> None:
        """Sends waiting prompts to the least busy engines until those are full."""
        most = max(1, _MOST_ANSWERS // self._count)
        while self._waiting:
            free = [worker for worker in self._workers if self._sent[worker.name] < most]
            if not free:
                return
            prompt = self._waiting.popleft()
            worker = min(free, key=lambda w: self._busy[w.name])
            self._busy[worker.name] += self._most_tokens(prompt)
            self._sent[worker.name] += 1
            seed = self._seed_of(prompt)
            call = worker.call("sample", prompt, self._count, self._sampling, seed)
            self._running[id(call)] = call
            call.when_done(self._done.put)

    def _most_tokens(self, prompt: Prompt) -> int:
        return len(prompt.token_ids) + self._sampling.max_tokens
