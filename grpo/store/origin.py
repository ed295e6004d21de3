"""The checkpoint that the run of a folder was told to go on from (`--resume DIR`).

A scheduler gives the same command again and again: it must go back to that checkpoint once only.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from grpo.errors import UserError
from grpo.store.checkpoint import RunFolder
from grpo.store.files import replacing

_FILE = "resumed_from.json"


@dataclass(frozen=True, slots=True)
class Origin:
    """checkpoint: an absolute path, of this run or another one; step: its last finished one"""

    checkpoint: Path
    step: int


def place(folder: RunFolder) -> Path:
    return folder.path / _FILE


def record(folder: RunFolder, origin: Origin) -> None:
    """To call once the folder has nothing of later steps any more."""
    with replacing(place(folder)) as temporary:
        temporary.write_text(
            json.dumps({"checkpoint": str(origin.checkpoint), "step": origin.step})
        )


def recorded(folder: RunFolder) -> Origin | None:
    """Raises UserError for a file that cannot be read."""
    file = place(folder)
    try:
        said = json.loads(file.read_text())
        return Origin(Path(said["checkpoint"]), int(said["step"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{file} cannot be read ({type(error).__name__}: {error}). It says which checkpoint "
            "this run was begun from: delete it if the run was not begun by --resume DIR"
        ) from None


def branch_point(folder: RunFolder) -> Origin | None:
    """The recorded checkpoint, where it is another run's: what the folder has of earlier steps is
    not what led here."""
    origin = recorded(folder)
    if origin is None or origin.checkpoint.parent == folder.checkpoints.resolve():
        return None
    return origin
