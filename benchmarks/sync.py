"""Weights from the ZeRO-3 learner into a running vLLM, against a plain copy of as many bytes.

    .venv/bin/python benchmarks/sync.py [--layers 28] [--rounds 3] [--json FILE]

A Qwen3 of 0.6 B parameters (random weights, bfloat16, 1.19 GB) is held by one learner rank and by
one vLLM engine, each in a process of its own. Two things are measured, in turns within one run:

- transport: from the learner's memory to named tensors in another process that loads nothing; what
  the transport itself can do
- update: the whole of `WeightSync.update`, from pausing the engine to resuming it, vLLM's own
  loading included

each over shared memory and over gloo, beside `copy_` of one tensor of as many bytes in a process
of its own, with as many threads as the learner has. Takes 9 GiB of memory and about 3 minutes.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from common import Row, Spread, command, made_up_recipe, parser, report, save_qwen3

from grpo.config.recipe import SyncConfig
from grpo.fleet.cluster import Cluster, Worker, _Host, gather
from grpo.fleet.engines import RolloutPool
from grpo.fleet.learner import Learner
from grpo.fleet.weights import WeightSync
from grpo.learner.spec import LearnerSpec
from grpo.rollout.engine import EngineSpec
from grpo.sync.buckets import WeightMeta
from grpo.sync.transport import BACKENDS, Meeting

TIMEOUT_S = 300.0
CANARY = [3, 7, 4, 8, 5, 9, 6, 10]
TRANSPORTS = ["shm", "gloo"]
AIM = ">= 0.3"


def learner_spec(model: Path, threads: int, bucket_bytes: int) -> LearnerSpec:
    recipe = made_up_recipe(
        model, dtype="bfloat16", gradient_checkpointing=False, optimizer="sgd", lr=1e-6
    )
    return LearnerSpec(str(model), recipe, "shm", bucket_bytes, threads)


class Copier:
    """A tensor that is copied, in a process of its own."""

    def __init__(self, num_bytes: int, threads: int):
        torch.set_num_threads(threads)
        self._from = torch.ones(num_bytes // 2, dtype=torch.bfloat16)
        self._to = torch.zeros(num_bytes // 2, dtype=torch.bfloat16)

    def copy(self) -> float:
        """Seconds of one copy."""
        started = time.perf_counter()
        self._to.copy_(self._from)
        return time.perf_counter() - started


class Reader:
    """A receiver that is handed tensors and loads none of them."""

    def __init__(self) -> None:
        self._receiver: Any = None
        self._seen = 0

    def meet(self, transport: str, info: dict[str, Any]) -> None:
        from grpo.sync.channel import GlooChannel
        from grpo.sync.receive import GlooReceiver, ShmReceiver

        channel = GlooChannel(
            info["master_address"], info["master_port"], info["rank_offset"], info["world_size"],
            info["timeout_s"],
        )  # fmt: skip
        self._receiver = {"gloo": GlooReceiver, "shm": ShmReceiver}[transport](channel)

    def receive(self, info: dict[str, Any]) -> int:
        """Bytes of the tensors that it was handed."""
        metas = [WeightMeta(m["name"], m["dtype"], tuple(m["shape"])) for m in info["metas"]]
        self._seen = 0
        self._receiver.receive(metas, info["bucket_bytes"], self._look)
        return self._seen

    def _look(self, flat: torch.Tensor, weights: list[tuple[str, torch.Tensor]]) -> None:
        self._seen += sum(tensor.nbytes for _, tensor in weights)


class Bare:
    """The learner's sender against a reader, as `WeightSync` has it against engines."""

    def __init__(self, cluster: Cluster, learner: Learner, reader: Worker, num_bytes: int):
        self._cluster, self._learner, self._reader = cluster, learner, reader
        self._num_bytes = num_bytes
        self._info: dict[str, Any] = {}

    def open(self, transport: str, bucket_bytes: int) -> None:
        (rank,) = self._learner.workers
        address, port = self._cluster.meeting_point(rank)
        meeting = Meeting(transport, address, port, 0, 2, bucket_bytes, TIMEOUT_S)
        push = self._cluster.push_to([], TIMEOUT_S)
        gather(
            [
                rank.call("open_transport", replace(meeting, rank=0), push),
                self._reader.call("meet", transport, meeting.engine_info(1)),
            ],
            TIMEOUT_S,
        )
        (self._info,) = self._learner.everywhere("update_info")

    def update(self) -> float:
        started = time.perf_counter()
        (rank,) = self._learner.workers
        _, seen = gather([rank.call("send"), self._reader.call("receive", self._info)], TIMEOUT_S)
        assert seen == self._num_bytes
        return time.perf_counter() - started


