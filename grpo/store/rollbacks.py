"""Where a run went back to an earlier checkpoint by itself, why, and what it leaves out since.

`rollbacks/001/why.json` and, beside it, the groups that are left out, as rollouts.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from grpo.errors import UserError
from grpo.store.files import replacing
from grpo.store.log import write_rollouts
from grpo.types import ScoredGroup

_WHY = "why.json"


@dataclass(frozen=True, slots=True)
class Rollback:
    """`step`: which failed. `to`: the step whose checkpoint the run went back to; 0: its start.
    `left_out`: serials of the prompts that are sampled, but not learned from, ever since."""

    step: int
    to: int
    why: str
    left_out: tuple[int, ...]
    time: float


def record(folder: Path, step: int, to: int, why: str, left_out: Sequence[ScoredGroup]) -> Rollback:
    """Writes down a rollback, before it is made."""
    serials = tuple(sorted({group.group.prompt.serial for group in left_out}))
    rollback = Rollback(step, to, why, serials, time.time())
    number = len(read(folder)) + 1
    place = folder / f"{number:03d}"
    place.mkdir(parents=True, exist_ok=True)
    if left_out:
        write_rollouts(place, step, left_out)
    with replacing(place / _WHY) as temporary:
        temporary.write_text(json.dumps(asdict(rollback), indent=1) + "\n", encoding="utf-8")
    return rollback


def read(folder: Path) -> list[Rollback]:
    """All of a run's, in order; [] where it made none. Raises UserError for a damaged file."""
    found: list[Rollback] = []
    for path in sorted(folder.glob(f"*/{_WHY}")):
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            serials = tuple(int(serial) for serial in stored.pop("left_out"))
            found.append(Rollback(left_out=serials, **stored))
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(
                f"{path} cannot be read ({type(error).__name__}: {error}): it says which prompts "
                "this run leaves out. Restore it, or delete the folder it is in and learn from them"
            ) from None
    return found


def left_out(folder: Path) -> frozenset[int]:
    """Serials of the prompts that the run does not learn from."""
    return frozenset(serial for rollback in read(folder) for serial in rollback.left_out)
