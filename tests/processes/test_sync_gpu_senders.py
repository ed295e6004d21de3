"""What the NCCL and IPC senders do and in which order, with plain objects for what needs a GPU."""

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from grpo.sync.buckets import Bucket, WeightMeta, unflatten
from grpo.sync.ipc import IpcSender
from grpo.sync.nccl import NcclSender
from grpo.sync.transport import Meeting

# In bytes 40, 240, 400, 8, 120, 160, 80: with a bucket of 400 one is as large as a whole bucket.
METAS = [WeightMeta(f"w{i}", "float32", (n,)) for i, n in enumerate([10, 60, 100, 2, 30, 40, 20])]
BUCKET_BYTES = 400
WAIT_S = 20.0


def meeting(transport: str, rank: int = 0) -> Meeting:
    return Meeting(transport, "127.0.0.1", 1, rank, 2, BUCKET_BYTES, WAIT_S)


class NumberedSource:
    """Parameter i is full of i; says when it is asked for which."""

    def __init__(self, tell: Callable[[str], None]):
        self.metas = METAS
        self.limit_bytes = BUCKET_BYTES
        self._tell = tell

    def fill(self, bucket: Bucket, flat: torch.Tensor) -> None:
        self._tell("fill " + " ".join(meta.name for meta in bucket))
        for name, out in unflatten(flat, bucket):
            out.fill_(int(name[1:]))

    def write_shard(self, bucket: Bucket, flat: torch.Tensor) -> None:
        raise AssertionError("GPU transports gather")


class Stream:
    """What is sent on it leaves its buffer as late as may be: when the stream is waited for."""

    def __init__(self, name: str, tell: Callable[[str], None], sent: dict[int, torch.Tensor]):
        self.name, self._tell, self._sent = name, tell, sent
        self.under_way: dict[int, torch.Tensor] = {}

    def synchronize(self) -> None:
        self._tell(f"wait {self.name}")
        self._sent |= {k: flat.clone() for k, flat in self.under_way.items()}
        self.under_way.clear()


class PlainNccl(NcclSender):
    """Streams, buffers and the group as plain objects."""

    def __init__(self, rank: int = 0):
        self.events: list[str] = []
        self.sent: dict[int, torch.Tensor] = {}
        self.started = 0
        self.buffers = 0
        super().__init__(NumberedSource(self.events.append), meeting("nccl", rank))
        if rank == 0:
            self._group = self
            self._streams = [Stream(name, self.events.append, self.sent) for name in ("s0", "s1")]

    def _send_chunk(self, chunk: Bucket, flat: torch.Tensor, stream: Any) -> None:
        self._source.fill(chunk, flat)
        self.events.append(f"send on {stream.name}")
        stream.under_way[self.started] = flat
        self.started += 1

    def _new_buffer(self) -> torch.Tensor:
        self.buffers += 1
        return torch.empty(max(BUCKET_BYTES, 400), dtype=torch.uint8)


def test_nccl_sends_what_the_engines_were_told_in_that_order():
    sender = PlainNccl()
    sender.send()
    info = sender.update_info()
    numbers = (
        torch.cat([sender.sent[k] for k in range(sender.started)])
        .view(torch.float32)
        .split([s[0] for s in info["shapes"]])
    )
    assert [f"w{int(piece[0])}" for piece in numbers] == info["names"]
    assert all(piece.eq(piece[0]).all() for piece in numbers)
    assert sorted(info["names"]) == [meta.name for meta in METAS]
    assert set(info["dtype_names"]) == {"float32"}


def test_nccl_gathers_a_chunk_before_the_one_before_it_has_left():
    """Streams take turns, and each is waited for only when its own buffer comes up again."""
    sender = PlainNccl()
    sender.send()
    waits = [event for event in sender.events if event.startswith("wait")]
    sends = [event for event in sender.events if event.startswith("send")]
    assert len(sends) >= 4, "enough chunks for buffers to come up again"
    assert sends == [f"send on s{k % 2}" for k in range(len(sends))]
    assert waits == [f"wait s{k % 2}" for k in range(len(sends))] + ["wait s0", "wait s1"]
    assert sender.events[-2:] == ["wait s0", "wait s1"], "nothing is under way when send returns"
    assert sender.buffers == 2


