"""How long something takes as a rule, by the last times that it was done."""

from collections import deque

_MANY = 10


class Pace:
    """The mean of the last ten times, without the shortest and the longest: one step that waited
    for a disk says nothing of the steps to come. The first after a start, in which caches are empty
    and code is compiled, counts only while there is no other."""

    def __init__(self) -> None:
        self._first: float | None = None
        self._last: deque[float] = deque(maxlen=_MANY)

    def took(self, seconds: float) -> None:
        if self._first is None:
            self._first = seconds
        else:
            self._last.append(seconds)

    @property
    def usual_s(self) -> float | None:
        """None before the first."""
        if len(self._last) < 3:
            return sum(self._last) / len(self._last) if self._last else self._first
        return sum(sorted(self._last)[1:-1]) / (len(self._last) - 2)
