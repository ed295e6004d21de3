r"""Vectors: tuples, columns and rows of a matrix, and sums of unit vectors."""

import re
from itertools import pairwise

from grpo.verify.equivalence.text import Same, outside, unwrap

_COLUMN = re.compile(r"\\begin\{([pb]?matrix)\}(.*)\\end\{\1\}", re.DOTALL)
_TRANSPOSED = re.compile(r"(.+?)\s*\^\s*\{?\s*(?:T|\\top|\\intercal|\\text\{\s*T\s*\})\s*\}?")
_SIGN = re.compile(r"[+-]")
_UNIT_VECTOR = re.compile(
    r"(.*?)\s*(?:\\(?:hat|vec|overrightarrow|widehat)\s*\{?\s*)?\\?([ij]math|[ijk])\s*\}?"
)
_AXES = "ijk"


def vector(gold: str, answer: str, same: Same) -> bool | None:
    """A column of a matrix, a tuple, and `i - 2j + 3k`, which one side alone is read as."""
    size = _size(gold) or _size(answer)
    texts = [_as_tuple(text, size) for text in (gold, answer)]
    if texts == [gold, answer]:
        return None
    return same(texts[0], texts[1])


def _size(text: str) -> int:
    """How many components the text lists, 0 where it is no tuple and no column."""
    bracket, inside = unwrap(_listed(text))
    return len(outside(inside, re.compile(","))) + 1 if bracket == "(" else 0


def _as_tuple(text: str, size: int) -> str:
    listed = _listed(text)
    return listed if listed != text else _summed(text, size)


def _listed(text: str) -> str:
    transposed = _TRANSPOSED.fullmatch(text)
    whole = transposed[1] if transposed is not None else text
    match = _COLUMN.fullmatch(whole)
    if match is None:
        return whole if transposed is not None and unwrap(whole)[0] == "(" else text
    rows = [row.strip() for row in match[2].split("\\\\") if row.strip()]
    if transposed is not None and len(rows) == 1 and "&" in rows[0]:
        rows = [part.strip() for part in rows[0].split("&")]
    elif "&" in match[2]:
        return text
    return f"({', '.join(rows)})"


def _summed(text: str, size: int) -> str:
    """`i - 2j` -> `(1, -2, 0)` where `size` is 3; two unit vectors at least, each once."""
    if size not in (2, 3):
        return text
    starts = [match.start() for match in outside(text, _SIGN)]
    cuts = sorted({0, *starts, len(text)})
    parts = [text[start:end].strip() for start, end in pairwise(cuts)]
    found: dict[str, str] = {}
    for part in filter(None, parts):
        match = _UNIT_VECTOR.fullmatch(part)
        if match is None or match[2][0] in found:
            return text
        factor = match[1].replace(" ", "")
        found[match[2][0]] = f"{factor}1" if factor in ("", "+", "-") else match[1].lstrip("+ ")
    axes = _AXES[:size]
    if len(found) < 2 or not set(found) <= set(axes):
        return text
    return f"({', '.join(found.get(axis, '0').removeprefix('+') for axis in axes)})"
