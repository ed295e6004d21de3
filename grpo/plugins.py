"""Modules of the user that register parts of their own."""

import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from grpo.errors import UserError


def import_plugins(names: Sequence[str]) -> None:
    """Imports modules that register parts, from the environment or the working directory. Raises
    UserError for a module that is in neither, and for one that an installed module hides.

    The working directory is searched last, so that a file in it never takes the place of a module
    that a library imports.
    """
    if names and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    for name in names:
        _refuse_hidden(name.partition(".")[0])
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise UserError(
                f"plugins: {name!r} cannot be imported ({error}): expected the dotted name of a "
                f"module that is installed, on PYTHONPATH or in the working directory {Path.cwd()}"
            ) from error


def _refuse_hidden(top: str) -> None:
    """A module here whose name is taken elsewhere would be passed over in silence."""
    here = Path.cwd()
    local = next((path for path in (here / f"{top}.py", here / top) if path.exists()), None)
    spec = importlib.util.find_spec(top)
    if local is None or spec is None:
        return
    found = [spec.origin] if spec.origin else list(spec.submodule_search_locations or ())
    if not any(Path(path).resolve().is_relative_to(here.resolve()) for path in found):
        raise UserError(
            f"plugins: {top!r} is {local}, but {found[0] if found else 'a module of Python'} has "
            "the same name and comes first: give yours another name"
        )
