"""The NCCL transport, learner side: vLLM's own packed broadcast from rank 0 to every engine."""

from typing import Any

from vllm.distributed.weight_transfer.nccl_common import trainer_init
from vllm.distributed.weight_transfer.packed_tensor import packed_nccl_broadcast_producer

from grpo.sync.source import ZeroSource
from grpo.sync.transport import Meeting


class NcclSender:
    """See `grpo.sync.transport.Sender`. The engines run vLLM's built-in "nccl" backend."""

    def __init__(self, source: ZeroSource, meeting: Meeting):
        self._source = source
        self._meeting = meeting
        self._group: Any = None

    def open(self) -> None:
        if self._meeting.rank == 0:
            self._group = trainer_init(
                {
                    "master_address": self._meeting.address,
                    "master_port": self._meeting.port,
                    "world_size": self._meeting.world_size,
                }
            )

    def update_info(self) -> dict[str, Any]:
        metas = self._source.metas
        return {
            "names": [meta.name for meta in metas],
            "dtype_names": [meta.dtype for meta in metas],
            "shapes": [list(meta.shape) for meta in metas],
        }

    def send(self) -> None:
        stream = self._source.named_tensors()
        if self._group is None:
            for _ in stream:  # stay in the gathers that rank 0 needs
                pass
            return
        packed_nccl_broadcast_producer(
            stream,
            self._group,
            src=0,
            post_iter_func=lambda item: item[1],
            buffer_size_bytes=self._meeting.bucket_bytes,
            num_buffers=2,
        )

    def close(self) -> None:
        if self._group is not None:
            self._group.destroy()
            self._group = None
