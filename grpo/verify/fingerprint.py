"""What tells today's rules of a verifier from those by which an earlier verdict was given."""

import hashlib
import inspect
from functools import cache
from importlib.metadata import version
from pathlib import Path

from grpo.verify.registry import VERIFIERS

_PACKAGE = Path(__file__).parent
_READERS = ("math-verify", "latex2sympy2_extended", "sympy")


@cache
def fingerprint(name: str) -> str:
    """16 hex digits that change with the code of grpo.verify, with the libraries that read
    mathematics, and with the file of a plugin's verifier. Raises UserError for an unknown name."""
    files = sorted(_PACKAGE.rglob("*.py"))
    home = inspect.getsourcefile(inspect.unwrap(VERIFIERS[name]))
    if home is not None and not Path(home).is_relative_to(_PACKAGE):
        files.append(Path(home))
    digest = hashlib.sha256(" ".join(f"{reader} {version(reader)}" for reader in _READERS).encode())
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]
