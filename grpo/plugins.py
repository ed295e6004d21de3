"""Modules of the user that register parts of their own."""

import importlib
import os
import sys

from grpo.errors import UserError


def import_plugins(names: list[str]) -> None:
    """Imports modules that register parts, from the working directory or the environment."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    for name in names:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise UserError(
                f"plugins: cannot import {name!r} ({error}): it must be installed, or a module in "
                f"the working directory {os.getcwd()}"
            ) from error
