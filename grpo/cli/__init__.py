"""The command line: one file per group of commands."""

import signal
import sys
from types import FrameType

from grpo.errors import Interrupted

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main() -> None:
    """The `grpo` command. From its first moment on a signal ends it with 128 + its number, and
    without a traceback; what has something to save listens to signals itself (`grpo.stop`)."""
    for number in _ENDING:
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            signal.signal(number, _interrupt)
    try:
        from grpo.cli.main import start  # takes a third of a second, in which signals come, too

        start()
    except Interrupted as stopped:
        sys.exit(128 + stopped.number)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise Interrupted(number, at_once=True)
