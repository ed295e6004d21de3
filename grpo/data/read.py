"""Sources: what a file, a hub's data set or a task holds, one item at a time."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from grpo.config.data import DataConfig
from grpo.data.seal import file_sha256, read_seal, seal_path
from grpo.data.tasks import TASKS
from grpo.errors import UserError
from grpo.types import Row

_CHUNK = 1 << 20
_BATCH = 1024


@dataclass(frozen=True, slots=True)
class Record:
    """What stands at a place (`rows.jsonl:7`), before anything is known of its columns."""

    where: str
    number: int
    value: Any


@dataclass(frozen=True, slots=True)
class Fault:
    """Why there is no row at a place. The message names it, and says how to mend it."""

    kind: Literal["unreadable", "empty_answer"]
    message: str


@dataclass(frozen=True, slots=True)
class Source:
    """`total` counts items roughly (blank lines too), for a progress bar; `expected` is the exact
    number where it is known. Items may be read again."""

    name: str
    total: int
    expected: int | None
    items: Callable[[], Iterator[Record | Fault | Row]]


def open_source(config: DataConfig) -> Source:
    """Raises UserError for a source that is not there, or is not what the declaration knows."""
    if config.path is not None:
        return _open_file(Path(config.path), config)
    if config.task is not None:
        rows: list[Row] = TASKS.bind(config.task.name, config.task.options)()
        return Source(f"task {config.task.name}", len(rows), None, lambda: iter(rows))
    return _open_hub(config)


def _open_file(path: Path, config: DataConfig) -> Source:
    if not path.is_file():
        raise UserError(f"data.path {str(path)!r}: no such file")
    if path.stat().st_size == 0:
        raise UserError(f"data.path {str(path)!r} is empty")
    expected = _check_content(path, config)
    if path.suffix == ".jsonl":
        return Source(str(path), _count_lines(path), expected, lambda: _lines(path))
    if path.suffix == ".parquet":
        total = _parquet(path).metadata.num_rows
        return Source(str(path), total, expected, lambda: _parquet_rows(path))
    if path.suffix == ".json":
        values = _list(path)
        return Source(str(path), len(values), expected, lambda: _numbered(str(path), iter(values)))
    raise UserError(f"data.path {str(path)!r}: expected a .jsonl, .json or .parquet file")


def _check_content(path: Path, config: DataConfig) -> int | None:
    """The number of rows that a file of this name must have; compares its checksum."""
    seal, copy = read_seal(path), config.copy_at(path)
    if seal is not None:
        known, rows, said = seal.sha256, seal.rows, f"{seal_path(path)} says"
        mend = "it changed since it was prepared: prepare it again"
    elif copy is not None:
        known, rows, said = copy.sha256, copy.rows, f"data {config.name!r} knows a {copy.file} with"
        mend = "fetch the file again; if it is meant to be another, rename it or set data.copies=[]"
    else:
        return None
    found = file_sha256(path)
    if found != known:
        raise UserError(f"data.path {str(path)!r} has sha256 {found}, {said} {known}: {mend}")
    return rows


def _count_lines(path: Path) -> int:
    with path.open("rb") as content:
        return sum(chunk.count(b"\n") for chunk in iter(lambda: content.read(_CHUNK), b"")) + 1


def _lines(path: Path) -> Iterator[Record | Fault]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield _line(line, f"{path}:{number}", number)


def _line(line: bytes, where: str, number: int) -> Record | Fault:
    try:
        return Record(where, number, _json(line, where))
    except UserError as error:
        return Fault("unreadable", str(error))


def _parquet(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"data.path {str(path)!r} is not a parquet file: {error}") from None


def _parquet_rows(path: Path) -> Iterator[Record]:
    number = 0
    try:
        with _parquet(path) as file:
            for batch in file.iter_batches(_BATCH):
                for value in batch.to_pylist():
                    number += 1
                    yield Record(f"{path}, row {number}", number, value)
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"data.path {str(path)!r} is damaged after row {number}: {error}; fetch it again"
        ) from None


def _list(path: Path) -> list[Any]:
    values = _json(path.read_bytes(), str(path))
    if not isinstance(values, list):
        raise UserError(f"{path}: expected a JSON list of rows")
    return values


def _json(encoded: bytes, where: str) -> Any:
    try:
        return json.loads(encoded.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not UTF-8 ({error}): convert the file") from None
    except (ValueError, RecursionError) as error:  # a ValueError also for 5,000 digits
        raise UserError(f"{where} is not JSON: {error}") from None


def _numbered(name: str, values: Iterator[Any]) -> Iterator[Record]:
    for number, value in enumerate(values, 1):
        yield Record(f"{name}, row {number}", number, value)


def _open_hub(config: DataConfig) -> Source:
    import datasets
    from datasets.exceptions import DatasetsError

    assert config.hub is not None
    try:
        values: Any = datasets.load_dataset(
            config.hub, config.hub_subset, revision=config.revision, split=config.hub_split
        )
    except (OSError, ValueError, DatasetsError) as error:
        raise UserError(
            f"data {config.name!r}: cannot load {config.hub!r} from the Hugging Face hub "
            f"({type(error).__name__}: {error}): check name and network, or read a local copy "
            "with data.path=FILE"
        ) from error
    for name, feature in values.features.items():
        if isinstance(feature, datasets.Image | datasets.Audio | datasets.Video):
            # Opening one takes a library for each, and nobody looks at it.
            values = values.cast_column(name, type(feature)(decode=False))
    hub = config.hub
    return Source(hub, len(values), config.hub_rows, lambda: _numbered(hub, iter(values)))
