"""A clean stop, asked for by a signal."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from grpo.console import Screen


class StopRequest:
    """The first Ctrl-C (or SIGTERM) asks for a clean stop, the second stops at once."""

    def __init__(self, screen: Screen):
        self._screen = screen
        self.asked = False

    def __call__(self) -> bool:
        return self.asked

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        self._screen.warn("stopping once what is finished is saved; once more stops at once")

    @contextmanager
    def listening(self) -> Iterator["StopRequest"]:
        old = {n: signal.signal(n, self._handle) for n in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)
