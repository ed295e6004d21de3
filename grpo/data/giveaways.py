"""The file in which `grpo verify` names the rows that can be had without solving them."""

import glob
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from grpo.config.data import DataConfig
from grpo.errors import UserError
from grpo.store.files import replacing
from grpo.types import Row

FOLDER = Path("runs/verify")
SUFFIX = ".giveaways.jsonl"
_KEY = "data.filters.giveaways_file"
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Giveaway:
    """One row that one attack was paid for; `row` is its position among the audited, from 1."""

    row: int
    id: str
    fingerprint: str
    kind: Literal["giveaway", "guess"]
    attack: str
    said: str


class Known:
    """What such a file knows. Rows are known by their content, wherever they stand."""

    def __init__(self, path: Path, audited: frozenset[str], dropped: frozenset[str]):
        self._path = path
        self._audited = audited
        self._dropped = dropped
        self._strangers: list[str] = []
        self._seen = 0

    def drops(self, row: Row) -> bool:
        mark = fingerprint(row)
        self._seen += 1
        if mark not in self._audited:
            self._strangers.append(row.id)
        return mark in self._dropped

    def check(self, config: DataConfig) -> None:
        """Raises UserError where a row that was asked for is none of those that were audited."""
        if self._strangers:
            raise UserError(
                f"{_KEY} {str(self._path)!r} does not know {len(self._strangers):,} of the "
                f"{self._seen:,} rows of data {config.name!r}, the first with id "
                f"{self._strangers[0]!r}: it was made from other rows. Audit these: grpo verify "
                f"{config.name}"
            )


def fingerprint(row: Row) -> str:
    return hashlib.sha256(json.dumps([row.problem, row.answer]).encode()).hexdigest()[:16]


def default_path(data: str, verifier: str) -> Path:
    return FOLDER / f"{data}.{verifier}{SUFFIX}"


def write_giveaways(
    path: Path, data: str, rows: Sequence[Row], found: Iterable[Giveaway], facts: dict[str, Any]
) -> None:
    """A line on all rows that were audited, then one for each row and attack that was paid."""
    audited = sorted({fingerprint(row) for row in rows})
    head = {"giveaways_of": data, "format": _FORMAT} | facts | {"audited": audited}
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as lines:
        for value in [head, *map(asdict, found)]:
            lines.write(json.dumps(value) + "\n")


def known_giveaways(config: DataConfig) -> Known | None:
    """What the filter `giveaways` drops, None where it keeps all. Raises UserError for a file that
    is not there, or is none of ours."""
    if config.filters.giveaways == "keep":
        return None
    path = giveaways_path(config)
    kinds = ("giveaway", "guess") if config.filters.giveaways == "drop_guesses" else ("giveaway",)
    try:
        head, *found = map(json.loads, path.read_text(encoding="utf-8").splitlines())
        if head["format"] != _FORMAT:
            raise ValueError(f"format {head['format']}, expected {_FORMAT}")
        dropped = frozenset(one["fingerprint"] for one in found if one["kind"] in kinds)
        return Known(path, frozenset(head["audited"]), dropped)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{_KEY} {str(path)!r} is no file of giveaways ({type(error).__name__}: {error}): "
            f"name the one that grpo verify {config.name} wrote, or run it again"
        ) from None


def giveaways_path(config: DataConfig) -> Path:
    """The file that the filter reads. Raises UserError where there is none, or more than one."""
    named = config.filters.giveaways_file
    if named is not None:
        if not Path(named).is_file():
            raise UserError(
                f"{_KEY} {named!r}: no such file. It is written by grpo verify {config.name}"
            )
        return Path(named)
    pattern = default_path(glob.escape(config.name), "*")
    found = sorted(map(Path, glob.glob(str(pattern))))
    if len(found) == 1:
        return found[0]
    if not found:
        raise UserError(
            f"data.filters.giveaways is {config.filters.giveaways}, and there is no {pattern}: run "
            f"grpo verify {config.name} first, or name its file with {_KEY}=FILE"
        )
    raise UserError(
        f"data.filters.giveaways is {config.filters.giveaways}, and there are "
        f"{', '.join(map(str, found))}: name one with {_KEY}=FILE"
    )
