"""All rollout workers as one: groups go out, and come back as they finish."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from grpo.cluster import Call, Worker, first_done, gather
from grpo.errors import RunError
from grpo.rollout.sampling import Sampling
from grpo.types import Group, Prompt

_START_TIMEOUT_S = 1800.0
_POLL_S = 0.5


class RolloutPool:
    """Routes whole groups, so that siblings share a prefix cache, to the least busy engine."""

    def __init__(self, workers: Sequence[Worker], timeout_s: float):
        self.workers = list(workers)
        self._timeout_s = timeout_s

    def start(self) -> None:
        """Brings the engines up, all at once."""
        gather([w.call("start") for w in self.workers], _START_TIMEOUT_S)

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
        busy: dict[str, int] = {worker.name: 0 for worker in self.workers}
        running: list[Call] = []
        for prompt in prompts:
            worker = min(self.workers, key=lambda w: busy[w.name])
            busy[worker.name] += len(prompt.token_ids) + sampling.max_tokens
            running.append(worker.call("sample", prompt, count, sampling, seed_of(prompt)))
        waited_s = 0.0
        while running:
            if stop():
                gather([w.call("abort") for w in self.workers], self._timeout_s)
                gather(running, self._timeout_s)
                return
            done, running = first_done(running, _POLL_S)
            waited_s = 0.0 if done else waited_s + _POLL_S
            if waited_s > self._timeout_s:
                raise RunError(f"no group finished for {waited_s:.0f} s (rollout.timeout_s)")
            for call in done:
                yield call.result()

    def score(self, token_ids: list[int]) -> list[list[float]]:
        """Each engine's logprobs of tokens 1.. of one sequence."""
        return self.everywhere("score", token_ids)

    def everywhere(self, method: str, *args: Any) -> list[Any]:
        """Calls every engine and waits for all."""
        return gather([w.call(method, *args) for w in self.workers], self._timeout_s)
