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
# Each slot starts on a page of its own, after the page with the token.
_PAGE = mmap.PAGESIZE


class DoubleBuffer:
    """Memory for two buckets of up to `slot_bytes` each; bucket k lies in slot k modulo 2.

    It stays mapped and resident for as long as the object lives: the first touch of a page costs
    more than copying it.
    """

    def __init__(self, memory: mmap.mmap, slot_bytes: int):
        self._memory = memory
        self._slot_bytes = slot_bytes

    @classmethod
    def private(cls, slot_bytes: int) -> "DoubleBuffer":
        return cls(mmap.mmap(-1, _total_bytes(slot_bytes)), slot_bytes)

    def buffer(self, turn: int, num_bytes: int) -> torch.Tensor:
        """The first `num_bytes` of slot `turn` modulo 2 (uint8)."""
        return torch.from_numpy(self._array(turn, num_bytes))

    def borrow(self, turn: int, num_bytes: int) -> "BorrowedView":
        """The same, for readers that must drop every view before the slot is used again."""
        return BorrowedView(self._array(turn, num_bytes))

    def _array(self, turn: int, num_bytes: int) -> np.ndarray:
        assert num_bytes <= self._slot_bytes, "the bucket is larger than what was planned for"
        offset = _PAGE + (turn % 2) * _rounded(self._slot_bytes)
        return np.frombuffer(self._memory, dtype=np.uint8, count=num_bytes, offset=offset)


class BorrowedView:
    """The bytes of a slot, lent to a reader."""

    def __init__(self, array: np.ndarray):
        self._alive = weakref.ref(array)
        self.flat: torch.Tensor | None = torch.from_numpy(array)

    def give_back(self) -> None:
        """Ends the loan. Raises TransferError if a view of the bytes is still held, since its
        contents would change when the slot is used again."""
        self.flat = None
        if self._alive() is not None:
            gc.collect()
        if self._alive() is not None:
            raise TransferError(
                "vLLM still holds weights that it was given, so their memory cannot be reused: "
                "this version of vLLM needs another sync.transport"
            )


def share(channel: GlooChannel, slot_bytes: int, owner: bool) -> DoubleBuffer:
    """Memory for two buckets that every rank of the channel maps. Collective.

    The owner creates it as an anonymous file, which the others open through the owner's entries in
    /proc. The file never has a name, so nothing is left behind however the processes end.
    Raises TransferError on every rank if one cannot open it.
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
        channel.agree(failure)  # all have it open: the owner may close its own
    finally:
        if file >= 0:
            os.close(file)
    assert memory is not None, "agree raises on every rank if one has no memory"
    return DoubleBuffer(memory, slot_bytes)


def _create(channel: GlooChannel, size: int) -> tuple[int, mmap.mmap]:
    file = os.memfd_create("grpo-weights")
    os.posix_fallocate(file, 0, size)  # fails now rather than during an update
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
