"""All rollout workers as one: groups go out, and come back as they finish."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from grpo.errors import RunError
from grpo.fleet.cluster import Call, Worker, first_done, gather
from grpo.rollout.sampling import Sampling
from grpo.types import Group, Prompt

_START_TIMEOUT_S = 1800.0
POLL_S = 0.5  # how soon a stop is noticed


class RolloutPool:
    """Routes whole groups, so that siblings share a prefix cache, to the least busy engine."""

    def __init__(self, workers: Sequence[Worker], timeout_s: float):
        self.workers = list(workers)
        self._timeout_s = timeout_s

    def start(self) -> None:
        """Brings the engines up, all at once."""
        gather([w.call("start") for w in self.workers], _START_TIMEOUT_S)

    def stream(
        self, count: int, sampling: Sampling, seed_of: Callable[[Prompt], int]
    ) -> "RolloutStream":
        """`count` answers to every prompt that is submitted to it."""
        return RolloutStream(self.workers, count, sampling, seed_of, self._timeout_s)

    def sample(
        self,
        prompts: Sequence[Prompt],
        count: int,
        sampling: Sampling,
        seed_of: Callable[[Prompt], int],
        stop: Callable[[], bool] = lambda: False,
    ) -> Iterator[Group]:
        """Yields a group per prompt in the order in which they finish.

        Once `stop` says so the running requests are aborted and the rest is not yielded. Raises
        RunError where no group finishes within the pool's timeout.
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
        """Calls every engine and waits for all."""
        return gather([w.call(method, *args) for w in self.workers], self._timeout_s)


class RolloutStream:
    """Prompts go in at any time, groups come out in the order in which they finish."""

    def __init__(
        self,
        workers: Sequence[Worker],
        count: int,
        sampling: Sampling,
        seed_of: Callable[[Prompt], int],
        timeout_s: float,
    ):
        self._workers = workers
        self._count = count
        self._sampling = sampling
        self._seed_of = seed_of
        self._timeout_s = timeout_s
        self._busy = {worker.name: 0 for worker in workers}  # tokens on their way, at most
        self._running: list[Call] = []
        self._waited_s = 0.0

    @property
    def running(self) -> int:
        """Groups that have not come out yet."""
        return len(self._running)

    def submit(self, prompts: Sequence[Prompt]) -> None:
        for prompt in prompts:
            worker = min(self._workers, key=lambda w: self._busy[w.name])
            self._busy[worker.name] += self._most_tokens(prompt)
            seed = self._seed_of(prompt)
            self._running.append(worker.call("sample", prompt, self._count, self._sampling, seed))

    def finished(self, wait_s: float) -> list[Group]:
        """The groups that are done; waits up to `wait_s` for a first one.

        Raises RunError where none has finished within the pool's timeout.
        """
        if not self._running:
            return []
        done, self._running = first_done(self._running, wait_s)
        self._waited_s = 0.0 if done else self._waited_s + wait_s
        if self._waited_s > self._timeout_s:
            raise RunError(f"no group finished for {self._waited_s:.0f} s (rollout.timeout_s)")
        groups: list[Group] = [call.result() for call in done]
        for call, group in zip(done, groups, strict=True):
            self._busy[call.worker.name] -= self._most_tokens(group.prompt)
        return groups

    def abort(self) -> None:
        """Ends every running request; what they had sampled is lost."""
        gather([w.call("abort") for w in self._workers], self._timeout_s)
        gather(self._running, self._timeout_s)
        self._running = []

    def _most_tokens(self, prompt: Prompt) -> int:
        return len(prompt.token_ids) + self._sampling.max_tokens
