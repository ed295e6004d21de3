"""The order of a whole weight update against vLLM's own rules of sleep, wake, pause and update.

Ours: `start_workers`, `WeightSync`, `RolloutPool`, `Learner` and `RolloutWorker`. vLLM's: what
tests.contract.engine takes of it. Stood in for: Ray, the learner's ranks and the GPUs' memory.
"""

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from operator import methodcaller
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from grpo.config.recipe import Recipe, SyncConfig
from grpo.fleet.cluster import Worker
from grpo.fleet.placement import Placement
from grpo.fleet.start import start_workers
from grpo.fleet.weights import WeightSync
from grpo.rollout.sampling import Sampling
from grpo.types import Prompt, Row
from tests.contract.cases import Case
from tests.contract.engine import CHUNKS, Memory, Rollout
from tests.contract.gpu import ContractError, Gpu
from tests.contract.wire import DEADLINE_S

# GiB. Beside an awake engine (10 + 55 of 80) and the learner's weights there is no room for its
# states, for the staging buffer or for a forward pass.
_LEARNER = {"learner's weights": 10, "learner's states": 40}
_STAGING = 10
_FORWARD = 10
Calls = list[tuple[str, tuple[Any, ...]]]
Rewrite = Callable[[str, tuple[Any, ...]], Calls]


class Rank:
    """A learner rank that owns nothing but its room."""

    def __init__(self, memory: Memory, pushes: bool):
        self._memory, self._pushes = memory, pushes
        for what, size in _LEARNER.items():
            memory.take(what, size)

    def num_weight_bytes(self) -> int:
        return 1

    def open_transport(self, meeting: Any, push: Callable[[Any], None]) -> None:
        self._push = push

    def update_info(self) -> dict[str, Any]:
        return {"chunk": "all"}

    def offload(self) -> None:
        self._memory.give_back("learner's states")

    def rest(self, weights: bool) -> None:
        self._memory.give_back("what a forward pass left")
        if weights:
            self._memory.give_back("learner's weights")

    def reload(self) -> None:
        for what, size in _LEARNER.items():
            if what not in self._memory.taken:
                self._memory.take(what, size)

    def score(self, token_ids: list[int]) -> list[float]:
        self._need("learner's weights")
        self._memory.take("what a forward pass left", _FORWARD)
        return [-1.0] * (len(token_ids) - 1)

    def send(self) -> None:
        self._need("learner's weights")
        self._memory.take("staging buffer", _STAGING)
        if self._pushes:
            for chunk in range(CHUNKS):
                self._push({"chunk": chunk})
        self._memory.give_back("staging buffer")

    def step(self) -> None:
        for what in _LEARNER:
            self._need(what)

    def _need(self, what: str) -> None:
        if what not in self._memory.taken:
            raise ContractError(f"the learner works without {what}")


class Remote:
    """A Ray actor: `actor.call.remote(method, *arguments).future()`."""

    def __init__(self, start: Callable[..., Future[Any]]):
        self.call = SimpleNamespace(
            remote=lambda *call: SimpleNamespace(future=lambda: start(*call))
        )


