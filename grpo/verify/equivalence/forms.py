r"""One value in several forms, `\frac34 \text{ or } 0.75`, and with separators, `20,000\pi`."""

import re

from grpo.verify.equivalence.expressions import value
from grpo.verify.equivalence.numbers import read_number, rounds_to
from grpo.verify.equivalence.text import Same, items, squeeze, unwrap

_MOST_FORMS = 3
_BESIDE = re.compile(
    r"(.+?)\s*(?:\(\s*(?:\\text\{\s*)?|\\text\{\s*\(\s*)"
    r"(?:about|approx(?:imately|\.)?|roughly|or(?:\s+about)?|\\approx|=)(?:\s*\})?\s*"
    r"([^()]+?)\s*(?:\)\s*\}?|\}\s*\))"
)
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])")


def forms(gold: str, answer: str, same: Same) -> bool | None:
    """Every form must be the gold, and equal to the first; a decimal may be what that rounds to:
    `\\frac34, 0.75` for 3/4, but neither `\\frac34 \\text{ or } 0.8` nor `5 cm or 5 m` for 5."""
    if _is_list(gold) or unwrap(answer)[0]:
        return None
    beside = _BESIDE.fullmatch(answer)
    parts = [beside[1], beside[2]] if beside is not None else items(answer)[0]
    if not 2 <= len(parts) <= _MOST_FORMS or len(set(map(squeeze, parts))) < len(parts):
        return None
    if any(_is_list(part) or (read_number(part) is None and value(part) is None) for part in parts):
        return None
    exact, *others = sorted(parts, key=lambda part: not same(gold, part))
    right = same(gold, exact) and all(
        (same(gold, other) and same(exact, other)) or _rounds(exact, other) for other in others
    )
    return True if right else None


def _is_list(text: str) -> bool:
    return bool(unwrap(text)[0]) or len(items(text)[0]) > 1


def _rounds(exact: str, approximate: str) -> bool:
    """Is the second a decimal of three digits or more, to which the first rounds?"""
    decimal, worth = read_number(approximate), value(exact)
    return decimal is not None and worth is not None and rounds_to(decimal, worth)


def thousands(gold: str, answer: str, same: Same) -> bool | None:
    """`\\frac{20,000}{\\pi}`, where the other side has no comma: a list has one."""
    texts = [joined(gold, answer), joined(answer, gold)]
    return same(texts[0], texts[1]) if texts != [gold, answer] else None


def joined(text: str, other: str) -> str:
    """The text without the commas between its thousands, where the other one has no comma."""
    bare = _THOUSANDS.sub(lambda match: match[0].replace(",", ""), text)
    return text if "," in other or "," in bare or unwrap(text)[0] else bare
