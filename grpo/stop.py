"""A clean stop, asked for by a signal."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

from grpo.console import Screen
from grpo.errors import Interrupted

# What asks for a stop: Ctrl-C, schedulers (Slurm, Kubernetes, docker, systemd), a lost terminal.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GRACE_S = 60.0
# The same wish, told twice: by the terminal to every process and by make, by srun and by a script.
_ECHO_S = 1.0
_LOOK_S = 0.5  # how soon somebody who waits notices


class StopRequest:
    """The first signal asks for a clean stop, and gives it `grace_s` seconds; a further one stops
    at once. Every stop ends as Interrupted, which knows the first signal.

    While there is nothing to save (`at_once`) the first one stops at once, too.
    """

    def __init__(self, screen: Screen, grace_s: float = GRACE_S):
        self._screen = screen
        self._grace_s = grace_s
        self._first: int | None = None
        self._since = 0.0
        self._nothing_to_save = False
        self._terminals: list[int] = []

    def __call__(self) -> bool:
        """Whether a stop was asked for."""
        return self._first is not None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            self._let_go_of_terminals()
        if self._first is not None:
            if time.monotonic() - self._since > _ECHO_S:
                raise Interrupted(self._first, at_once=True)
            return
        self._first, self._since = number, time.monotonic()
        name = signal.Signals(number).name
        if self._nothing_to_save:
            self._screen.warn(f"{name}: stopping")
            raise Interrupted(number, at_once=True)
        self._screen.warn(
            f"{name}: stopping once what is finished is saved, in {self._grace_s:.0f} s at most; "
            "once more stops at once"
        )
        signal.setitimer(signal.ITIMER_REAL, self._grace_s)

    def _give_up(self, number: int, frame: FrameType | None) -> None:
        assert self._first is not None, "the clock runs from the first signal on"
        self._screen.warn(
            f"not saved within {self._grace_s:.0f} s (stop.grace_s): what was under way is given up"
        )
        raise Interrupted(self._first, at_once=True)

    def _let_go_of_terminals(self) -> None:
        """They are gone: to print there would be an error."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for descriptor in self._terminals:
            os.dup2(nowhere, descriptor)
        os.close(nowhere)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Around what may be dropped at any moment, such as a start."""
        self.check()
        self._nothing_to_save = True
        try:
            yield
        finally:
            self._nothing_to_save = False

    def stop_the_clock(self) -> None:
        """What could be saved is: to give up now would only leave processes behind."""
        signal.setitimer(signal.ITIMER_REAL, 0)

    def check(self) -> None:
        """Raises Interrupted where a stop was asked for."""
        if self._first is not None:
            raise Interrupted(self._first)

    @contextmanager
    def listening(self) -> Iterator["StopRequest"]:
        """In the main thread. A lost terminal that is ignored (nohup) stays so."""
        # Asked now: one that is gone is none any more.
        self._terminals = [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]
        heard = [n for n in SIGNALS if n != signal.SIGHUP or not _is_ignored(n)]
        old = {number: signal.signal(number, self._handle) for number in heard}
        old[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._give_up)
        try:
            yield self
        except Interrupted as stopped:
            if self._first is not None:
                stopped.number = self._first  # whoever raised it, the signal is known here
            raise
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            for number, handler in old.items():
                signal.signal(number, handler)


def pause(seconds: float, stop: Callable[[], bool]) -> None:
    """Sleeps; no longer than until a stop is asked for."""
    until = time.monotonic() + seconds
    while (left_s := until - time.monotonic()) > 0 and not stop():
        time.sleep(min(_LOOK_S, left_s))


def _is_ignored(number: signal.Signals) -> bool:
    return signal.getsignal(number) is signal.SIG_IGN


@contextmanager
def handlers_kept() -> Iterator[None]:
    """Around a library that sets handlers of its own: ours are there again behind it. A signal that
    came to the library's handler is one for ours, whatever became of it there: it may have been
    raised as SystemExit in the middle of anything, and may be lost. Outside of the main thread,
    where handlers can't be set, nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    old = {number: signal.getsignal(number) for number in SIGNALS}
    heard, hear = os.pipe()
    os.set_blocking(heard, False)
    os.set_blocking(hear, False)
    before = signal.set_wakeup_fd(hear, warn_on_full_buffer=False)
    try:
        with _lost_stops() as lost:
            yield
    except SystemExit as ended:
        for number in _put_back(old, heard):
            if ended.code == number:  # half of the library is started
                signal.raise_signal(number)
                raise Interrupted(number, at_once=True) from None
        raise
    else:
        for number in _put_back(old, heard):
            signal.raise_signal(number)
        for stop in lost:
            raise stop
    finally:
        signal.set_wakeup_fd(before)
        _put_back(old, heard)
        os.close(heard)
        os.close(hear)


@contextmanager
def _lost_stops() -> Iterator[list[Interrupted]]:
    """What handlers raise where nothing can be raised, such as in a fork: Python would only print
    it. Exits of other handlers are no news, since their signals are heard."""
    report, lost = sys.unraisablehook, list[Interrupted]()

    def look_at(told: "sys.UnraisableHookArgs") -> None:
        if isinstance(told.exc_value, Interrupted):
            lost.append(told.exc_value)
        elif not isinstance(told.exc_value, SystemExit):
            report(told)

    sys.unraisablehook = look_at
    try:
        yield lost
    finally:
        sys.unraisablehook = report


def _put_back(handlers: Mapping[signal.Signals, Any], heard: int) -> list[signal.Signals]:
    """Sets the handlers again; the signals that others than these have taken, by what `heard`, a
    pipe, holds."""
    replaced = [n for n, handler in handlers.items() if signal.getsignal(n) is not handler]
    for number in replaced:
        if handlers[number] is not None:
            signal.signal(number, handlers[number])
    try:
        came = set(os.read(heard, 4096))
    except BlockingIOError:
        return []
    return [number for number in replaced if number in came]
