"""The command line: one file per group of commands."""

from grpo.cli.main import main

__all__ = ["main"]
