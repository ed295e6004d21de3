"""What the library logs is shown to the person at the command line."""

import logging


class _ToScreen(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        from grpo.console import Screen

        screen = Screen()
        show = screen.warn if record.levelno >= logging.WARNING else screen.note
        show(self.format(record))


def show_log() -> None:
    """Notes and warnings of `grpo.*`; those of other libraries stay as they are."""
    log = logging.getLogger("grpo")
    log.handlers = [_ToScreen()]
    log.setLevel(logging.INFO)
    log.propagate = False
