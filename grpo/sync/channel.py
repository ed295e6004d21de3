"""A gloo group of its own between ranks of the learner and every vLLM worker.

Independent of the default process groups of both sides.
"""

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from grpo.errors import RunError


class TransferError(RunError):
    """One side of a weight update failed; the message is that side's own."""


def in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


class GlooChannel:
    """Broadcasts from rank 0, and agreements by which no side is left waiting.

    `timeout_s` bounds every single wait: a peer that dies or hangs raises within it. Every rank
    starts the same operations in the same order.
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
        """Begins to fill `tensor` on every rank with rank 0's; `wait()` on what it returns ends it.

        Until then nobody may write to `tensor`, or let go of it.
        """
        options: Any = dist.BroadcastOptions()
        options.rootRank = 0
        options.rootTensor = 0
        return self._group.broadcast([tensor], options)

    def agree(self, failure: str | None) -> None:
        """Every rank says whether it failed; if one did, all raise TransferError in its words."""
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
        """What a rank has published; waits for it."""
        return self._store.get(key).decode()
