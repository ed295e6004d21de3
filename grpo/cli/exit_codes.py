"""How a command ends: 0 ok, 1 failed, 2 bad input, 128 + N stopped by signal N (Ctrl-C: 130)."""

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
    except Interrupted as stopped:
        typer.echo(f"interrupted; {after_interrupt}", err=True)
        raise typer.Exit(128 + stopped.number) from None
