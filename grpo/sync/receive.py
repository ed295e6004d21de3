"""The engines' end of the gloo and shared-memory transports, without vLLM."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from grpo.sync.buckets import WeightMeta, largest_bytes, plan_buckets, total_bytes, unflatten
from grpo.sync.channel import GlooChannel, in_words
from grpo.sync.shared_memory import Loan, Turns, share

# Takes a bucket's bytes and the named views of them; holds none of them when it returns.
Load = Callable[[torch.Tensor, list[tuple[str, torch.Tensor]]], None]


class Receiver(Protocol):
    def receive(self, metas: Sequence[WeightMeta], bucket_bytes: int, load: Load) -> None:
        """Takes one update, a bucket at a time. Raises TransferError where any side failed."""
        ...


class GlooReceiver:
    """Loads bucket k while bucket k + 1 arrives."""

    def __init__(self, channel: GlooChannel):
        self._channel = channel
        self._turns: Turns | None = None
        self._slot_bytes = 0

    def receive(self, metas: Sequence[WeightMeta], bucket_bytes: int, load: Load) -> None:
        buckets = plan_buckets(metas, bucket_bytes)
        turns = self._turns_of(largest_bytes(buckets))
        arriving: Any = None
        for k, bucket in enumerate(buckets):
            if k == 0:
                arriving = self._start(turns, buckets, 0)
            arriving.wait()
            if k + 1 < len(buckets):
                arriving = self._start(turns, buckets, k + 1)
            self._channel.agree(_load(turns.lend(k, total_bytes(bucket)), bucket, load))

    def _start(self, turns: Turns, buckets: list[list[WeightMeta]], k: int) -> Any:
        return self._channel.start_broadcast(turns.buffer(k, total_bytes(buckets[k])))

    def _turns_of(self, slot_bytes: int) -> Turns:
        if self._turns is None or self._slot_bytes != slot_bytes:
            self._turns = Turns.private(slot_bytes)
            self._slot_bytes = slot_bytes
        return self._turns


class ShmReceiver:
    """Loads bucket k where the learner wrote it, while the learner writes bucket k + 1."""

    def __init__(self, channel: GlooChannel):
        self._channel = channel
        self._turns = share(channel, int(channel.read("slot bytes")), owner=False)

    def receive(self, metas: Sequence[WeightMeta], bucket_bytes: int, load: Load) -> None:
        failure: str | None = None
        for k, bucket in enumerate(plan_buckets(metas, bucket_bytes)):
            self._channel.agree(failure)  # bucket k is written, bucket k - 1 is loaded
            failure = _load(self._turns.lend(k, total_bytes(bucket)), bucket, load)
        self._channel.agree(failure)


def _load(loan: Loan, bucket: list[WeightMeta], load: Load) -> str | None:
    """Hands a bucket over and takes its memory back; says what went wrong."""
    assert loan.flat is not None
    try:
        load(loan.flat, unflatten(loan.flat, bucket))
        loan.end()
    except Exception as error:  # agree() raises it, here and in the learner
        return in_words(error)
    return None
