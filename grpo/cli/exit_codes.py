"""How a command ends: 0 ok, 1 failed, 2 bad input, 130 interrupted."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from grpo.errors import Interrupted, RunError, UserError


@contextmanager
def exit_codes(after_interrupt: str) -> Iterator[None]:
    """Turns our errors into messages and exit codes; a traceback only for a fault of ours.
    `after_interrupt` says what the same command does next time."""
    try:
        yield
    except UserError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    except RunError as error:
        typer.echo(f"failed: {error}", err=True)
        raise typer.Exit(1) from None
    except (Interrupted, KeyboardInterrupt):
        typer.echo(f"interrupted; {after_interrupt}", err=True)
        raise typer.Exit(130) from None
