"""Modules of the user that register parts of their own."""

import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from grpo.errors import UserError

# Set for workers, so that they find the plugins that the driver found.
WORKING_DIRECTORY = "GRPO_WORKING_DIRECTORY"


def import_plugins(names: Sequence[str]) -> None:
    """Imports modules that register parts, from the environment or the working directory. Raises
    UserError for a module that is in neither, and for one that an installed module hides.

    The working directory is searched last, so that a file in it never takes the place of a module
    that a library imports.
    """
    here = working_directory()
    if names and str(here) not in sys.path:
        sys.path.append(str(here))
    for name in names:
        _refuse_hidden(name.partition(".")[0], here)
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise UserError(
                f"plugins: {name!r} cannot be imported ({error}): expected the dotted name of a "
                f"module that is installed, on PYTHONPATH or in the working directory {here}"
            ) from error


def working_directory() -> Path:
    """Where the command was started; a worker's own may be another."""
    return Path(os.environ.get(WORKING_DIRECTORY) or os.getcwd())


def local_plugin(name: str) -> Path | None:
    """The file or folder of the working directory that a plugin is imported from; None for one that
    is installed."""
    here, top = working_directory(), name.partition(".")[0]
    return next((path for path in (here / f"{top}.py", here / top) if path.exists()), None)


def _refuse_hidden(top: str, here: Path) -> None:
    """A module here whose name is taken elsewhere would be passed over in silence."""
    local = [path for path in (here / f"{top}.py", here / top) if path.exists()]
    spec = importlib.util.find_spec(top)
    if not local or spec is None:
        return
    found = [spec.origin] if spec.has_location else list(spec.submodule_search_locations or ())
    ours = {path.resolve() for path in (*local, here / top / "__init__.py")}
    if not any(Path(path).resolve() in ours for path in found if path):
        other = found[0] if found else "a module of Python"
        raise UserError(
            f"plugins: {top!r} is {local[0]}, but {other} has the same name and comes first: give "
            "yours another name"
        )
