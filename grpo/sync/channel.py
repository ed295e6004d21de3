"""A separate gloo group of the learner's ranks and every vLLM worker.

It is independent of the default process groups on both sides.
"""

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from grpo.errors import RunError


class TransferError(RunError):
    """One side of a weight update failed; the message comes from that side."""


def in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


class GlooChannel:
    """Broadcasts from rank 0, and agreements that leave no side waiting for one that failed.

    `timeout_s` limits every single wait: if a peer dies or hangs, the others raise within it. Every
    rank must start the same operations in the same order.
    """

    def __init__(self, address: str, port: int, rank: int, world_size: int, timeout_s: float):
        timeout = timedelta(seconds=timeout_s)
        # Both stores are documented in torch.distributed, though not listed in its __all__.
        self._store = dist.TCPStore(  # pyright: ignore[reportPrivateImportUsage]
            address, port, world_size, is_master=rank == 0, timeout=timeout
        )
        prefixed = dist.PrefixStore("grpo", self._store)  # pyright: ignore[reportPrivateImportUsage]
        self._group: Any = dist.ProcessGroupGloo(prefixed, rank, world_size, timeout)
        self._rank = rank
        self._round = 0

    def start_broadcast(self, tensor: torch.Tensor) -> Any:
        """Starts to fill `tensor` on every rank with rank 0's; `wait()` on the result completes it.

        Until then `tensor` must be neither written to nor freed.
        """
        options: Any = dist.BroadcastOptions()
        options.rootRank = 0
        options.rootTensor = 0
        return self._group.broadcast([tensor], options)

    def agree(self, failure: str | None) -> None:
        """Every rank reports its failure, or None. If one failed, all raise TransferError with its
        message."""
        self._round += 1
        if failure is not None:
            self._store.set(f"failure-{self._round}-{self._rank}", failure)
        flag = torch.tensor([0 if failure is None else self._rank + 1])
        options: Any = dist.AllreduceOptions()
        options.reduceOp = dist.ReduceOp.MAX
        self._group.allreduce([flag], options).wait()
        if flag.item():
            failed = int(flag.item()) - 1
            words = self._store.get(f"failure-{self._round}-{failed}").decode()
            raise TransferError(f"transfer rank {failed}: {words}")

    def publish(self, key: str, value: str) -> None:
        self._store.set(key, value)

    def read(self, key: str) -> str:
        """What a rank has published under this key; waits until it has."""
        return self._store.get(key).decode()
