"""Images, sound and video of a row, which no prompt of text can show."""

import re
from collections.abc import Mapping
from typing import Any

_NAME = re.compile(
    r"(decoded_)?(image|img|video|audio|picture)s?(_?\d+|_(url|path|file|byte|data)s?)?",
    re.IGNORECASE,
)

_BEGINNINGS = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF", b"ID3", b"OggS", b"fLaC")


def media_names(values: Mapping[str, Any]) -> list[str]:
    """The names that say that images, sound or video stand there."""
    return [name for name in values if isinstance(name, str) and _NAME.fullmatch(name)]


def media_in(values: Mapping[str, Any]) -> list[str]:
    """The names under which there are images, sound or video, told by name or by value."""
    named = set(media_names(values))
    return [
        name
        for name, value in values.items()
        if (name in named and _says(value)) or _is_media(value)
    ]


def _says(value: Any) -> bool:
    """Whether anything stands there: not null, NaN, false, 0, empty, or nothing but such."""
    if isinstance(value, Mapping):
        return any(map(_says, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_says, value))
    if isinstance(value, str):
        return bool(value.strip())
    if isinstance(value, bool | int | float | bytes) or value is None:
        return bool(value) and value == value
    return True  # an opened picture


def _is_media(value: Any) -> bool:
    """A file's bytes, an object {bytes, path} as the hub's files have it, or a list of these."""
    if isinstance(value, list | tuple):
        return any(map(_is_media, value))
    if isinstance(value, Mapping):
        return {"bytes", "path"} <= value.keys() and _says(value)
    return isinstance(value, bytes) and value.startswith(_BEGINNINGS)
