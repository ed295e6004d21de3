"""Senders and receivers against each other in threads: bytes, overlap, failures, what stays."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from grpo.sync.buckets import (
    Bucket,
    WeightMeta,
    plan_buckets,
    shard_range,
    total_bytes,
    unflatten,
)
from grpo.sync.channel import GlooChannel, TransferError
from grpo.sync.gloo import GlooSender
from grpo.sync.receive import GlooReceiver, Load, Receiver, ShmReceiver
from grpo.sync.shared_memory import DoubleBuffer, share
from grpo.sync.shm import ShmSender
from grpo.sync.transport import Meeting, Sender, WeightSource, learner_members

LIMIT = 1000  # bytes: the 2,000 of parameter 3 stand alone
METAS = [WeightMeta(f"w{i}", "float32", (n,)) for i, n in enumerate([101, 100, 7, 500, 90, 60, 99])]
BUCKETS = plan_buckets(METAS, LIMIT)  # w0 w1 w2 | w3 | w4 w5 w6
WAIT_S = 20.0


class PlainSource:
    """Whole tensors in memory; `write_shard` writes what a rank of `ranks` would hold."""

    def __init__(self, rank: int = 0, ranks: int = 1, before: Callable[[int], None] | None = None):
        self.metas = METAS
        self.limit_bytes = LIMIT
        self.weights = {meta.name: torch.zeros(meta.shape) for meta in METAS}
        self._rank, self._ranks = rank, ranks
        self._before = before or (lambda k: None)

    def fill(self, bucket: Bucket, flat: torch.Tensor) -> None:
        self._write(bucket, flat, 0, 1)

    def write_shard(self, bucket: Bucket, flat: torch.Tensor) -> None:
        self._write(bucket, flat, self._rank, self._ranks)

    def _write(self, bucket: Bucket, flat: torch.Tensor, rank: int, ranks: int) -> None:
        self._before(BUCKETS.index(bucket))
        for name, out in unflatten(flat, bucket):
            start, end = shard_range(rank, ranks, out.numel())
            out[start:end] = self.weights[name][start:end]


class Engine:
    """Copies what it is handed, as vLLM does."""

    def __init__(self, before: Callable[[int], None] | None = None):
        self.weights: dict[str, torch.Tensor] = {}
        self._before = before or (lambda k: None)

    def load(self, flat: torch.Tensor, weights: list[tuple[str, torch.Tensor]]) -> None:
        self._before([bucket[0].name for bucket in BUCKETS].index(weights[0][0]))
        self.weights |= {name: tensor.clone() for name, tensor in weights}


class Sides:
    """A learner and engines that have met; every rank is a thread."""

    def __init__(self, transport: str, sources: list[PlainSource], loads: list[Load]):
        self._loads = loads
        first = learner_members(transport, len(sources))
        with socket.socket() as probe:
            probe.bind(("", 0))
            port = probe.getsockname()[1]
        world = first + len(loads)
        self._threads = ThreadPoolExecutor(max_workers=len(sources) + len(loads))
        make: Any = {"gloo": GlooSender, "shm": ShmSender}[transport]
        self.senders: list[Sender] = [
            make(source, Meeting(transport, "127.0.0.1", port, rank, world, LIMIT, WAIT_S))
            for rank, source in enumerate(sources)
        ]
        opening = [self._threads.submit(sender.open) for sender in self.senders]
        meet: Any = {"gloo": GlooReceiver, "shm": ShmReceiver}[transport]
        meeting = [
            self._threads.submit(
                lambda r: meet(GlooChannel("127.0.0.1", port, r, world, WAIT_S)), rank
            )
            for rank in range(first, world)
        ]
        for done in opening:
            done.result(WAIT_S)
        self.receivers: list[Receiver] = [done.result(WAIT_S) for done in meeting]

    def update(self) -> list[BaseException | None]:
        """What each side raised, the learner's ranks first."""
        running: list[Future[None]] = [self._threads.submit(s.send) for s in self.senders]
        for receiver, load in zip(self.receivers, self._loads, strict=True):
            running.append(self._threads.submit(receiver.receive, METAS, LIMIT, load))
        return [done.exception(2 * WAIT_S) for done in running]

    def close(self) -> None:
        for sender in self.senders:
            sender.close()
        self._threads.shutdown()


@pytest.fixture
def meet():
    opened: list[Sides] = []

    def start(transport: str, sources: list[PlainSource], loads: list[Load]) -> Sides:
        opened.append(Sides(transport, sources, loads))
        return opened[-1]

    yield start
    for sides in opened:
        sides.close()


def test_the_buckets_of_these_tests_are_worth_testing():
    assert [total_bytes(bucket) for bucket in BUCKETS] == [832, 2000, 996]


@pytest.mark.parametrize(("transport", "ranks"), [("gloo", 1), ("shm", 1), ("shm", 3)])
def test_every_parameter_arrives_at_every_engine_in_every_update(meet, transport, ranks):
    sources = [PlainSource(rank, ranks) for rank in range(ranks)]
    engines = [Engine(), Engine()]
    sides = meet(transport, sources, [engine.load for engine in engines])
    for version in range(1, 4):
        for meta in METAS:
            new = torch.randn(meta.shape, generator=torch.Generator().manual_seed(version))
            for source in sources:
                source.weights[meta.name] = new
        assert sides.update() == [None] * (ranks + 2)
        for engine in engines:
            assert engine.weights.keys() == sources[0].weights.keys()
            for name, tensor in engine.weights.items():
                assert torch.equal(tensor, sources[0].weights[name]), f"{name}, update {version}"


