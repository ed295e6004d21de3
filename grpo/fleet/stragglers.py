"""Names workers that keep the others waiting, long before the deadline: a rank that hangs in a
collective, an engine whose machine swaps."""

import logging
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

log = logging.getLogger(__name__)

STRAGGLER_S = 120.0


# Beyond this many, workers that have answered are counted instead of listed.
_MOST_NAMES = 8


class Process(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def log(self) -> Path: ...


class Called(Protocol):
    """A call to a worker, answered or not."""

    @property
    def worker(self) -> Process: ...

    @property
    def method(self) -> str: ...


class Patience:
    """How long one kind of call may take before a warning is due.

    The first is due after two minutes, or after twice the longest time that a call of this kind
    has taken if that is more: what always takes long is no straggler. The next is due each time
    the wait has doubled. `usual` keeps the longest times by kind, in seconds.
    """

    def __init__(self, kind: str, usual: dict[str, float]):
        self._kind = kind
        self._usual = usual
        self.begin()

    def begin(self) -> None:
        """Starts the wait, or starts it again after an answer."""
        self._since = time.monotonic()
        self._next_s = max(STRAGGLER_S, 2 * self._usual.get(self._kind, 0.0))

    @property
    def left_s(self) -> float:
        """Seconds until the next warning is due."""
        return max(0.0, self._since + self._next_s - time.monotonic())

    def look(self, pending: Sequence[Called], answered: Sequence[Called] = ()) -> None:
        """Warns if a warning is due. `pending` must not be empty."""
        if self.left_s > 0:
            return
        counts = Counter((call.worker.name, call.method) for call in pending)
        names = ", ".join(
            f"{name} ({method}, {n} calls)" if n > 1 else f"{name} ({method})"
            for (name, method), n in counts.items()
        )
        log.warning(
            "no answer for %.0f s from %s%s. See %s",
            time.monotonic() - self._since,
            names,
            _who_answered(answered),
            pending[0].worker.log,
        )
        self._next_s *= 2

    def end(self) -> None:
        """Ends the wait: what was awaited has arrived."""
        took_s = time.monotonic() - self._since
        self._usual[self._kind] = max(took_s, self._usual.get(self._kind, 0.0))


def _who_answered(calls: Sequence[Called]) -> str:
    if not calls:
        return ""
    names = list(dict.fromkeys(call.worker.name for call in calls))
    return "; answered: " + (
        ", ".join(names) if len(names) <= _MOST_NAMES else f"{len(names)} others"
    )
