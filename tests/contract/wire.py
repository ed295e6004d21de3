"""A stand-in for NCCL between threads, which does not hang where the sides disagree."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from typing import Any

import torch

from tests.contract.gpu import ContractError, Gpu, Stream, Work, here, on

DEADLINE_S = 20.0


class Wire:
    """What all communicators of one group share: who is there and what has been broadcast."""

    at: dict[int, "Wire"] = {}  # noqa: RUF012 - by port

    def __init__(self, port: int, parties: int):
        self.at[port] = self
        self.parties = parties
        self.sizes: list[int] = []  # of every broadcast of this update, in bytes
        self.failed: Exception | None = None
        self._ranks: set[int] = set()
        self._changed = threading.Condition()
        self._given: dict[int, dict[int, torch.Tensor]] = {}  # by number, then by rank
        self._ended: dict[int, int] = {}

    def begin(self) -> None:
        """A new update."""
        self._ended.clear()
        self.sizes.clear()

    def claim(self, rank: int, world_size: int) -> None:
        with self._changed:
            if world_size != self.parties:
                self._fail(f"rank {rank} waits for {world_size} ranks, {self.parties} are there")
            if not 0 <= rank < self.parties:
                self._fail(f"rank {rank} is outside of a group of {self.parties}")
            if rank in self._ranks:
                self._fail(f"rank {rank} is taken twice in a group of {self.parties}")
            self._ranks.add(rank)

    def broadcast(self, number: int, rank: int, tensor: torch.Tensor, source: int) -> None:
        """What `rank` does in broadcast `number`, counted from 0; returns when it is done."""
        with self._changed:
            given = self._given.setdefault(number, {})
            given[rank] = tensor
            for other, theirs in given.items():
                if theirs.nbytes != tensor.nbytes:
                    self._fail(
                        f"broadcast {number}: rank {rank} has {tensor.nbytes} bytes, rank {other} "
                        f"{theirs.nbytes}"
                    )
            if len(given) == self.parties:
                for other, theirs in given.items():
                    if other != source:
                        theirs.copy_(given[source])
                self.sizes.append(tensor.nbytes)
                del self._given[number]
                self._changed.notify_all()
            while len(given) < self.parties:
                if self.failed:
                    raise self.failed
                self._look_for_ended(number, rank)
                if not self._changed.wait(DEADLINE_S):
                    self._fail(f"broadcast {number} was not finished in {DEADLINE_S:.0f} s")

    def end(self, rank: int, count: int) -> None:
        """Rank takes part in nothing more of this update, after `count` broadcasts in all."""
        with self._changed:
            self._ended[rank] = count
            self._changed.notify_all()

    def fail(self, error: Exception) -> None:
        """Wakes everybody who waits; the first error counts."""
        with self._changed:
            self.failed = self.failed or error
            self._changed.notify_all()

    def _look_for_ended(self, number: int, rank: int) -> None:
        for other, count in self._ended.items():
            if count <= number:
                self._fail(
                    f"rank {rank} waits for broadcast {number}, rank {other} ended after {count}"
                )

    def _fail(self, words: str) -> None:
        self.failed = self.failed or ContractError(words)
        self._changed.notify_all()
        raise self.failed


class Communicator:
    """What our sender and vLLM's receivers use of vLLM's PyNcclCommunicator."""

    def __init__(self, group: Any, device: int, library_path: str | None = None):
        assert device == here().index, f"{device} is not the GPU of this process"
        self.rank, self.world_size = group.rank, group.world_size
        self.wire = Wire.at[group.store.port]
        self.count = 0
        self._last: list[Work] = []
        here().current = Stream()  # as vLLM's may leave another stream current

    def broadcast(self, tensor: torch.Tensor, src: int, stream: Stream | None = None) -> None:
        """Queued on a stream, behind every earlier broadcast of this communicator."""
        if not tensor.is_contiguous():
            raise ContractError("NCCL sends contiguous memory")
        number, self.count = self.count, self.count + 1
        run = lambda: self.wire.broadcast(number, self.rank, tensor, src)  # noqa: E731
        self._last = [(stream or here().current).add(run, *self._last)]

    def destroy(self) -> None:
        self._last = []


def claiming(create: Callable[..., Any]) -> Callable[..., Any]:
    """vLLM's StatelessProcessGroup.create, which by itself waits minutes for a missing rank."""

    def claimed(host: str, port: int, rank: int, world_size: int, **more: Any) -> Any:
        Wire.at[port].claim(rank, world_size)
        return create(host, port, rank, world_size, **more)

    return claimed


def together(calls: Sequence[tuple[Gpu, Callable[[], Any]]], wire: Wire) -> None:
    """Runs each on its GPU in a thread of its own. Raises the first failure at once."""
    futures = [Future[None]() for _ in calls]

    def run(gpu: Gpu, call: Callable[[], Any], future: Future[None]) -> None:
        try:
            with on(gpu):
                call()
        except Exception as error:  # reported below, by the thread that waits for all
            wire.fail(error)
            future.set_exception(error)
        else:
            future.set_result(None)

    for (gpu, call), future in zip(calls, futures, strict=True):
        threading.Thread(target=run, args=(gpu, call, future), daemon=True).start()
    running = wait(futures, DEADLINE_S, FIRST_EXCEPTION).not_done
    if wire.failed:
        raise wire.failed
    if running:
        raise ContractError(f"{len(running)} of {len(calls)} did not end in {DEADLINE_S:.0f} s")
