"""The CUDA IPC transport, learner side: engines on the same GPUs read a shared staging buffer.

The engines run vLLM's built-in "ipc" backend in packed mode, which copies each chunk out of the
staging buffer before loading it: buffer and copy together take at most two buckets of GPU memory.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.reductions import reduce_tensor

from grpo.sync.buckets import Bucket, WeightMeta, plan_buckets, total_bytes
from grpo.sync.transport import Meeting, WeightSource


@dataclass(frozen=True, slots=True)
class StagedChunk:
    """Parameters at byte `offset` of the staging buffer; `alone` if nothing else fits."""

    bucket: Bucket
    offset: int
    alone: bool


def plan_staging(metas: Sequence[WeightMeta], bucket_bytes: int) -> tuple[int, list[StagedChunk]]:
    """The size of the staging buffer in bytes, and the chunks that alternate between its halves.

    A parameter larger than one half takes the whole buffer, while nothing else is in transit.
    """
    size = max(bucket_bytes, *(meta.num_bytes for meta in metas))
    size += -size % 32  # so that both halves are aligned for every dtype
    half = size // 2
    chunks: list[StagedChunk] = []
    for turn, bucket in enumerate(plan_buckets(metas, half)):
        alone = total_bytes(bucket) > half
        chunks.append(StagedChunk(bucket, 0 if alone else turn % 2 * half, alone))
    return size, chunks


class IpcSender:
    """See `grpo.sync.transport.Sender`.

    Here the learner drives: rank 0 hands each chunk's handles to the engines with `push`, which
    returns once they have copied the chunk. Meanwhile the ranks gather the next one.
    """

    def __init__(
        self, source: WeightSource, meeting: Meeting, push: Callable[[dict[str, Any]], None]
    ):
        self._source = source
        self._meeting = meeting
        self._push = push
        self._size, self._chunks = plan_staging(source.metas, meeting.bucket_bytes)
        self._pushing: Future[None] | None = None

    def open(self) -> None:
        """Nothing to join: the handles travel with each chunk."""

    def update_info(self) -> dict[str, Any]:
        return {}

    def send(self) -> None:
        staging = self._new_staging()
        was_alone = False
        with ThreadPoolExecutor(max_workers=1) as thread:
            for chunk in self._chunks:
                if chunk.alone or was_alone:
                    self._settle()
                    self._wait_for_all()
                was_alone = chunk.alone
                end = chunk.offset + total_bytes(chunk.bucket)
                flat = staging[chunk.offset : end]
                self._source.fill(chunk.bucket, flat)
                handle = self._export(flat)
                # No rank leaves the merge before rank 0 has entered it, after its last push: the
                # half that is filled next is no longer read by any engine.
                self._settle()
                handles = self._merge(handle)
                if self._meeting.rank == 0:
                    info = chunk_info(chunk.bucket, handles)
                    self._pushing = thread.submit(self._push, info)
            self._settle()
        self._wait_for_all()
        self._release()

    def _settle(self) -> None:
        """Waits until the engines have copied the last chunk. Raises what they raised."""
        if self._pushing is not None:
            self._pushing.result()
            self._pushing = None

    def _new_staging(self) -> torch.Tensor:
        return torch.empty(self._size, dtype=torch.uint8, device="cuda")

    def _export(self, flat: torch.Tensor) -> dict[str, tuple[Any, ...]]:
        # A new export for every chunk: torch counts the readers of an export, and a reader
        # decrements the count each time it opens one.
        torch.cuda.current_stream().synchronize()
        gpu = str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
        return {gpu: reduce_tensor(flat)[1]}

    def _merge(self, mine: dict[str, tuple[Any, ...]]) -> dict[str, tuple[Any, ...]]:
        """The handles of all ranks by GPU; each engine worker looks up its own GPU's."""
        gathered: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(gathered, mine)
        return {gpu: handle for handles in gathered for gpu, handle in handles.items()}

    def _wait_for_all(self) -> None:
        dist.barrier()

    def _release(self) -> None:
        torch.cuda.ipc_collect()

    def close(self) -> None:
        """Nothing is held between updates."""


def chunk_info(bucket: Bucket, handles: dict[str, tuple[Any, ...]]) -> dict[str, Any]:
    """The arguments of the engines' `update_weights` for a chunk, under vLLM's names."""
    return {
        "names": [meta.name for meta in bucket],
        "dtype_names": [meta.dtype for meta in bucket],
        "shapes": [list(meta.shape) for meta in bucket],
        "ipc_handles": handles,
        "tensor_sizes": [meta.num_bytes for meta in bucket],
    }
