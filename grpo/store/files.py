"""Files that are whole or not there: written under a hidden name, synced, renamed."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from grpo.errors import UserError


def fsync_path(path: Path) -> None:
    """Puts a file's content, or a directory's list of names, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary name beside `path`; what was written there replaces `path` at the end,
    or goes away where the block raises."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        fsync_path(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_path(path.parent)


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a .jsonl file; [] where there is none. A last line that a crash cut short is
    left out; any other line that is not JSON is a UserError."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    objects: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            objects.append(json.loads(line))
        except json.JSONDecodeError:
            if number == len(lines):  # no newline behind it: its write never finished
                break
            raise UserError(f"{path}, line {number} is not JSON: remove that line") from None
    return objects
