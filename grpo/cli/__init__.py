"""The command line: one file per group of commands."""

import signal
import sys
from types import FrameType

from grpo.errors import Interrupted

_ENDING = (signal.SIGINT, signal.SIGTERM)


def main() -> None:
    """The `grpo` command. While it is imported, and wherever nobody else listens, a signal ends it
    with 128 + its number and without a traceback; what has something to save listens to signals
    itself (`grpo.stop`)."""
    for number in _ENDING:
        signal.signal(number, _interrupt)
    try:
        from grpo.cli.commands import start  # takes a third of a second, in which signals come, too

        start()
    except Interrupted as stopped:
        sys.exit(128 + stopped.number)
    finally:
        _let_end()


def _interrupt(number: int, frame: FrameType | None) -> None:
    _let_end()
    raise Interrupted(number, at_once=True)


def _let_end() -> None:
    """From here on there is nothing to save: a further signal ends Python as it ends any program,
    which a handler could not do in the middle of its last clean-up."""
    for number in _ENDING:
        signal.signal(number, signal.SIG_DFL)