@dataclass(frozen=True)
class Bench:
    cluster: Cluster
    learner: Learner
    rollouts: RolloutPool
    copier: Worker
    reader: Worker
    num_bytes: int
    bucket_bytes: int

    def copy(self) -> float:
        return gather([self.copier.call("copy")], TIMEOUT_S)[0]

    def turns(self, measure: Callable[[], float], rounds: int) -> tuple[list[float], list[float]]:
        """Seconds of what is measured and of a copy, each between two copies."""
        measure()  # the first update touches every page for the first time
        ours, copies = [], [self.copy()]
        for _ in range(rounds):
            ours.append(measure())
            copies.append(self.copy())
        return ours, [statistics.fmean(pair) for pair in pairwise(copies)]

    def transport(self, name: str, rounds: int) -> tuple[list[float], list[float]]:
        bare = Bare(self.cluster, self.learner, self.reader, self.num_bytes)
        bare.open(name, self.bucket_bytes)
        return self.turns(bare.update, rounds)

    def update(
        self, name: str, rounds: int
    ) -> tuple[list[float], list[float], dict[str, float], float]:
        """As `transport`; the parts of the last update, and the canary's difference after it."""
        config = SyncConfig(timeout_s=TIMEOUT_S)
        sync = WeightSync(self.learner, self.rollouts, config, name, CANARY)
        sync.open(self.cluster, tensor_parallel=1)
        stats: list[Any] = []

        def once() -> float:
            stats.append(sync.update(len(stats) + 1))
            return stats[-1].seconds

        ours, copies = self.turns(once, rounds)
        return ours, copies, stats[-1].parts, sync.check_canary("bfloat16").largest


def start(cluster: Cluster, model: Path, bucket_bytes: int) -> Bench:
    threads = os.cpu_count() or 1
    spec = EngineSpec(
        str(model), "bfloat16", 0, 512, 1, BACKENDS["shm"],
        {"kv_cache_memory_bytes": 1 << 28, "max_num_seqs": 8, "max_num_batched_tokens": 512},
    )  # fmt: skip
    rollouts = RolloutPool(cluster.rollout_workers(spec, 1, None), TIMEOUT_S)
    ranks = cluster.learner_ranks(learner_spec(model, threads, bucket_bytes), 1)
    rollouts.start()
    (num_bytes,) = gather([rank.call("num_weight_bytes") for rank in ranks], TIMEOUT_S)
    return Bench(
        cluster, Learner(ranks, TIMEOUT_S), rollouts,
        cluster._start("copier", _Host, partial(Copier, num_bytes, threads)),
        cluster._start("reader", _Host, Reader),
        num_bytes, bucket_bytes,
    )  # fmt: skip


def measure(bench: Bench, rounds: int, updates: list[str]) -> tuple[dict[str, Any], list[Row]]:
    results: dict[str, Any] = {"bytes": bench.num_bytes, "bucket_bytes": bench.bucket_bytes}
    rows: list[Row] = []

    def note(what: str, ours: list[float], copies: list[float], aim: str = "") -> None:
        ratio = Spread.of([c / o for o, c in zip(ours, copies, strict=True)])
        rate = [bench.num_bytes / statistics.median(s) / 1e9 for s in (ours, copies)]
        rows.append(Row(what, f"{rate[0]:.2f} GB/s", f"{rate[1]:.2f} GB/s", ratio, aim))
        results[what] = {"seconds": ours, "copy_seconds": copies, "ratio": ratio.median}

    for name in TRANSPORTS:
        note(f"transport, {name}", *bench.transport(name, rounds), AIM if name == "shm" else "")
    for name in updates:
        ours, copies, parts, canary = bench.update(name, rounds)
        note(f"whole update, {name}", ours, copies)
        results[f"whole update, {name}"] |= {"parts": parts, "canary_nats": canary}
    return results, rows


def main() -> None:
    asked = parser(__doc__)
    asked.add_argument("--layers", type=int, default=28)
    asked.add_argument("--rounds", type=int, default=3)
    asked.add_argument("--bucket-mib", type=int, default=SyncConfig().bucket_mib)
    options = asked.parse_args()
    with tempfile.TemporaryDirectory() as folder, Cluster(Path(folder, "logs")) as cluster:
        model = Path(folder, "model")
        save_qwen3(model, options.layers)
        bench = start(cluster, model, options.bucket_mib << 20)
        results, rows = measure(bench, options.rounds, TRANSPORTS)
    for name in TRANSPORTS:
        print(f"parts of an update, {name}:", results[f"whole update, {name}"]["parts"])
    report("sync", command(), results, rows, options.json)


if __name__ == "__main__":
    main()
