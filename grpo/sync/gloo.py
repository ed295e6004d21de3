"""The gloo transport, learner side: buckets of bytes from rank 0 to every engine."""

from typing import Any

from grpo.sync.buckets import flatten
from grpo.sync.channel import GlooChannel
from grpo.sync.source import ZeroSource
from grpo.sync.transport import Meeting


class GlooSender:
    """See `grpo.sync.transport.Sender`."""

    def __init__(self, source: ZeroSource, meeting: Meeting):
        self._source = source
        self._meeting = meeting
        self._channel: GlooChannel | None = None

    def open(self) -> None:
        if self._meeting.rank == 0:
            self._channel = GlooChannel(
                self._meeting.address,
                self._meeting.port,
                rank=0,
                world_size=self._meeting.world_size,
                timeout_s=self._meeting.timeout_s,
            )

    def update_info(self) -> dict[str, Any]:
        return {"metas": self._source.wire_metas(), "bucket_bytes": self._source.limit_bytes}

    def send(self) -> None:
        for tensors in self._source:
            if self._channel is not None:
                self._channel.broadcast(flatten(tensors))
                self._channel.agree(None)

    def close(self) -> None:
        self._channel = None
