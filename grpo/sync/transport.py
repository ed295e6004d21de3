"""The interface of every transport, and how a run picks one."""

from dataclasses import dataclass
from typing import Any, Protocol

import torch

from grpo.sync.buckets import Bucket, WeightMeta

# vLLM's name for the receiving end of each transport.
BACKENDS = {"gloo": "grpo_gloo", "shm": "grpo_shm", "nccl": "nccl", "ipc": "ipc"}


@dataclass(frozen=True, slots=True)
class Meeting:
    """Where the learner and the engines' workers meet.

    `rank` is the learner rank's own. `world_size` counts every vLLM worker of every engine, plus
    the learner's rank 0, or all of its ranks where each writes its own shard (shm).
    """

    transport: str
    address: str
    port: int
    rank: int
    world_size: int
    bucket_bytes: int
    timeout_s: float

    def engine_info(self, first_rank: int) -> dict[str, Any]:
        """The arguments of an engine's `init_weight_transfer_engine`; its workers take the transfer
        ranks from `first_rank` on."""
        if self.transport == "ipc":
            return {"packed": True}
        info: dict[str, Any] = {
            "master_address": self.address,
            "master_port": self.port,
            "rank_offset": first_rank,
            "world_size": self.world_size,
        }
        if self.transport == "nccl":
            return info | {
                "packed": True,
                "packed_buffer_size_bytes": self.packed_bytes,
                "packed_num_buffers": 2,
            }
        return info | {"timeout_s": self.timeout_s, "transport": self.transport}

    @property
    def packed_bytes(self) -> int:
        """vLLM's limit for a packed chunk, in bytes: half a bucket. A chunk exceeds the limit by
        its last parameter, so it stays within one bucket (see `grpo.sync.buckets.packed_order`)."""
        return self.bucket_bytes // 2


class WeightSource(Protocol):
    """What a sender reads from: it writes parameters into memory that the sender provides."""

    metas: list[WeightMeta]
    limit_bytes: int

    def fill(self, bucket: Bucket, flat: torch.Tensor) -> None:
        """Writes whole parameters back to back into `flat` (uint8). Collective over the ranks."""
        ...

    def write_shard(self, bucket: Bucket, flat: torch.Tensor) -> None:
        """Writes this rank's shards of them, each byte where `fill` would put it."""
        ...


class Sender(Protocol):
    """The learner's end of a transport. Every rank holds one, and all ranks call it in step."""

    def open(self) -> None:
        """Joins the engines; runs while they run `init_weight_transfer_engine`."""
        ...

    def update_info(self) -> dict[str, Any]:
        """The arguments of the engines' `update_weights`, once per update."""
        ...

    def send(self) -> None:
        """Sends every parameter; runs while the engines run `update_weights`."""
        ...

    def close(self) -> None: ...


def learner_members(transport: str, learner_ranks: int) -> int:
    """How many of the learner's ranks belong to the transfer group; they precede the engines."""
    return learner_ranks if transport == "shm" else 1


def pick_transport(asked: str, *, on_gpu: bool, colocated: bool, one_host: bool = False) -> str:
    """The transport that was asked for. For "auto": on CPU shared memory within one host, otherwise
    gloo; on GPU CUDA IPC where learner and engine share a GPU, otherwise NCCL."""
    if asked != "auto":
        return asked
    if not on_gpu:
        return "shm" if one_host else "gloo"
    return "ipc" if colocated else "nccl"
