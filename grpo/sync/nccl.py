"""The NCCL transport, learner side: rank 0 broadcasts what vLLM's packed receiver expects.

The engines run vLLM's built-in "nccl" backend. It takes chunks of uint8 whose bounds both sides
derive from the list of parameters, so any sender that uses the same bounds will do; this one
gathers straight into the chunk that it sends, and holds two of them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from grpo.sync.buckets import Bucket, largest_bytes, packed_order, plan_packed, total_bytes
from grpo.sync.transport import Meeting, WeightSource


class NcclSender:
    """See `grpo.sync.transport.Sender`. Holds two buckets on rank 0, one on the others."""

    def __init__(self, source: WeightSource, meeting: Meeting):
        self._source = source
        self._meeting = meeting
        self._metas = packed_order(source.metas, meeting.packed_bytes)
        self._chunks = plan_packed(self._metas, meeting.packed_bytes)
        self._streams: list[Any] = []
        self._group: Any = None

    def open(self) -> None:
        if self._meeting.rank == 0:
            with self._own_stream():  # vLLM's call leaves another one current
                self._meet()
            # Kept between updates, as torch's allocator keeps freed memory per stream.
            self._streams = [self._new_stream(), self._new_stream()]

    def update_info(self) -> dict[str, Any]:
        return {
            "names": [meta.name for meta in self._metas],
            "dtype_names": [meta.dtype for meta in self._metas],
            "shapes": [list(meta.shape) for meta in self._metas],
        }

    def send(self) -> None:
        if self._group is None:
            scratch = self._new_buffer()
            for chunk in self._chunks:  # the gathers that rank 0 needs
                self._source.fill(chunk, scratch[: total_bytes(chunk)])
            return
        buffers = [self._new_buffer(), self._new_buffer()]
        for k, chunk in enumerate(self._chunks):
            # Chunk k is gathered on one stream while chunk k - 1 is sent on the other.
            stream = self._streams[k % 2]
            stream.synchronize()  # chunk k - 2 has left this buffer
            self._send_chunk(chunk, buffers[k % 2][: total_bytes(chunk)], stream)
        for stream in self._streams:
            stream.synchronize()

    def _send_chunk(self, chunk: Bucket, flat: torch.Tensor, stream: Any) -> None:
        with torch.cuda.stream(stream):
            self._source.fill(chunk, flat)
            self._group.broadcast(flat, src=0, stream=stream)

    def _meet(self) -> None:
        from vllm.distributed.weight_transfer.nccl_common import trainer_init

        self._group = trainer_init(
            {
                "master_address": self._meeting.address,
                "master_port": self._meeting.port,
                "world_size": self._meeting.world_size,
            }
        )

    @contextmanager
    def _own_stream(self) -> Iterator[None]:
        """Gives the thread back the stream that it had."""
        current = torch.cuda.current_stream()
        try:
            yield
        finally:
            torch.cuda.set_stream(current)

    def _new_buffer(self) -> torch.Tensor:
        return torch.empty(largest_bytes(self._chunks), dtype=torch.uint8, device="cuda")

    def _new_stream(self) -> Any:
        return torch.cuda.Stream()

    def close(self) -> None:
        if self._group is not None:
            self._group.destroy()
            self._group = None
