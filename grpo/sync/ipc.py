"""The CUDA IPC transport, learner side: engines on the same GPUs read a shared staging buffer."""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from vllm.distributed.weight_transfer.packed_tensor import packed_ipc_producer

from grpo.sync.source import ZeroSource
from grpo.sync.transport import Meeting


class IpcSender:
    """See `grpo.sync.transport.Sender`. The engines run vLLM's built-in "ipc" backend.

    Here the learner drives: rank 0 hands each chunk's handles to the engines with `push`, which
    returns once they have copied the chunk, so one staging buffer serves the whole update.
    """

    def __init__(
        self, source: ZeroSource, meeting: Meeting, push: Callable[[dict[str, Any]], None]
    ):
        self._source = source
        self._rank = meeting.rank
        self._push = push
        largest = max(meta.num_bytes for meta in source.metas)
        self._buffer_bytes = max(meeting.bucket_bytes, largest)

    def open(self) -> None:
        """Nothing to join: the handles travel with each chunk."""

    def update_info(self) -> dict[str, Any]:
        return {}

    def send(self) -> None:
        gpu = str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
        for chunk in packed_ipc_producer(
            self._source.named_tensors(), gpu, lambda item: item[1], self._buffer_bytes
        ):
            handles = self._merge(chunk.ipc_handle)
            if self._rank == 0:
                self._push(
                    {
                        "names": chunk.names,
                        "dtype_names": chunk.dtype_names,
                        "shapes": chunk.shapes,
                        "ipc_handles": handles,
                        "tensor_sizes": chunk.tensor_sizes,
                    }
                )
            self._wait_for_all()
        torch.cuda.ipc_collect()

    def _merge(self, mine: dict[str, tuple[Any, ...]]) -> dict[str, tuple[Any, ...]]:
        """The handles of every rank by GPU: each engine worker looks up its own GPU's."""
        gathered: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(gathered, mine)
        torch.cuda.synchronize()
        return {gpu: handle for handles in gathered for gpu, handle in handles.items()}

    def _wait_for_all(self) -> None:
        # No rank may refill its buffer while an engine still reads it.
        dist.barrier()

    def close(self) -> None:
        """Nothing is held between updates."""
