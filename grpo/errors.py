"""The ways a run may end early, by who can mend them."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from grpo.types import ScoredGroup


class UserError(ValueError):
    """A mistake in a recipe, a data file or a command line.

    The message names the key or row, the value, what was expected and how to mend it.
    The command line prints it without a traceback and exits with 2.
    """


class RunError(RuntimeError):
    """Something failed while a correct run was under way (a worker died, a deadline passed).

    The command line prints the message, says how to resume, and exits with 1.
    """


class WorkerFault(RunError):
    """A worker died, failed in a call or did not answer: the run can go on from what is saved, with
    workers that are started anew. `where`: the worker and the call."""

    def __init__(self, where: str, message: str):
        super().__init__(message)
        self.where = where


class Diverged(RunError):
    """Training has gone where nothing can be learned any more (weights or gradients that are not
    finite, a collapse): only an earlier checkpoint helps. `groups`: without which it might not
    have; `distrusted`: the last so many steps may have been ill already."""

    def __init__(self, message: str, groups: Sequence[ScoredGroup] = (), distrusted: int = 0):
        super().__init__(message)
        self.groups = tuple(groups)
        self.distrusted = distrusted


class Collapsed(RunError):
    """The run has lost what it had learned, or can learn nothing more, and its recipe says that it
    must not go on (`health.on_collapse: stop`). The message is the diagnosis."""


class DiskFull(UserError):
    """A write failed because the disk is full, over quota or read-only. It can be tried again."""


class Interrupted(BaseException):
    """The user, or a scheduler, asked the run to stop by signal `number`.

    `at_once`: in the middle of whatever it was doing, as a signal handler raises it; else the step
    under way was finished or dropped whole, and what is finished may be saved. No Exception, so
    that no library takes it for an error of its own.

    The command line says how to go on, and exits with 128 + number: 130 after Ctrl-C, 143 after
    SIGTERM.
    """

    def __init__(self, number: int = signal.SIGINT, *, at_once: bool = False):
        super().__init__()
        self.number = number
        self.at_once = at_once
