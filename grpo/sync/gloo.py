"""The gloo transport: buckets of bytes from the learner's rank 0 to every engine, over sockets.

Three buckets are in progress at a time: one is gathered, one travels, one is loaded.
"""

from typing import Any

import torch

from grpo.sync.buckets import largest_bytes, plan_buckets, total_bytes, wire_metas
from grpo.sync.channel import GlooChannel, in_words
from grpo.sync.shared_memory import DoubleBuffer
from grpo.sync.transport import Meeting, WeightSource


class GlooSender:
    """See `grpo.sync.transport.Sender`. Holds two buckets on rank 0, one on the others."""

    def __init__(self, source: WeightSource, meeting: Meeting):
        self._source = source
        self._meeting = meeting
        self._buckets = plan_buckets(source.metas, source.limit_bytes)
        self._slot_bytes = largest_bytes(self._buckets)
        self._channel: GlooChannel | None = None

    def open(self) -> None:
        meeting = self._meeting
        if meeting.rank == 0:
            self._channel = GlooChannel(
                meeting.address, meeting.port, 0, meeting.world_size, meeting.timeout_s
            )
            self._slots = DoubleBuffer.private(self._slot_bytes)
        else:
            self._scratch = torch.empty(self._slot_bytes, dtype=torch.uint8)

    def update_info(self) -> dict[str, Any]:
        return {
            "metas": wire_metas(self._source.metas),
            "bucket_bytes": self._source.limit_bytes,
        }

    def send(self) -> None:
        if self._channel is None:
            for bucket in self._buckets:
                self._source.fill(bucket, self._scratch[: total_bytes(bucket)])
        else:
            self._send(self._channel)

    def _send(self, channel: GlooChannel) -> None:
        travelling: list[Any] = []
        failure = self._fill(0)
        for k, bucket in enumerate(self._buckets):
            travelling.append(channel.start_broadcast(self._slots.buffer(k, total_bytes(bucket))))
            if k > 0:
                travelling[k - 1].wait()  # its slot is free for bucket k + 1
            ahead = self._fill(k + 1)
            if k > 0:
                channel.agree(failure)  # bucket k - 1 is loaded everywhere
            failure = failure or ahead
        travelling[-1].wait()
        channel.agree(failure)

    def _fill(self, k: int) -> str | None:
        """Gathers bucket k, if there is one, into its slot. Returns what went wrong, or None."""
        if k == len(self._buckets):
            return None
        bucket = self._buckets[k]
        try:
            self._source.fill(bucket, self._slots.buffer(k, total_bytes(bucket)))
        except Exception as error:  # agree() raises it, here and in the engines
            return in_words(error)
        return None

    def close(self) -> None:
        self._channel = None
