"""Names whoever keeps the others waiting, long before the deadline: a rank that hangs in a
collective, an engine whose machine swaps."""

import logging
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

log = logging.getLogger(__name__)

STRAGGLER_S = 120.0


class Waited(Protocol):
    """A worker that has not answered yet."""

    @property
    def name(self) -> str: ...

    @property
    def log(self) -> Path: ...


class Patience:
    """How long one kind of call may take before somebody should know.

    That is two minutes, and twice the longest time that a call of this kind has ever taken: what
    always takes long is no straggler. From then on whoever is waited for is named again each time
    the wait has doubled. `usual` keeps the longest times by kind, in seconds.
    """

    def __init__(self, kind: str, usual: dict[str, float]):
        self._kind = kind
        self._usual = usual
        self.begin()

    def begin(self) -> None:
        """The wait begins, or begins again as something has come."""
        self._since = time.monotonic()
        self._next_s = max(STRAGGLER_S, 2 * self._usual.get(self._kind, 0.0))

    @property
    def left_s(self) -> float:
        """Seconds until the next warning is due."""
        return max(0.0, self._since + self._next_s - time.monotonic())

    def look(self, waited_for: Sequence[Waited], asked: int) -> None:
        """Warns where it is time to; `asked` is how many were to answer in all."""
        if self.left_s > 0:
            return
        times = Counter(worker.name for worker in waited_for)
        names = ", ".join(f"{name} ({n} calls)" if n > 1 else name for name, n in times.items())
        others = asked - len(waited_for)
        log.warning(
            "%s: no answer for %.0f s from %s%s. See %s",
            self._kind,
            time.monotonic() - self._since,
            names,
            f" ({others} of {asked} have answered)" if others else "",
            waited_for[0].log,
        )
        self._next_s *= 2

    def end(self) -> None:
        """All have answered."""
        took_s = time.monotonic() - self._since
        self._usual[self._kind] = max(took_s, self._usual.get(self._kind, 0.0))