class Cluster:
    """In place of the Ray side of a run. Every engine is asked for a sample before each call."""

    def __init__(self, case: Case, loop: asyncio.AbstractEventLoop):
        self._case, self._loop = case, loop
        self._rewrite = REWRITES.get(case.mutation, lambda *call: [call])
        self.samples: list[Future[Any]] = []
        self.rollouts: list[Rollout] = []
        # Engines and ranks of one number share a GPU, or have their own.
        self._memories = [Memory(i) for i in range(case.engines)]
        own = [Memory(case.engines + i) for i in range(case.ranks)]
        self._ranks_memories = self._memories if case.kind == "shared" else own
        self._threads = ThreadPoolExecutor(case.ranks)

    def reserve(self, engines: int, parallel: int, ranks: int) -> None: ...

    def check_shared(self, others: Any) -> None: ...

    def meeting_point(self, worker: Worker) -> tuple[str, int]:
        return "here", 1

    def rollout_workers(self, spec: Any, count: int, threads: int | None) -> list[Worker]:
        self.rollouts = [Rollout(Gpu(i), memory) for i, memory in enumerate(self._memories[:count])]
        return [
            Worker(f"engine {i}", Remote(self._asking(rollout)), Path("log"), {})
            for i, rollout in enumerate(self.rollouts)
        ]

    def learner_ranks(self, spec: Any, count: int) -> list[Worker]:
        ranks = [
            Rank(memory, pushes=self._case.kind == "shared" and i == 0)
            for i, memory in enumerate(self._ranks_memories[:count])
        ]
        return [
            Worker(f"rank {i}", Remote(self._running(rank)), Path("log"), {})
            for i, rank in enumerate(ranks)
        ]

    def push_to(self, workers: list[Worker], timeout_s: float) -> Callable[[Any], None]:
        def push(info: Any) -> None:
            for future in [worker.call("receive", info).future for worker in workers]:
                future.result(timeout_s)

        return push

    def _asking(self, rollout: Rollout) -> Callable[..., Future[Any]]:
        def start(method: str, *arguments: Any) -> Future[Any]:
            if rollout.started:
                prompt = Prompt(len(self.samples), Row("0", "", ""), (1,))
                asked = rollout.sample(prompt, 1, Sampling(max_tokens=1), 0)
                self.samples.append(asyncio.run_coroutine_threadsafe(asked, self._loop))
            return asyncio.run_coroutine_threadsafe(run(method, arguments), self._loop)

        async def run(method: str, arguments: tuple[Any, ...]) -> Any:
            answer = None
            for name, given in self._rewrite(method, arguments):
                answer = await methodcaller(name, *given)(rollout)
                await asyncio.sleep(0.005)  # who samples now does it while this state lasts
            return answer

        return start

    def _running(self, rank: Rank) -> Callable[..., Future[Any]]:
        def start(method: str, *arguments: Any) -> Future[Any]:
            calls = self._rewrite(method, arguments)
            return self._threads.submit(run, calls)

        def run(calls: Calls) -> Any:
            answer = None
            for name, given in calls:
                answer = methodcaller(name, *given)(rank)
            return answer

        return start

    def check_samples(self) -> None:
        """Every request that has been made until now has been answered, and by whole weights."""
        done = wait(self.samples, DEADLINE_S)
        for future in done.done:
            future.result()
        if done.not_done:
            raise ContractError(f"{len(done.not_done)} requests were never answered")
        self.samples.clear()

    def close(self) -> None:
        self._threads.shutdown(wait=False)


@contextmanager
def _loop() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop in a thread of its own, as every engine's actor has one."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)


def run(case: Case) -> None:
    """Updates with steps of the learner between them, where GPUs are shared also with weights that
    rest in host memory. Raises what breaks a rule."""
    shared = case.kind == "shared"
    for rest_weights in (False, True)[: 1 + shared]:
        _run(case, shared, rest_weights)


def _run(case: Case, shared: bool, rest_weights: bool) -> None:
    transport = "ipc" if shared else "nccl"
    values = {
        "name": "r",
        "model": {"path": "m"},
        "data": {"name": "d", "path": "d.jsonl"},
        "rollout": {"engines": case.engines},
        "learner": {"ranks": case.ranks},
        "schedule": {"steps": 1},
    }
    with _loop() as loop:
        cluster: Any = Cluster(case, loop)
        placement = Placement(shared, transport, None, None, 99)
        engines, learner = start_workers(cluster, Recipe.model_validate(values), "m", placement)
        rests = {"colocated": shared, "rest_weights": rest_weights}
        sync = WeightSync(learner, engines, SyncConfig(), transport, [1, 2], **rests)
        sync.open(cluster, 1)
        sync.update(0)
        cluster.check_samples()
        for version in range(1, case.updates):
            sync.release_gpus()
            learner.everywhere("step")
            sync.update(version)
            cluster.check_samples()
        cluster.close()


# --- orders with one fault each: what is called in place of a call ---


def _instead(**calls: Calls) -> Rewrite:
    """`wake_weights` is the call wake("weights")."""
    return lambda method, arguments: calls.get(
        "_".join([method, *map(str, arguments)]), calls.get(method, [(method, arguments)])
    )


REWRITES: dict[str, Rewrite] = {
    "the cache wakes with the weights": _instead(
        wake_weights=[("wake", ("weights",)), ("wake", ("kv_cache",))], wake_kv_cache=[]
    ),
    "the engines do not wake for the weights": _instead(wake_weights=[]),
    "the engines do not sleep": _instead(sleep=[]),
    "the learner does not make room": _instead(offload=[]),
    "the weights leave before they are sent": _instead(
        offload=[("offload", ()), ("score", ([1, 2],)), ("rest", (True,))]
    ),
    "the learner takes nothing back": _instead(reload=[]),
    "the learner keeps what it gathered": _instead(rest=[]),
    "the cache does not wake": _instead(wake_kv_cache=[]),
    "an update is not started": _instead(start_update=[]),
    "an update is not finished": _instead(finish_update=[]),
    "the engines do not pause": _instead(pause=[]),
    "the engines resume too early": _instead(start_update=[("start_update", ()), ("resume", ())]),
    "the cache wakes first": _instead(
        wake_weights=[("wake", ("kv_cache",))], wake_kv_cache=[("wake", ("weights",))]
    ),
    "the cache wakes twice": _instead(
        wake_kv_cache=[("wake", ("kv_cache",)), ("wake", ("kv_cache",))]
    ),
}
