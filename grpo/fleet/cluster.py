"""Ray: starts the worker processes, calls them, and turns their failures into our errors.

The only file that imports Ray. The workers are plain classes, which tests build without it.
"""

import logging
import os
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from functools import partial
from operator import methodcaller
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import ActorDiedError, GetTimeoutError, RayActorError, RayTaskError
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from grpo.errors import RunError, UserError
from grpo.fleet.stragglers import Patience
from grpo.learner.spec import LearnerSpec
from grpo.plugins import WORKING_DIRECTORY, working_directory
from grpo.rollout.engine import EngineSpec, engine_environment, on_gpu

_TAIL_LINES = 15
# Concurrent calls of a worker whose methods are coroutines. Ray's default is 1,000: with that many
# groups under way, a call to pause or abort them would never start.
_ANY_NUMBER = 1_000_000
# Fractions of the GPU that a learner rank and an engine share.
_COLOCATED_SHARES = {"rollout": 0.4, "learner": 0.6}


def _log_to(path: Path) -> None:
    """Sends this process's output, and its children's, to a file of the run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)


class _Host:
    """Runs one worker object in a process of its own; `make` imports the heavy libraries there."""

    def __init__(self, make: Callable[[], Any], log: Path):
        _log_to(log)
        self._worker = make()

    def call(self, method: str, *args: Any) -> Any:
        return methodcaller(method, *args)(self._worker)


class _AsyncHost(_Host):
    """The same for workers whose methods are coroutines: calls run concurrently."""

    async def call(self, method: str, *args: Any) -> Any:
        return await methodcaller(method, *args)(self._worker)


def _make_rollout_worker(spec: EngineSpec) -> Any:
    from grpo.rollout.worker import RolloutWorker

    return RolloutWorker(spec)


def _make_learner_rank(
    spec: LearnerSpec, rank: int, world_size: int, address: str, port: int
) -> Any:
    from grpo.learner.rank import LearnerRank

    return LearnerRank(spec, rank, world_size, address, port)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


class Worker:
    """A handle on one worker process."""

    def __init__(self, name: str, actor: Any, log: Path, usual: dict[str, float]):
        self.name = name
        self.log = log
        self.usual = usual  # shared by all workers, see Patience
        self._actor = actor

    def call(self, method: str, *args: Any) -> "Call":
        """Starts a call. A worker whose methods are coroutines runs any number concurrently."""
        return Call(self, method, self._actor.call.remote(method, *args).future())

    def kill(self) -> None:
        ray.kill(self._actor)

    def log_tail(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return "\n".join(lines[-_TAIL_LINES:])


class Call:
    """A call under way in a worker."""

    def __init__(self, worker: Worker, method: str, future: Future[Any]):
        self.worker = worker
        self.method = method
        self.future = future

    def when_done(self, tell: Callable[["Call"], None]) -> None:
        """Runs `tell` on this call, in any thread, once it has finished or failed."""
        self.future.add_done_callback(lambda _: tell(self))

    def result(self) -> Any:
        """The outcome of a finished call. Raises UserError as it was raised there, RunError with
        the worker's own words for anything else."""
        try:
            return self.future.result()
        except RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise error.cause from None
            raise RunError(
                f"{self.worker.name} failed in {self.method}: "
                f"{type(error.cause).__name__}: {error.cause}\nIts log: {self.worker.log}"
            ) from error
        except (ActorDiedError, RayActorError) as error:
            raise RunError(
                f"{self.worker.name} died during {self.method}. The end of its log "
                f"({self.worker.log}):\n{self.worker.log_tail()}"
            ) from error


def gather(calls: Iterable[Call], timeout_s: float, key: str = "") -> list[Any]:
    """The results in order. Raises the first failure at once, without waiting for the others.

    Warns of workers that keep the others waiting (see `Patience`). After `timeout_s` raises a
    RunError that names them and `key`, the recipe key that sets this limit.
    """
    calls = list(calls)
    patience = Patience(calls[0].method, calls[0].worker.usual) if calls else None
    deadline = time.monotonic() + timeout_s
    running = {call.future: call for call in calls}
    while running and patience is not None:
        left = deadline - time.monotonic()
        if left <= 0:
            names = ", ".join(f"{call.worker.name} ({call.method})" for call in running.values())
            limit = f"; {key} sets this limit" if key else ""
            raise RunError(f"no answer within {timeout_s:.0f} s from {names}{limit}")
        wait(running, timeout=min(left, patience.left_s), return_when=FIRST_EXCEPTION)
        for future in [future for future in running if future.done()]:
            running.pop(future).result()
        if running:
            answered = [call for call in calls if call.future not in running]
            patience.look(list(running.values()), answered)
    if patience is not None:
        patience.end()
    return [call.result() for call in calls]


