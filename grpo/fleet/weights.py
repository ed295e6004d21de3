"""A whole weight update, seen from the driver: both sides in step, one deadline, then a check."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from grpo.config.recipe import SyncConfig
from grpo.errors import RunError
from grpo.fleet.cluster import Cluster, free_port, gather
from grpo.fleet.engines import RolloutPool
from grpo.fleet.learner import Learner
from grpo.sync.transport import Meeting, learner_members

# How far two correct implementations of one forward pass may lie apart, in nats.
CANARY_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.3}


@dataclass(frozen=True, slots=True)
class UpdateStats:
    """`parts`: the seconds of pause, start, transfer (loading included), finish and resume."""

    seconds: float
    num_bytes: int
    parts: dict[str, float] = field(default_factory=dict)


class WeightSync:
    """Copies the learner's weights into every engine and checks that they arrived.

    `canary`: a fixed sequence of two or more token ids, which both sides score.
    """

    def __init__(
        self,
        learner: Learner,
        rollouts: RolloutPool,
        config: SyncConfig,
        transport: str,
        canary: list[int],
        colocated: bool = False,
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

    def open(self, cluster: Cluster, tensor_parallel: int) -> None:
        """Connects both sides. Their processes must be running."""
        first = learner_members(self._transport, len(self._learner.workers))
        meeting = Meeting(
            transport=self._transport,
            address=cluster.address,
            port=free_port(),
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
        """Replaces the weights of every engine. Raises RunError within the deadline if either
        side fails; the engines are unusable afterwards."""
        started = time.monotonic()
        parts: dict[str, float] = {}
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

    def check_canary(self, dtype: str) -> float:
        """Largest logprob difference, in nats, between the learner and any engine on the canary.

        Raises RunError if it exceeds the tolerance, since an engine then holds other weights than
        the learner, and if either side scores nan or an infinity, which comparisons let through.
        """
        tolerance = self._config.canary.tolerance or CANARY_TOLERANCE[dtype]
        expected = self._learner.score(self._canary)
        if (fault := _not_finite(expected)) is not None:
            cause = (
                "training has diverged. Resume from an earlier checkpoint (--resume DIR) with a "
                "lower learner.lr or learner.grad_clip"
                if self._version
                else "nothing was trained yet, so look at the model's files, and at model.dtype"
            )
            raise RunError(
                f"after weight update {self._num_updates} the learner itself scores {fault}: "
                f"{cause}"
            )
        worst, where = 0.0, ""
        for worker, engine in zip(
            self._rollouts.workers, self._rollouts.score(self._canary), strict=True
        ):
            if (fault := _not_finite(engine)) is not None:
                raise RunError(
                    f"after weight update {self._num_updates} {worker.name} scores {fault}, and "
                    "the learner does not: the weights did not arrive whole, or overflow in the "
                    f"engine. {self._go_on}try another sync.transport or model.dtype"
                )
            apart, position = _furthest(expected, engine)
            if apart > worst:
                ours, theirs = expected[position], engine[position]
                worst = apart
                where = f"token {position + 1} scores {theirs:.6g} in {worker.name}, {ours:.6g}"
        if worst > tolerance:
            raise RunError(
                f"after weight update {self._num_updates} the engines and the learner score the "
                f"same tokens up to {worst:.3g} nats apart (tolerance {tolerance:g}): {where} in "
                f"the learner. The update did not arrive whole. {self._go_on}try another "
                "sync.transport, or raise sync.canary.tolerance for a low-precision engine"
            )
        return worst

    @property
    def _go_on(self) -> str:
        return (
            "Resume from the last checkpoint; if it happens again, "
            if self._version
            else "To go on, "
        )


def _furthest(expected: list[float], found: list[float]) -> tuple[float, int]:
    """The largest difference and where it is, from 0."""
    apart = [abs(ours - theirs) for ours, theirs in zip(expected, found, strict=True)]
    return max(apart), apart.index(max(apart))


def _not_finite(logprobs: list[float]) -> str | None:
    """Describes the first value that is not finite, with its position; None if all are finite."""
    for position, value in enumerate(logprobs, start=1):
        if not math.isfinite(value):
            return f"{value} at token {position} of its check sequence"
    return None


@contextmanager
def _timed(parts: dict[str, float], name: str) -> Iterator[None]:
    started = time.monotonic()
    yield
    parts[name] = time.monotonic() - started
