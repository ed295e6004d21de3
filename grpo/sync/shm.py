"""The shared-memory transport: engines on the learner's host read what its ranks wrote.

While the engines load one bucket, every rank writes its own shard of the next: nothing is gathered,
and each byte is copied once.
"""

from typing import Any

from grpo.sync.buckets import largest_bytes, plan_buckets, total_bytes, wire_metas
from grpo.sync.channel import GlooChannel, in_words
from grpo.sync.shared_memory import DoubleBuffer, share
from grpo.sync.transport import Meeting, WeightSource


class ShmSender:
    """See `grpo.sync.transport.Sender`. From `open` on, both sides share two buckets of memory."""

    def __init__(self, source: WeightSource, meeting: Meeting):
        self._source = source
        self._meeting = meeting
        self._buckets = plan_buckets(source.metas, source.limit_bytes)
        self._channel: GlooChannel | None = None
        self._slots: DoubleBuffer | None = None

    def open(self) -> None:
        meeting = self._meeting
        self._channel = GlooChannel(
            meeting.address, meeting.port, meeting.rank, meeting.world_size, meeting.timeout_s
        )
        slot_bytes = largest_bytes(self._buckets)
        if meeting.rank == 0:
            self._channel.publish("slot bytes", str(slot_bytes))
        self._slots = share(self._channel, slot_bytes, owner=meeting.rank == 0)

    def update_info(self) -> dict[str, Any]:
        return {
            "metas": wire_metas(self._source.metas),
            "bucket_bytes": self._source.limit_bytes,
        }

    def send(self) -> None:
        assert self._channel is not None and self._slots is not None, "open comes first"
        for k, bucket in enumerate(self._buckets):
            failure: str | None = None
            try:
                self._source.write_shard(bucket, self._slots.buffer(k, total_bytes(bucket)))
            except Exception as error:  # agree() raises it, here and in the engines
                failure = in_words(error)
            self._channel.agree(failure)  # bucket k is written, bucket k - 1 is loaded
        self._channel.agree(None)  # the last bucket is loaded

    def close(self) -> None:
        self._channel = None
        self._slots = None
