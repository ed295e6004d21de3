"""Double buffers for buckets of weights, private or shared between processes."""

import gc
import mmap
import os
import secrets
import weakref

import numpy as np
import torch

from grpo.sync.channel import GlooChannel, TransferError, in_words

_TOKEN_BYTES = 16
# Each slot begins on a page of its own, behind the page with the token.
_PAGE = mmap.PAGESIZE


class DoubleBuffer:
    """Memory for two buckets of up to `slot_bytes`; bucket k lies in slot k modulo 2.

    It stays mapped, and its pages stay touched, for as long as the object lives: the first touch
    of a page costs more than copying it.
    """

    def __init__(self, memory: mmap.mmap, slot_bytes: int):
        self._memory = memory
        self._slot_bytes = slot_bytes

    @classmethod
    def private(cls, slot_bytes: int) -> "DoubleBuffer":
        return cls(mmap.mmap(-1, _total_bytes(slot_bytes)), slot_bytes)

    def buffer(self, turn: int, num_bytes: int) -> torch.Tensor:
        """The first bytes of the slot whose turn it is (uint8)."""
        return torch.from_numpy(self._array(turn, num_bytes))

    def borrow(self, turn: int, num_bytes: int) -> "BorrowedView":
        """The same, to readers whose views must have gone before the slot's next turn."""
        return BorrowedView(self._array(turn, num_bytes))

    def _array(self, turn: int, num_bytes: int) -> np.ndarray:
        assert num_bytes <= self._slot_bytes, "the bucket is larger than what was planned for"
        offset = _PAGE + (turn % 2) * _rounded(self._slot_bytes)
        return np.frombuffer(self._memory, dtype=np.uint8, count=num_bytes, offset=offset)


class BorrowedView:
    """The bytes of a slot for as long as somebody reads them."""

    def __init__(self, array: np.ndarray):
        self._alive = weakref.ref(array)
        self.flat: torch.Tensor | None = torch.from_numpy(array)

    def give_back(self) -> None:
        """Ends the borrowing. Raises TransferError where a view of the bytes is still held: it
        would change under its holder at the slot's next turn."""
        self.flat = None
        if self._alive() is not None:
            gc.collect()
        if self._alive() is not None:
            raise TransferError(
                "vLLM still holds weights that it was handed, so their memory cannot be used "
                "again: this version of vLLM needs another sync.transport"
            )


def share(channel: GlooChannel, slot_bytes: int, owner: bool) -> DoubleBuffer:
    """Memory for two buckets that every rank of the channel maps; all call this together.

    The owner makes it as an anonymous file and shows the others where its own process holds it
    open. It never has a name, so that nothing is left behind however the processes end.
    Raises TransferError on every rank where one cannot open it.
    """
    size = _total_bytes(slot_bytes)
    file, memory, failure = -1, None, None
    try:
        if owner:
            file, memory = _create(channel, size)
        else:
            path, token = channel.read("shared memory").split()
            memory = _open(path, token, size)
    except (OSError, ValueError) as error:
        failure = in_words(error)
        if owner:
            channel.publish("shared memory", "/nowhere none")
    try:
        channel.agree(failure)  # all have it open: the owner's own handle may go
    finally:
        if file >= 0:
            os.close(file)
    assert memory is not None, "a rank without it has raised in agree"
    return DoubleBuffer(memory, slot_bytes)


def _create(channel: GlooChannel, size: int) -> tuple[int, mmap.mmap]:
    file = os.memfd_create("grpo-weights")
    os.posix_fallocate(file, 0, size)  # fails now, not in the middle of an update
    memory = _map(file, size)
    token = secrets.token_bytes(_TOKEN_BYTES)
    memory[:_TOKEN_BYTES] = token
    channel.publish("shared memory", f"/proc/{os.getpid()}/fd/{file} {token.hex()}")
    return file, memory


def _open(path: str, token: str, size: int) -> mmap.mmap:
    elsewhere = ValueError(
        f"{path} is not the learner's shared memory: the shm transport needs the learner and every "
        "engine on one host, under one user; set sync.transport to gloo"
    )
    try:
        file = os.open(path, os.O_RDWR)
    except OSError as error:
        raise elsewhere from error
    try:
        if os.fstat(file).st_size != size:
            raise elsewhere
        memory = _map(file, size)
    finally:
        os.close(file)
    if memory[:_TOKEN_BYTES].hex() != token:
        raise elsewhere
    return memory


def _map(file: int, size: int) -> mmap.mmap:
    return mmap.mmap(file, size, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)


def _total_bytes(slot_bytes: int) -> int:
    return _PAGE + 2 * _rounded(slot_bytes)


def _rounded(num_bytes: int) -> int:
    return -(-num_bytes // _PAGE) * _PAGE
