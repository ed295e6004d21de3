"""The engines' end of the gloo and shared-memory transports; independent of vLLM."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from grpo.sync.buckets import WeightMeta, largest_bytes, plan_buckets, total_bytes, unflatten
from grpo.sync.channel import GlooChannel, in_words
from grpo.sync.shared_memory import BorrowedView, DoubleBuffer, share

# Takes a bucket's bytes and the named views of them, and must keep none of them when it returns.
Load = Callable[[torch.Tensor, list[tuple[str, torch.Tensor]]], None]


class Receiver(Protocol):
    def receive(self, metas: Sequence[WeightMeta], bucket_bytes: int, load: Load) -> None:
        """Receives one update, bucket by bucket. Raises TransferError if any side failed."""
        ...


class GlooReceiver:
    """Loads bucket k while bucket k + 1 arrives."""

    def __init__(self, channel: GlooChannel):
        self._channel = channel
        self._slots: DoubleBuffer | None = None
        self._slot_bytes = 0

    def receive(self, metas: Sequence[WeightMeta], bucket_bytes: int, load: Load) -> None:
        buckets = plan_buckets(metas, bucket_bytes)
        slots = self._double_buffer(largest_bytes(buckets))
        arriving: Any = None
        for k, bucket in enumerate(buckets):
            if k == 0:
                arriving = self._start(slots, buckets, 0)
            arriving.wait()
            if k + 1 < len(buckets):
                arriving = self._start(slots, buckets, k + 1)
            self._channel.agree(_load(slots.borrow(k, total_bytes(bucket)), bucket, load))

    def _start(self, slots: DoubleBuffer, buckets: list[list[WeightMeta]], k: int) -> Any:
        return self._channel.start_broadcast(slots.buffer(k, total_bytes(buckets[k])))

    def _double_buffer(self, slot_bytes: int) -> DoubleBuffer:
        if self._slots is None or self._slot_bytes != slot_bytes:
            self._slots = DoubleBuffer.private(slot_bytes)
            self._slot_bytes = slot_bytes
        return self._slots


class ShmReceiver:
    """Loads bucket k where the learner wrote it, while the learner writes bucket k + 1."""

    def __init__(self, channel: GlooChannel):
        self._channel = channel
        self._slots = share(channel, int(channel.read("slot bytes")), owner=False)

    def receive(self, metas: Sequence[WeightMeta], bucket_bytes: int, load: Load) -> None:
        failure: str | None = None
        for k, bucket in enumerate(plan_buckets(metas, bucket_bytes)):
            self._channel.agree(failure)  # bucket k is written, bucket k - 1 is loaded
            failure = _load(self._slots.borrow(k, total_bytes(bucket)), bucket, load)
        self._channel.agree(failure)


def _load(view: BorrowedView, bucket: list[WeightMeta], load: Load) -> str | None:
    """Hands a bucket over and takes its memory back. Returns what went wrong, or None."""
    assert view.flat is not None
    try:
        load(view.flat, unflatten(view.flat, bucket))
        view.give_back()
    except Exception as error:  # agree() raises it, here and in the learner
        return in_words(error)
    return None