def test_opening_leaves_the_learner_on_its_own_stream(monkeypatch: pytest.MonkeyPatch):
    """vLLM's trainer_init makes a stream of its own current, and a step must not run on that."""
    current = ["the learner's"]
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: current[0])
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: current.__setitem__(0, stream))

    class Meets(NcclSender):
        def _meet(self) -> None:
            current[0] = "another"

        def _new_stream(self) -> Any:
            assert current[0] == "the learner's"
            return None

    Meets(NumberedSource(print), meeting("nccl")).open()
    assert current == ["the learner's"]


def test_a_rank_that_does_not_send_joins_every_gather_and_holds_one_buffer():
    sender, first = PlainNccl(rank=1), PlainNccl()
    sender.send()
    first.send()
    assert sender.events == [event for event in first.events if event.startswith("fill")]
    assert sender.buffers == 1 and not sender.sent


class PlainIpc(IpcSender):
    """The staging buffer in plain memory; a handle is where in it the chunk lies."""

    def __init__(self, push: Callable[[dict[str, Any]], None], tell: Callable[[str], None]):
        super().__init__(NumberedSource(tell), meeting("ipc"), push)
        self.tell = tell
        self.staging = torch.zeros(self._size, dtype=torch.uint8)

    def _new_staging(self) -> torch.Tensor:
        return self.staging

    def _export(self, flat: torch.Tensor) -> dict[str, tuple[Any, ...]]:
        return {"gpu": (flat.storage_offset(),)}

    def _merge(self, mine: dict[str, tuple[Any, ...]]) -> dict[str, tuple[Any, ...]]:
        self.tell("merge")
        return mine

    def _wait_for_all(self) -> None:
        self.tell("barrier")

    def _release(self) -> None:
        self.tell("release")


def test_engines_that_copy_late_still_find_the_chunk_that_they_were_told_of():
    """The push returns only after the copy, and the learner gathers on meanwhile."""
    events: list[str] = []
    copied: dict[str, torch.Tensor] = {}

    def push(info: dict[str, Any]) -> None:
        time.sleep(0.05)
        (offset,) = info["ipc_handles"]["gpu"]
        end = offset + sum(info["tensor_sizes"])
        pieces = sender.staging[offset:end].clone().split(info["tensor_sizes"])
        for name, shape, piece in zip(info["names"], info["shapes"], pieces, strict=True):
            copied[name] = piece.view(torch.float32).view(shape)

    sender = PlainIpc(push, events.append)
    sender.send()
    assert copied.keys() == {meta.name for meta in METAS}
    assert all(tensor.eq(int(name[1:])).all() for name, tensor in copied.items())
    assert events[-2:] == ["barrier", "release"]


def test_the_next_chunk_is_gathered_while_engines_copy_unless_one_takes_the_whole_buffer():
    """w5 is copied only once the learner has begun to gather w6: without overlap, never."""
    events: list[str] = []
    begun = threading.Event()

    def tell(event: str) -> None:
        events.append(event)
        if event == "fill w6":
            begun.set()

    def push(info: dict[str, Any]) -> None:
        if "w5" in info["names"]:
            assert begun.wait(WAIT_S), "w6 is gathered only after w5 was copied"
        events.append("copied " + " ".join(info["names"]))

    sender = PlainIpc(push, tell)
    sender.send()
    assert [chunk.alone for chunk in sender._chunks] == [False, True, True, False, False, False]
    large = events.index("fill w2")
    assert events[large - 2 : large] == ["copied w1", "barrier"], "alone in the staging buffer"
    after = events.index("fill w3 w4")
    assert events[after - 2 : after] == ["copied w2", "barrier"]


def test_what_an_engine_raises_is_raised_by_send():
    def push(info: dict[str, Any]) -> None:
        if "w3" in info["names"]:
            raise KeyError("no_such_weight")

    with pytest.raises(KeyError, match="no_such_weight"):
        PlainIpc(push, lambda event: None).send()
