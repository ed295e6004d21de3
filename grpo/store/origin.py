"""Which checkpoint the run of a folder was told to go on from (`--resume DIR`), and from which one
of another run, or of a history that was given up, it branched off.

A scheduler gives the same command again and again: it must go back to DIR once only.
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from grpo.errors import UserError
from grpo.store.checkpoint import STATE_FILE, RunFolder, TrainState
from grpo.store.files import replacing

_FILE = "resumed_from.json"


@dataclass(frozen=True, slots=True)
class Mark:
    """A checkpoint and its step. `path`: absolute, or relative to the run's folder for what lies in
    it, which may be moved as a whole"""

    path: str
    step: int

    @classmethod
    def of(cls, checkpoint: Path, folder: RunFolder) -> "Mark":
        path, home = checkpoint.resolve(), folder.path.resolve()
        inside = path.relative_to(home) if path.is_relative_to(home) else path
        return cls(str(inside), TrainState.load(path).step)

    def place(self, folder: RunFolder) -> Path:
        return folder.path.resolve() / self.path  # which an absolute path replaces


@dataclass(frozen=True, slots=True)
class Branch:
    """Where the run's history begins: what its folder has of that step or earlier ones did not lead
    to what it is now."""

    checkpoint: Path
    step: int

    def led_to(self, own: Path | None) -> bool:
        """Whether this checkpoint of the run's folder is of the history that begins here."""
        return own is not None and TrainState.load(own).step > self.step

    @property
    def is_there(self) -> bool:
        return (self.checkpoint / STATE_FILE).is_file()


@dataclass(frozen=True, slots=True)
class Origin:
    """typed: DIR as an absolute path, links in it kept; named: what it was; branch: None for a run
    whose history is all its own"""

    typed: str
    named: Mark
    branch: Mark | None

    def is_named(self, directory: str, folder: RunFolder) -> bool:
        return self.typed == _typed(directory) or self.named.place(folder) == _resolved(directory)


def file_of(folder: RunFolder) -> Path:
    return folder.path / _FILE


def _typed(directory: str) -> str:
    return os.path.abspath(Path(directory).expanduser())


def _resolved(directory: str) -> Path:
    return Path(directory).expanduser().resolve()


def record(folder: RunFolder, directory: str) -> None:
    """To call once the folder has nothing of later steps any more."""
    named, before = Mark.of(Path(directory).expanduser(), folder), recorded(folder)
    branch = before.branch if before is not None else None
    if named.place(folder).parent != folder.checkpoints.resolve():
        branch = named
    elif branch is not None and named.step <= branch.step:
        branch = None  # back in the folder's first history
    with replacing(file_of(folder)) as temporary:
        temporary.write_text(json.dumps(asdict(Origin(_typed(directory), named, branch))))


def forget(folder: RunFolder) -> None:
    """The run begins at its start."""
    file_of(folder).unlink(missing_ok=True)


def recorded(folder: RunFolder) -> Origin | None:
    """Raises UserError for a file that cannot be read."""
    file = file_of(folder)
    try:
        said: Any = json.loads(file.read_text())
        branch = None if said["branch"] is None else Mark(**said["branch"])
        return Origin(str(said["typed"]), Mark(**said["named"]), branch)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{file} cannot be read ({type(error).__name__}: {error}). It says which checkpoint "
            "this run was begun from: delete it if the run was not begun by --resume DIR"
        ) from None


def branch_of(folder: RunFolder) -> Branch | None:
    origin = recorded(folder)
    if origin is None or origin.branch is None:
        return None
    return Branch(origin.branch.place(folder), origin.branch.step)
