"""Processes that end with the one that started them, however that one ends."""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent_pid: int) -> None:
    """To call in the child. A parent that is killed with SIGKILL, or frozen when its own parent
    ends, cannot stop its children; the kernel does. The thread that started the child counts as the
    parent, so it must be one that stays. Elsewhere than on Linux nothing happens."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:  # it died before the line above
        os._exit(1)
