"""Whether all files of a checkpoint are as long as they were when it was written.

A machine that dies, a copy that broke off or a full disk below a network file system leaves files
that are there and too short: no resume gets past them, whichever command is given.
"""

import json
from pathlib import Path

SIZES_FILE = "sizes.json"
# For others to load, which no resume reads; and what says itself whether it is whole.
_NOT_LOOKED_AT = ("hf/", "adapter/", "state.json")


def write_sizes(folder: Path) -> None:
    """Notes down how long every file of the folder is."""
    sizes = {
        str(path.relative_to(folder)): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    (folder / SIZES_FILE).write_text(json.dumps(sizes, indent=1) + "\n", encoding="utf-8")


def damage(folder: Path) -> str:
    """The first file that a resume reads and that is not as long as it was, in words; empty where
    there is none, and for a checkpoint that is older than its file of sizes."""
    path = folder / SIZES_FILE
    try:
        sizes: dict[str, int] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return ""
    except (OSError, ValueError) as error:
        return f"{path.name} cannot be read ({error})"
    for name, size in sizes.items():
        file = folder / name
        if name.startswith(_NOT_LOOKED_AT):
            continue
        if not file.is_file():
            return f"{name} is not there"
        if (found := file.stat().st_size) != size:
            return f"{name} has {found:,} bytes of {size:,}"
    return ""