class _Push:
    """Hands a chunk of weights to every engine and waits for them; runs in learner rank 0."""

    def __init__(self, actors: dict[str, Any], timeout_s: float):
        self._actors = actors  # by the worker's name
        self._timeout_s = timeout_s

    def __call__(self, info: dict[str, Any]) -> None:
        refs = {actor.call.remote("receive", info): name for name, actor in self._actors.items()}
        try:
            ray.get(list(refs), timeout=self._timeout_s)
        except GetTimeoutError as error:
            _, pending = ray.wait(list(refs), num_returns=len(refs), timeout=0)
            if not pending:  # the last answer has arrived since
                ray.get(list(refs))
                return
            names = ", ".join(f"{refs[ref]} (receive)" for ref in pending)
            raise RunError(
                f"no answer within {self._timeout_s:.0f} s from {names}; sync.timeout_s sets this "
                "limit"
            ) from error


class Cluster:
    """The Ray side of a run: a context manager that starts Ray (or joins RAY_ADDRESS) and, on
    exit, leaves no process behind."""

    def __init__(self, logs: Path, colocated: bool = False):
        self._logs = logs.resolve()
        self._colocated = colocated
        self._workers: list[Worker] = []
        self._usual: dict[str, float] = {}
        self._group: Any = None

    def __enter__(self) -> "Cluster":
        # By default Ray's workers yield the CPU to every other process on the machine.
        os.environ.setdefault("RAY_worker_niceness", "0")
        # Ray's notices about itself, such as that token authentication is on, do not concern a run.
        logging.getLogger("ray").setLevel(logging.ERROR)
        ray.init(
            address=os.environ.get("RAY_ADDRESS", "local"),
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=False,
        )
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.kill()
        ray.shutdown()

    @property
    def address(self) -> str:
        return ray.util.get_node_ip_address()

    def _start(
        self, name: str, host: type[_Host], make: Callable[[], Any], **options: Any
    ) -> Worker:
        log = self._logs / f"{name}.log"
        actor = ray.remote(host).options(num_cpus=0, **options).remote(make, log)
        worker = Worker(name, actor, log, self._usual)
        self._workers.append(worker)
        return worker

    def _place(self, role: str, index: int, gpus: int) -> dict[str, Any]:
        """Ray options that give a worker its GPUs."""
        if not on_gpu():
            return {}
        if not self._colocated:
            return {"num_gpus": gpus}
        return {
            "num_gpus": _COLOCATED_SHARES[role],
            "scheduling_strategy": PlacementGroupSchedulingStrategy(
                self._group, placement_group_bundle_index=index
            ),
        }

    def _pair(self, count: int) -> None:
        """One bundle per GPU that a learner rank and an engine will share."""
        if on_gpu() and self._colocated and self._group is None:
            self._group = placement_group([{"GPU": 1.0}] * count)
            ray.get(self._group.ready())

    def rollout_workers(self, spec: EngineSpec, count: int, threads: int | None) -> list[Worker]:
        """Starts the engines' processes; `call("start")` then brings the engines up. `threads`:
        per engine, on CPU."""
        self._pair(count)
        environment = engine_environment(threads, spec.tensor_parallel) | self._environment()
        return [
            self._start(
                f"rollout-{i}",
                _AsyncHost,
                partial(_make_rollout_worker, spec),
                runtime_env={"env_vars": environment},
                max_concurrency=_ANY_NUMBER,
                **self._place("rollout", i, spec.tensor_parallel),
            )
            for i in range(count)
        ]

    def learner_ranks(self, spec: LearnerSpec, count: int) -> list[Worker]:
        """Starts the ZeRO-3 ranks, which join their process group while they are constructed."""
        self._pair(count)
        port = free_port()
        environment = self._environment()
        if not on_gpu():
            environment["DS_ACCELERATOR"] = "cpu"
        return [
            self._start(
                f"learner-{rank}",
                _Host,
                partial(_make_learner_rank, spec, rank, count, self.address, port),
                runtime_env={"env_vars": environment},
                **self._place("learner", rank, 1),
            )
            for rank in range(count)
        ]

    def push_to(self, workers: Sequence[Worker], timeout_s: float) -> Callable[..., None]:
        """A function for the learner that hands weights to these engines."""
        return _Push({worker.name: worker._actor for worker in workers}, timeout_s)

    def _environment(self) -> dict[str, str]:
        return {WORKING_DIRECTORY: str(working_directory())}
