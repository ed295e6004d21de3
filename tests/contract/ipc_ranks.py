"""A learner rank of the IPC transport: the sender, over files in place of CUDA IPC.

A rank beside rank 0 is a process of its own that imports nothing of vLLM.
"""

import os
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from grpo.sync import ipc
from grpo.sync.ipc import IpcSender
from grpo.sync.transport import Meeting
from tests.contract import gpu
from tests.contract.cases import Case
from tests.contract.gpu import Gpu, on
from tests.contract.weights import Source, parameters

_files: dict[int, Path] = {}  # by where the memory begins in this process
_exports: list[torch.Tensor] = []  # all of them, in order: each has a counter of readers
# How much later the engines copy where another rank might run ahead.
LATE_S = 0.02
LATER_S = 0.2


def shared_bytes(size: int) -> torch.Tensor:
    """Memory that another process can open, as memory of a GPU can be."""
    file, name = tempfile.mkstemp(dir=os.environ["CONTRACT_FOLDER"])
    os.close(file)
    flat = torch.from_file(name, shared=True, size=size, dtype=torch.uint8).fill_(0xAB)
    _files[flat.untyped_storage().data_ptr()] = Path(name)
    return flat


def export(flat: torch.Tensor) -> tuple[Any, tuple[Any, ...]]:
    """torch's `reduce_tensor`: the arguments of its `rebuild_cuda_tensor`, in their order."""
    storage = flat.untyped_storage()
    handle = str(_files[storage.data_ptr()]).encode()
    _exports.append(flat)
    counter = (f"{os.getpid()} {len(_exports)}".encode(), len(_exports))
    place = (flat.size(), flat.stride(), flat.storage_offset(), torch.UntypedStorage, flat.dtype)
    memory = (gpu.here().index, handle, storage.nbytes(), 0, False)
    return None, (torch.Tensor, *place, *memory, *counter, b"event", True)


def rebuild(*arguments: Any) -> torch.Tensor:
    """torch's `rebuild_cuda_tensor`."""
    size, stride, offset = arguments[1:4]
    device, handle, num_bytes = arguments[6:9]
    assert device == gpu.here().index, "opened on another GPU"
    name = handle.decode()
    whole = torch.from_file(name, shared=True, size=num_bytes, dtype=torch.uint8)
    return whole.as_strided(size, stride, offset)


class _LateCall:
    """The engines copy as late as the sender lets them: when it waits for them."""

    def __init__(self, call: Callable[[], None]):
        self._call: Callable[[], None] | None = call

    def result(self) -> None:
        call, self._call = self._call, None
        if call is not None:
            time.sleep(LateExecutor.late_s)
            call()


class LateExecutor:
    """In place of the thread that hands chunks to the engines."""

    late_s = 0.0

    def __init__(self, max_workers: int):
        assert max_workers == 1, "chunks would overtake each other"
        self._calls: list[_LateCall] = []

    def submit(self, function: Callable[..., None], *arguments: Any) -> _LateCall:
        self._calls.append(_LateCall(lambda: function(*arguments)))
        return self._calls[-1]

    def __enter__(self) -> "LateExecutor":
        return self

    def __exit__(self, failed: Any, *_: Any) -> None:
        for call in self._calls:
            if failed is None:
                call.result()


def install() -> None:
    """Puts the stand-ins into our sender, in this process for good."""
    ipc.reduce_tensor = export
    ipc.ThreadPoolExecutor = LateExecutor


class HostIpcSender(IpcSender):
    """Its staging buffer is in shared host memory; the rest is what runs on GPUs."""

    def _new_staging(self) -> torch.Tensor:
        return shared_bytes(self._size)


def meeting(case: Case, rank: int) -> Meeting:
    workers = case.engines * case.tensor_parallel
    return Meeting("ipc", "127.0.0.1", 0, rank, 1 + workers, case.bucket_bytes, 20.0)


class Rank:
    """One learner rank in its group; a context manager."""

    def __init__(self, case: Case, rank: int, store: str, push: Callable[[dict[str, Any]], None]):
        self._case, self._rank, self._store = case, rank, store
        self.gpu = Gpu(rank)
        self.source = Source(parameters(case.parameters, case.dtype), case.bucket_bytes)
        self._sender = SENDERS.get(case.mutation, HostIpcSender)(
            self.source, meeting(case, rank), push
        )

    def __enter__(self) -> "Rank":
        dist.init_process_group(
            "gloo",
            init_method=f"file://{self._store}",
            rank=self._rank,
            world_size=self._case.ranks,
            timeout=timedelta(seconds=20),
        )
        return self

    def __exit__(self, *_: Any) -> None:
        dist.destroy_process_group()

    def send(self, update: int) -> None:
        self.source.take(update)
        LateExecutor.late_s = LATE_S if self._case.ranks > 1 else 0.0
        with on(self.gpu):
            self._sender.send()


def run_other(case: Case, rank: int, store: str, said: Connection) -> None:
    """The process of a rank beside rank 0. Says None for each update that it has sent, or what
    went wrong."""
    gpu.install()
    install()
    try:
        with Rank(case, rank, store, lambda info: None) as other:
            for update in range(case.updates):
                other.send(update)
                said.send(None)
    except Exception:  # said to the process that waits for this one
        said.send(traceback.format_exc())


# --- senders with one fault each ---


class _DoesNotWait(HostIpcSender):
    def _settle(self) -> None:
        pass


class _ExportsUnwritten(HostIpcSender):
    def _export(self, flat: torch.Tensor) -> dict[str, tuple[Any, ...]]:
        return {f"GPU-{gpu.here().number}": export(flat)[1]}


class _LeavesTheLastChunkOut(HostIpcSender):
    def send(self) -> None:
        self._chunks = self._chunks[:-1]
        super().send()


class _DoesNotWaitForOtherRanks(HostIpcSender):
    def send(self) -> None:
        LateExecutor.late_s = LATER_S
        super().send()

    def _wait_for_all(self) -> None:
        pass


SENDERS: dict[str, type[HostIpcSender]] = {
    "refills before the engines have copied": _DoesNotWait,
    "exports what is not written yet": _ExportsUnwritten,
    "does not send the last chunk": _LeavesTheLastChunkOut,
    "ranks do not wait for each other": _DoesNotWaitForOtherRanks,
}
