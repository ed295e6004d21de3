"""What every transport offers the learner, and how a run picks one."""

from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Meeting:
    """Where the learner's rank 0 and the engines' workers meet.

    `rank` is the learner's own; `world_size` counts rank 0 and every vLLM worker of every engine.
    """

    address: str
    port: int
    rank: int
    world_size: int
    bucket_bytes: int
    timeout_s: float

    def engine_info(self, transport: str, first_rank: int) -> dict[str, Any]:
        """What an engine's `init_weight_transfer_engine` is told; its workers take the transfer
        ranks from `first_rank` on."""
        if transport == "ipc":
            return {"packed": True}
        info: dict[str, Any] = {
            "master_address": self.address,
            "master_port": self.port,
            "rank_offset": first_rank,
            "world_size": self.world_size,
        }
        if transport == "nccl":
            return info | {
                "packed": True,
                "packed_buffer_size_bytes": self.bucket_bytes,
                "packed_num_buffers": 2,
            }
        return info | {"timeout_s": self.timeout_s}


class Sender(Protocol):
    """The learner's end of a transport. Every rank holds one and calls all four in step."""

    def open(self) -> None:
        """Joins the engines; runs while they run `init_weight_transfer_engine`."""
        ...

    def update_info(self) -> dict[str, Any]:
        """What the engines' `update_weights` is told once per update."""
        ...

    def send(self) -> None:
        """Sends every parameter; runs while the engines run `update_weights`."""
        ...

    def close(self) -> None: ...


# vLLM's name of the engine that receives each transport.
BACKENDS = {"gloo": "grpo_gloo", "nccl": "nccl", "ipc": "ipc"}


def pick_transport(asked: str, *, on_gpu: bool, colocated: bool) -> str:
    """gloo without a GPU, CUDA IPC where learner and engine share one, NCCL else."""
    if asked != "auto":
        return asked
    if not on_gpu:
        return "gloo"
    return "ipc" if colocated else "nccl"
