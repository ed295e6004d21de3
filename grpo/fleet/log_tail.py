"""The end of a worker's log, without what its libraries warn of on every start."""

import os
import re
from pathlib import Path

_READ_BYTES = 1 << 18
# path/module.py:12: FutureWarning: …, with the line of source below it
_PYTHON_WARNING = re.compile(r"^(\([^)]*\) )?\S+:\d+: \w*Warning: ")
# W1127 06:20:03.775000 5936 file.py:53] …, as glog and torch write it
_TORCH_WARNING = re.compile(r"^(\([^)]*\) )?(\[rank\d+\]:)?\[?[IW]\d{4} \d\d:\d\d:\d\d\.\d+ ")


def last_lines(path: str, count: int) -> str:
    """Of a text file, at most so many; nothing where it is missing or empty."""
    file = Path(path)
    if not file.exists():
        return ""
    with file.open("rb") as log:
        log.seek(max(0, log.seek(0, os.SEEK_END) - _READ_BYTES))
        lines = log.read().decode(errors="replace").splitlines()
    told = without_warnings(lines) or lines  # one of them may be all that was said of the end
    return "\n".join(told[-count:])


def without_warnings(lines: list[str]) -> list[str]:
    told: list[str] = []
    is_source = False
    for line in lines:
        if is_source and line.startswith("  "):
            is_source = False
            continue
        is_source = _PYTHON_WARNING.match(line) is not None
        if not is_source and not _TORCH_WARNING.match(line):
            told.append(line)
    return told
