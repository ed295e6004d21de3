"""A disk that is full: the run waits for room instead of ending."""

import errno
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from grpo.console import Screen
from grpo.errors import DiskFull
from grpo.stop import pause

T = TypeVar("T")

# What goes away when somebody makes room, raises a quota or mounts the disk anew.
PASSING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_RETRY_S = 60.0
_TINY = 256 * 1024  # bytes


class PatientDisk:
    """Tries a write again every minute, with a notice each time, for `wait_minutes`. A run that is
    told to stop meanwhile tries once more, at once. After a wait in vain nothing waits any more:
    the run is about to end."""

    def __init__(self, wait_minutes: float, screen: Screen, stop: Callable[[], bool]):
        self._wait_s = 60 * wait_minutes
        self._screen = screen
        self._stop = stop

    def write(self, what: str, write: Callable[[], T]) -> T:
        """What `write` returns; it is called again where it has failed. Raises DiskFull where the
        disk stays full, and any other failure at once."""
        deadline = time.monotonic() + self._wait_s
        while True:
            try:
                return write()
            except (OSError, DiskFull) as error:
                fault = as_disk_full(what, error)
                if fault is None:
                    raise
                left_s = deadline - time.monotonic()
                if left_s <= 0 or self._stop():
                    self._wait_s = 0.0  # who has waited in vain does not wait again
                    raise fault from error
            self._screen.warn(
                f"{fault}\nThe run waits for it, {left_s / 60:.0f} more minutes at most "
                "(disk.wait_minutes), and tries again every minute"
            )
            with self._screen.waiting(f"{what}: waiting for room on the disk"):
                pause(min(_RETRY_S, left_s), self._stop)


def as_disk_full(what: str, error: OSError | DiskFull) -> DiskFull | None:
    """The same as an error of ours; None for an OSError of another kind."""
    if isinstance(error, DiskFull):
        return error
    if error.errno not in PASSING:
        return None
    where = f" {error.filename}" if error.filename else ""
    return DiskFull(f"{what}:{where} cannot be written: {os.strerror(error.errno)}. Make room")


def is_full(error: BaseException, folder: Path) -> bool:
    """Whether this error, or one that it comes from, is a full disk.

    torch.save and safetensors lose the errno, hence the words and the look at the disk.
    """
    if not isinstance(error, Exception):
        return False  # Ctrl-C stays Ctrl-C
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, OSError) and link.errno in PASSING:
            return True
        if any(os.strerror(code) in str(link) for code in PASSING):
            return True
        link = link.__cause__ or link.__context__
    return isinstance(error, RuntimeError) and shutil.disk_usage(folder).free < _TINY
