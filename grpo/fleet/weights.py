"""A whole weight update, seen from the driver: both sides in step, one deadline, then a check."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from grpo.config.recipe import SyncConfig
from grpo.errors import Diverged, WorkerFault
from grpo.fleet.canary import Apart, Bounds, not_finite
from grpo.fleet.cluster import Cluster, gather
from grpo.fleet.engines import RolloutPool
from grpo.fleet.learner import Learner
from grpo.sync.transport import Meeting, learner_members


@dataclass(frozen=True, slots=True)
class UpdateStats:
    """`parts`: the seconds of pause, start, transfer (loading included), finish and resume."""

    seconds: float
    num_bytes: int
    parts: dict[str, float] = field(default_factory=dict)


class WeightSync:
    """Copies the learner's weights into every engine and checks that they arrived.

    canary: a fixed sequence of two or more token ids, which both sides score
    rest_weights: on shared GPUs, whether the learner's weights, too, rest in host memory while the
        engines are awake
    """

    def __init__(
        self,
        learner: Learner,
        rollouts: RolloutPool,
        config: SyncConfig,
        transport: str,
        canary: list[int],
        *,
        colocated: bool = False,
        rest_weights: bool = False,
    ):
        assert len(canary) >= 2, "a canary of one token has nothing to score"
        self._learner = learner
        self._rollouts = rollouts
        self._config = config
        self._transport = transport
        self._canary = canary
        self._num_updates = 0
        self._version = 0
        self._colocated = colocated
        self._asleep = colocated  # on shared GPUs they start so
        self._rest_weights = rest_weights
        self._scored: list[float] = []  # the learner's canary, where it was scored in the update

    def open(self, cluster: Cluster, tensor_parallel: int) -> None:
        """Connects both sides. Their processes must be running."""
        first = learner_members(self._transport, len(self._learner.workers))
        address, port = cluster.meeting_point(self._learner.workers[0])
        meeting = Meeting(
            transport=self._transport,
            address=address,
            port=port,
            rank=0,
            world_size=first + tensor_parallel * len(self._rollouts.workers),
            bucket_bytes=self._config.bucket_mib << 20,
            timeout_s=self._config.timeout_s,
        )
        push = cluster.push_to(self._rollouts.workers, self._config.timeout_s)
        engines = [
            worker.call("init_transfer", meeting.engine_info(first + i * tensor_parallel))
            for i, worker in enumerate(self._rollouts.workers)
        ]
        ranks = [
            worker.call("open_transport", replace(meeting, rank=rank), push)
            for rank, worker in enumerate(self._learner.workers)
        ]
        gather(engines + ranks, self._config.timeout_s, "sync.timeout_s")
        self._num_bytes = self._learner.everywhere("num_weight_bytes")[0]
        self._update_info = self._learner.everywhere("update_info")[0]

    def release_gpus(self) -> None:
        """To call before the learner works: on shared GPUs, engines free their memory for it."""
        if self._colocated:
            self._rollouts.everywhere("sleep")
            self._asleep = True
            self._learner.everywhere("reload")

    def update(self, version: int) -> UpdateStats:
        """Replaces the weights of every engine. Raises WorkerFault within the deadline if
        either side fails; the engines are unusable afterwards."""
        started = time.monotonic()
        parts: dict[str, float] = {}
        self._scored = []
        with _timed(parts, "pause"):
            if self._asleep:  # weights first: the cache does not fit until they have arrived
                self._learner.everywhere("offload")
                self._rollouts.everywhere("wake", "weights")
            else:
                self._rollouts.everywhere("pause")
        with _timed(parts, "start"):
            self._rollouts.everywhere("start_update")
        with _timed(parts, "transfer"):
            calls = [worker.call("send") for worker in self._learner.workers]
            if self._transport != "ipc":  # there the learner hands each chunk over itself
                calls += [w.call("receive", self._update_info) for w in self._rollouts.workers]
            gather(calls, self._config.timeout_s, "sync.timeout_s")
        with _timed(parts, "finish"):
            self._rollouts.everywhere("finish_update", version)
        if self._colocated:
            # Before the engines' cache takes what a forward pass needs.
            self._scored = self._learner.score(self._canary)
            self._learner.everywhere("rest", self._rest_weights)
        with _timed(parts, "resume"):
            if self._asleep:
                self._rollouts.everywhere("wake", "kv_cache")
                self._asleep = False
            self._rollouts.everywhere("resume")
        self._num_updates += 1
        self._version = version
        return UpdateStats(time.monotonic() - started, self._num_bytes, parts)

    def canary_due(self, step: int) -> bool:
        every = self._config.canary.every
        return every > 0 and step % every == 0

    def check_canary(self, dtype: str) -> Apart:
        """How far learner and engines lie apart on the canary: the engine that is furthest.

        Raises WorkerFault if that is more than rounding explains, since an engine then holds other
        weights than the learner, or if an engine scores nan or an infinity, which comparisons let
        through; Diverged if the learner does.
        """
        bounds = Bounds.of(dtype, self._config.canary.tolerance)
        expected = self._scored or self._learner.score(self._canary)
        if (fault := not_finite(expected)) is not None:
            raise Diverged(f"{self._after} the learner itself scores {fault}: {self._diverged}")
        scored = list(zip(self._rollouts.workers, self._rollouts.score(self._canary), strict=True))
        for worker, engine in scored:
            if (fault := not_finite(engine)) is not None:
                raise WorkerFault(
                    f"{worker.name} canary",
                    f"{self._after} {worker.name} scores {fault}, and the learner does not: the "
                    "weights did not arrive whole, or overflow in the engine. "
                    f"{self._go_on}try another sync.transport or model.dtype",
                )
        found = [(worker, Apart.between(expected, engine)) for worker, engine in scored]
        for worker, apart in found:
            if (fault := bounds.fault(apart)) is not None:
                raise WorkerFault(
                    f"{worker.name} canary",
                    f"{self._after} {worker.name} and the learner score the same "
                    f"{len(expected)} tokens {fault}; furthest apart is token {apart.position}, "
                    f"which scores {apart.engine:.6g} in {worker.name}, {apart.learner:.6g} in the "
                    f"learner. The update did not arrive whole. {self._go_on}try another "
                    "sync.transport, or raise sync.canary.tolerance for a low-precision engine",
                )
        return max((apart for _, apart in found), key=lambda apart: apart.largest)

    @property
    def _after(self) -> str:
        return f"after weight update {self._num_updates}"

    @property
    def _diverged(self) -> str:
        if not self._version:
            return "nothing was trained yet, so look at the model's files, and at model.dtype"
        return (
            "training has diverged. Resume from an earlier checkpoint (--resume DIR) with a lower "
            "learner.lr or learner.grad_clip"
        )

    @property
    def _go_on(self) -> str:
        return (
            "Resume from the last checkpoint; if it happens again, "
            if self._version
            else "To go on, "
        )


@contextmanager
def _timed(parts: dict[str, float], name: str) -> Iterator[None]:
    started = time.monotonic()
    yield
    parts[name] = time.monotonic() - started
