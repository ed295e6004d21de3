"""Ray: starts the worker processes, calls them, and turns their failures into our errors.

Only this file and `grpo/fleet/nodes.py`, which knows the machines, import Ray. The workers are
plain classes, which tests build without it.
"""

import os
import socket
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from contextlib import suppress
from functools import partial
from operator import methodcaller
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import (
    GetTimeoutError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from grpo.errors import RunError, UserError, WorkerFault
from grpo.fleet import nodes
from grpo.fleet.bundles import Seats, Wanted, in_words, seat, spread
from grpo.fleet.environment import passed_on
from grpo.fleet.memory_words import out_of_memory
from grpo.fleet.stragglers import Patience
from grpo.learner.spec import LearnerSpec
from grpo.plugins import WORKING_DIRECTORY, working_directory
from grpo.rollout.engine import EngineSpec, engine_environment, on_gpu

_TAIL_LINES = 15
# Concurrent calls of a worker whose methods are coroutines. Ray's default is 1,000: with that many
# groups under way, a call to pause or abort them would never start.
_ANY_NUMBER = 1_000_000
_PROCESS_S = 300.0  # for a process to start and to answer
# Fractions of the GPU that a learner rank and an engine share.
_COLOCATED_SHARES = {"rollout": 0.4, "learner": 0.6}


def _log_to(path: Path) -> None:
    """Sends this process's output, and its children's, to a file of the run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)


class _Host:
    """Runs one worker object in a process of its own; `make` imports the heavy libraries there.
    None: `make_worker` brings it later."""

    def __init__(self, make: Callable[[], Any] | None, log: Path):
        _log_to(log)
        self._worker = make() if make is not None else None
        self._fault: Exception | None = None
        self._held: list[socket.socket] = []

    def meeting_point(self) -> tuple[str, int]:
        """An address of this machine, and a port that is free on it: kept for this process, which
        listens there much later, once its libraries are imported."""
        self._held.append(hold_port())
        return ray.util.get_node_ip_address(), self._held[-1].getsockname()[1]

    def make_worker(self, make: Callable[[], Any]) -> None:
        try:
            self._worker = make()
        except Exception as error:  # nobody waits for this call: the next one raises it
            traceback.print_exc()
            self._fault = error

    def call(self, method: str, *args: Any) -> Any:
        if self._fault is not None:
            raise self._fault
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


def hold_port() -> socket.socket:
    """Keeps a free port from everybody else while the socket is open. It does not listen, so that
    who asks for this very port with SO_REUSEADDR gets it, as the stores of torch and vLLM do."""
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("", 0))
    return held


class Worker:
    """A handle on one worker process."""

    def __init__(
        self,
        name: str,
        actor: Any,
        log: Path,
        usual: dict[str, float],
        node: nodes.Node | None = None,
    ):
        self.name = name
        self.log = log
        self.usual = usual  # shared by all workers, see Patience
        self.node = node  # where it was told to run; None: nowhere in particular
        self._actor = actor

    def meeting_point(self) -> "Call":
        """Starts to ask its process for an address of its machine and a free port there."""
        return Call(self, "meeting_point", self._actor.meeting_point.remote().future())

    def make(self, make: Callable[[], Any]) -> None:
        """Makes the worker of a process that was started without; calls made from now on wait for
        it, and raise what it raised."""
        self._actor.make_worker.remote(make)

    def call(self, method: str, *args: Any) -> "Call":
        """Starts a call. A worker whose methods are coroutines runs any number concurrently."""
        return Call(self, method, self._actor.call.remote(method, *args).future())

    def kill(self) -> None:
        ray.kill(self._actor)

    def log_tail(self) -> str:
        """The end of its log, from the machine where it ran."""
        return nodes.tail(self.log, _TAIL_LINES, self.node)


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
        """The outcome of a finished call. Raises UserError as it was raised there, WorkerFault with
        the worker's own words for anything else."""
        try:
            return self.future.result()
        except RayError as error:
            if isinstance(error, RayTaskError) and isinstance(error.cause, UserError):
                raise error.cause from None
            raise WorkerFault(self._where, self._words(error)) from error

    def _words(self, error: RayError) -> str:
        name, log = self.worker.name, self.worker.log
        if isinstance(error, RayTaskError):
            what = f"{type(error.cause).__name__}: {error.cause}"
            return f"{name} failed in {self.method}: {what}\nIts log: {log}"
        if isinstance(error, RayActorError):
            tail = self.worker.log_tail()
            return f"{name} died during {self.method}. The end of its log ({log}):\n{tail}"
        if isinstance(error, OutOfMemoryError):
            return f"{name} was killed during {self.method}: {out_of_memory(name, str(error))}"
        # Ray itself has lost the worker's machine, or its own parts.
        return f"{name} cannot be reached in {self.method}: {type(error).__name__}: {error}"

    def answer(self) -> Any:
        """The outcome of a finished call on which nothing depends; None where it failed."""
        with suppress(RayError):
            return self.future.result()

    @property
    def _where(self) -> str:
        return f"{self.worker.name} {self.method}"


def gather(calls: Iterable[Call], timeout_s: float, key: str = "") -> list[Any]:
    """The results in order. Raises the first failure at once, without waiting for the others.

    Warns of workers that keep the others waiting (see `Patience`). After `timeout_s` raises a
    WorkerFault that names them and `key`, the recipe key that sets this limit.
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
            raise WorkerFault(names, f"no answer within {timeout_s:.0f} s from {names}{limit}")
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
        self._again: dict[str, Callable[[], Worker]] = {}  # starts an engine's process, by name
        self._usual: dict[str, float] = {}
        self._nodes: list[nodes.Node] = []
        self._seats: Seats | None = None
        self._group: Any = None

    def __enter__(self) -> "Cluster":
        nodes.connect()
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.kill()
        self._workers.clear()
        self._seats = self._group = None
        ray.shutdown()

    def reserve(self, engines: int, parallel: int, ranks: int) -> None:
        """Decides which machine each worker will run on, and keeps their GPUs for them; to call
        before they are started. Raises UserError where the machines are too small, and RunError
        where their GPUs do not come free."""
        self._nodes = nodes.alive()
        if not on_gpu():
            there = len(self._nodes)
            self._seats = Seats(spread(engines, there), spread(ranks, there)) if there > 1 else None
            return
        wanted = Wanted(engines, parallel, ranks, self._colocated)
        gpus = [node.gpus for node in self._nodes]
        self._seats = seat(wanted, gpus)
        if self._seats is None:
            raise UserError(
                f"the run needs GPUs in pieces of {' + '.join(map(str, wanted.bundles))}, each "
                f"within one machine, and Ray has {in_words(gpus)}: use fewer, or add machines"
            )
        if self._group is not None:
            nodes.give_back(self._group)
        places = [self._nodes[index] for index in self._seats.bundles(self._colocated)]
        bundles = list(zip(places, wanted.bundles, strict=True))
        self._group = nodes.reserve(bundles, self._nodes)

    @property
    def machines(self) -> list[str]:
        """Addresses of those that its workers run on, once they are reserved."""
        used = {0} if self._seats is None else {*self._seats.engines, *self._seats.ranks}
        return sorted({self._nodes[index].address for index in used})

    def check_shared(self, others: Mapping[Path, str]) -> None:
        """Raises UserError unless all machines that were reserved share the folder of the run, and
        have the `others`, each with what to do where one has not."""
        if self._seats is None:
            return
        used = sorted({0, *self._seats.engines, *self._seats.ranks})
        if len(used) > 1:
            self._logs.mkdir(parents=True, exist_ok=True)
            nodes.check_shared([self._nodes[index] for index in used], self._logs, others)

    def _start(
        self,
        name: str,
        host: type[_Host],
        make: Callable[[], Any] | None,
        node: nodes.Node | None = None,
        **options: Any,
    ) -> Worker:
        log = self._logs / f"{name}.log"
        actor = ray.remote(host).options(num_cpus=0, **options).remote(make, log)
        worker = Worker(name, actor, log, self._usual, node)
        self._workers.append(worker)
        return worker

    def _place(self, role: str, index: int, gpus: int) -> dict[str, Any]:
        """Its node, and Ray options that give a worker its GPUs and keep it there."""
        if self._seats is None:
            assert not (on_gpu() and self._colocated), "to share GPUs, reserve them"
            return {"num_gpus": gpus} if on_gpu() else {}
        seats = {"rollout": self._seats.engines, "learner": self._seats.ranks}[role]
        node = self._nodes[seats[index]]
        if self._group is None:
            return {"node": node, "scheduling_strategy": nodes.pinned(node)}
        before = len(self._seats.engines) if role == "learner" and not self._colocated else 0
        return {
            "node": node,
            "num_gpus": _COLOCATED_SHARES[role] if self._colocated else gpus,
            "scheduling_strategy": PlacementGroupSchedulingStrategy(
                self._group, placement_group_bundle_index=before + index
            ),
        }

    def rollout_workers(self, spec: EngineSpec, count: int, threads: int | None) -> list[Worker]:
        """Starts the engines' processes; `call("start")` then brings the engines up. `threads`:
        per engine, on CPU."""
        environment = self._environment() | engine_environment(threads, spec.tensor_parallel)
        for i in range(count):
            self._again[f"rollout-{i}"] = partial(
                self._start,
                f"rollout-{i}",
                _AsyncHost,
                partial(_make_rollout_worker, spec),
                runtime_env={"env_vars": environment},
                max_concurrency=_ANY_NUMBER,
                **self._place("rollout", i, spec.tensor_parallel),
            )
        return [self._again[f"rollout-{i}"]() for i in range(count)]

    def replace(self, worker: Worker) -> Worker:
        """A new process for an engine, in the old one's place, which is killed."""
        worker.kill()
        self._workers.remove(worker)
        return self._again[worker.name]()

    def learner_ranks(self, spec: LearnerSpec, count: int) -> list[Worker]:
        """Starts the ZeRO-3 ranks, which join their process group while they are made: on the
        machine of rank 0, which is asked for its address and a free port."""
        environment = self._environment()
        if not on_gpu():
            environment["DS_ACCELERATOR"] = "cpu"
        ranks = [
            self._start(
                f"learner-{rank}",
                _Host,
                None,
                runtime_env={"env_vars": environment},
                **self._place("learner", rank, 1),
            )
            for rank in range(count)
        ]
        address, port = self.meeting_point(ranks[0])
        for rank, worker in enumerate(ranks):
            worker.make(partial(_make_learner_rank, spec, rank, count, address, port))
        return ranks

    def meeting_point(self, worker: Worker) -> tuple[str, int]:
        """An address of this worker's machine and a port that is free there, from its process."""
        return gather([worker.meeting_point()], _PROCESS_S)[0]

    def push_to(self, workers: Sequence[Worker], timeout_s: float) -> Callable[..., None]:
        """A function for the learner that hands weights to these engines."""
        return _Push({worker.name: worker._actor for worker in workers}, timeout_s)

    def _environment(self) -> dict[str, str]:
        return passed_on(os.environ) | {WORKING_DIRECTORY: str(working_directory())}