@pytest.mark.parametrize(("transport", "ahead"), [("shm", 1), ("gloo", 2)])
def test_a_bucket_is_gathered_while_an_earlier_one_is_loaded(meet, transport, ahead):
    """Bucket 0's load waits until the learner has begun with a later one: without overlap it
    would wait for ever."""
    begun = [threading.Event() for _ in BUCKETS]
    source = PlainSource(before=lambda k: begun[k].set())

    def wait_for_later(k: int) -> None:
        if k == 0:
            assert begun[ahead].wait(WAIT_S), f"bucket {ahead} waits for bucket 0 to be loaded"

    assert meet(transport, [source], [Engine(wait_for_later).load]).update() == [None, None]


@pytest.mark.parametrize("transport", ["gloo", "shm"])
def test_a_slot_is_not_written_again_before_its_bucket_is_loaded(meet, transport):
    """Bucket 2 shares a slot with bucket 0. Bucket 0 is read late and must be itself still."""
    source = PlainSource()
    for i, meta in enumerate(METAS):
        source.weights[meta.name] += i + 1
    engine = Engine(lambda k: time.sleep(0.2) if k == 0 else None)
    assert meet(transport, [source], [engine.load]).update() == [None, None]
    assert {name: tensor[0].item() for name, tensor in engine.weights.items()} == {
        f"w{i}": i + 1.0 for i in range(len(METAS))
    }


@pytest.mark.parametrize("transport", ["gloo", "shm"])
@pytest.mark.parametrize("bucket", range(3))
def test_an_engine_that_cannot_load_a_bucket_fails_every_side_in_its_words(meet, transport, bucket):
    def fail(k: int) -> None:
        if k == bucket:
            raise KeyError("no_such_weight")

    sides = meet(transport, [PlainSource()], [Engine().load, Engine(fail).load])
    failures = sides.update()
    assert all(isinstance(failure, TransferError) for failure in failures)
    assert {str(failure) for failure in failures} == {"transfer rank 2: KeyError: 'no_such_weight'"}


@pytest.mark.parametrize("transport", ["gloo", "shm"])
@pytest.mark.parametrize("bucket", range(3))
def test_a_learner_that_cannot_gather_a_bucket_fails_every_side_in_its_words(
    meet, transport, bucket
):
    def fail(k: int) -> None:
        if k == bucket:
            raise RuntimeError("out of shards")

    failures = meet(transport, [PlainSource(before=fail)], [Engine().load]).update()
    assert {str(failure) for failure in failures} == {
        "transfer rank 0: RuntimeError: out of shards"
    }


@pytest.mark.parametrize("transport", ["gloo", "shm"])
def test_an_engine_that_keeps_views_of_a_bucket_fails_instead_of_seeing_them_change(
    meet, transport
):
    kept: list[torch.Tensor] = []
    sides = meet(transport, [PlainSource()], [lambda flat, weights: kept.append(weights[0][1])])
    assert all("still holds weights" in str(failure) for failure in sides.update())


def test_shared_memory_is_mapped_but_has_no_name(meet):
    named = set(os.listdir("/dev/shm"))
    meet("shm", [PlainSource()], [Engine().load])
    mapped = [m for m in Path("/proc/self/maps").read_text().splitlines() if "grpo-weights" in m]
    assert len(mapped) >= 2, "once for each side"
    assert all(line.endswith("(deleted)") for line in mapped)
    assert set(os.listdir("/dev/shm")) <= named


@pytest.mark.parametrize("path", ["/proc/self/fd/999", "/proc/self/exe"])
def test_memory_that_is_not_the_learners_is_refused_on_every_side(path):
    """As on another host, where the path leads nowhere or to something else."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    failures: list[str] = []

    def owner() -> None:
        channel = GlooChannel("127.0.0.1", port, 0, 2, WAIT_S)
        channel.publish("shared memory", f"{path} {'00' * 16}")
        with pytest.raises(TransferError, match=r"set sync\.transport to gloo") as caught:
            channel.agree(None)
        failures.append(str(caught.value))

    thread = threading.Thread(target=owner)
    thread.start()
    with pytest.raises(TransferError, match=r"set sync\.transport to gloo"):
        share(GlooChannel("127.0.0.1", port, 1, 2, WAIT_S), 100, owner=False)
    thread.join()
    assert failures


DOOMED = """
import sys
from tests.processes.test_sync_transports import Meeting, PlainSource, ShmSender
import os, signal
source = PlainSource(before=lambda k: os.kill(os.getpid(), signal.SIGKILL) if k == 1 else None)
sender = ShmSender(source, Meeting("shm", "127.0.0.1", int(sys.argv[1]), 0, 2, 1000, 20.0))
sender.open()
sender.send()
"""


def test_a_learner_that_is_killed_fails_the_engine_and_leaves_nothing_behind():
    named = set(os.listdir("/dev/shm"))
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    learner = subprocess.Popen([sys.executable, "-c", DOOMED, str(port)])
    receiver = ShmReceiver(GlooChannel("127.0.0.1", port, 1, 2, WAIT_S))
    with pytest.raises(RuntimeError):
        receiver.receive(METAS, LIMIT, Engine().load)
    assert learner.wait(WAIT_S) == -9
    assert set(os.listdir("/dev/shm")) <= named


def test_two_slots_never_overlap_and_each_begins_on_a_page():
    slots = DoubleBuffer.private(5000)
    first, second = slots.buffer(0, 5000), slots.buffer(1, 5000)
    assert abs(first.data_ptr() - second.data_ptr()) >= 5000
    assert slots.buffer(2, 5000).data_ptr() == first.data_ptr()
    assert first.data_ptr() % 4096 == 0 == second.data_ptr() % 4096


def test_a_plain_source_is_a_weight_source():
    source: WeightSource = PlainSource()
    assert source.metas == METAS
