"""The small file beside a prepared data set: what it was made from, and its checksum."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from grpo.errors import UserError

_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Seal:
    """`job` is everything that decides the content; `sha256` is that of the data file;
    `set_phrases` are the n-grams that a comparison with the same benchmarks overlooks."""

    sha256: str
    rows: int
    counts: dict[str, int]
    benchmarks: list[dict[str, Any]]
    set_phrases: list[str]
    job: dict[str, Any]


def seal_path(data: Path) -> Path:
    return data.with_name(f"{data.name}.prepared.json")


def read_seal(data: Path) -> Seal | None:
    """None where there is no seal. Raises UserError for one that this version cannot read."""
    path = seal_path(data)
    if not path.is_file():
        return None
    try:
        return Seal(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{path} is no file of grpo data prepare ({error}): remove it, and prepare "
            f"{data.name} again"
        ) from None


def write_seal(path: Path, seal: Seal) -> None:
    path.write_text(json.dumps(asdict(seal), indent=2, ensure_ascii=False) + "\n", "utf-8")


def file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as content:
        while chunk := content.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
