"""What tells today's rules of a verifier from those by which an earlier verdict was given."""

import hashlib
import inspect
import os
import sys
from collections.abc import Callable
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

from grpo import thinking
from grpo.verify.registry import VERIFIERS

_PACKAGE = Path(__file__).parent
_READERS = ("math-verify", "latex2sympy2_extended", "sympy")


@cache
def fingerprint(name: str) -> str:
    """16 hex digits that change with the code of grpo.verify, with the libraries that read
    mathematics, and with the files of a plugin's verifier. Raises UserError for an unknown name."""
    files = sorted(_PACKAGE.rglob("*.py"))
    files += [Path(thinking.__file__), *_plugin_files(VERIFIERS[name])]
    digest = hashlib.sha256(" ".join(f"{reader} {version(reader)}" for reader in _READERS).encode())
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _plugin_files(verifier: Callable[..., Any]) -> list[Path]:
    """The file of a verifier that is not ours, and the loaded modules that lie beside it or deeper:
    what it is made from, as far as can be known."""
    while isinstance(verifier, partial):
        verifier = verifier.func
    verifier = inspect.unwrap(verifier)
    # Of an object that is called, its class.
    made_by = verifier if inspect.isroutine(verifier) else type(verifier)
    module = sys.modules.get(made_by.__module__)
    home = _file_of(module)
    if home is None or home.is_relative_to(_PACKAGE):
        return []
    if home.parent.name == "site-packages":  # installed as one file, beside every other library
        return [home]
    folder = f"{home.parent}{os.sep}"
    beside = [file for file in map(_file_of, list(sys.modules.values())) if file is not None]
    ours = {f for f in beside if str(f).startswith(folder) and not _is_library(f, home.parent)}
    return sorted({home, *ours})


def _file_of(module: ModuleType | None) -> Path | None:
    file = None if module is None else vars(module).get("__file__")
    return Path(file) if file and file.endswith(".py") else None


def _is_library(file: Path, folder: Path) -> bool:
    """An environment, or this package, may lie in the folder of a plugin."""
    inside = file.relative_to(folder).parts
    return "site-packages" in inside or file.is_relative_to(_PACKAGE.parent)
