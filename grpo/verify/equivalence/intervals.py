"""Sets of real numbers, written as intervals or as inequalities."""

import re
from dataclasses import dataclass

from grpo.verify.equivalence.text import Same, cut, outside, trim, unwrap

_UNION = re.compile(r"\\cup(?![A-Za-z])|\\text\{\s*or\s*\}|(?<![A-Za-z\\])or(?![A-Za-z])")
_AND = re.compile(r"\\text\{\s*and\s*\}|(?<![A-Za-z\\])and(?![A-Za-z])|,|;")
_RELATION = re.compile(r"\\le(?![A-Za-z])|\\ge(?![A-Za-z])|\\ne(?![A-Za-z])|<|>")
_SYMBOL = re.compile(r"\\?[A-Za-z]+(?:_\w|_\{\w+\})?")
_MEMBER = re.compile(r"(\\?[A-Za-z]+(?:_\w)?)\s*\\in(?![A-Za-z])\s*(.+)", re.DOTALL)
_BUILDER = re.compile(
    r"\\\{\s*(\\?[A-Za-z]+)\s*(?:\\in\s*\\mathbb\{R\}\s*)?[|:]\s*(.+)\\\}", re.DOTALL
)
_EQUAL = re.compile(r"(\\?[A-Za-z]+(?:_\w|_\{\w+\})?)\s*=\s*([^=<>]+)")
_POINT = re.compile(r"\\\{([^{},;|:]*(?:\{[^{}]*\}[^{},;|:]*)*)\\\}")
_WITHOUT = re.compile(r"(.+?)\s*(?:\\(?:setminus|backslash)|-|\\)\s*\\\{([^{}]+)\\\}", re.DOTALL)
_INFINITE = ("\\infty", "-\\infty")
_FLIPPED = {"<": ">", ">": "<", "\\le": "\\ge", "\\ge": "\\le", "\\ne": "\\ne"}
_ALL = re.compile(
    r"\\mathbb\{?R\}?|(?:\\text\{\s*)?(?:all|any)\s+(?:real|reals|real numbers?)(?:\s*\})?"
)


@dataclass(frozen=True)
class Interval:
    low: str
    low_open: bool
    high: str
    high_open: bool


def interval(gold: str, answer: str, same: Same) -> bool | None:
    """`[2, 5)` and `2 \\le x < 5`, with unions (`or`) and half-lines. None where a side is no
    such set, or both are written as two numbers in parentheses, which may be a point."""
    left, right = read(gold), read(answer)
    if left is None or right is None or (left[0] and right[0] and left[0] != right[0]):
        return None
    golds, answers = left[1], list(right[1])
    if len(golds) != len(answers):
        return None
    for one in golds:
        found = next((other for other in answers if _equal(one, other, same)), None)
        if found is None:
            return None
        answers.remove(found)
    return True


def _equal(gold: Interval, answer: Interval, same: Same) -> bool:
    return (
        (gold.low_open, gold.high_open) == (answer.low_open, answer.high_open)
        and _end(gold.low, answer.low, same)
        and _end(gold.high, answer.high, same)
    )


def _end(gold: str, answer: str, same: Same) -> bool:
    if gold in _INFINITE or answer in _INFINITE:
        return gold == answer
    return same(gold, answer)


def read(text: str) -> tuple[str, list[Interval]] | None:
    """The variable ("" for none) and the intervals of a union; None where it is no such set."""
    variable = ""
    builder = _BUILDER.fullmatch(text) if unwrap(text)[0] == r"\{" else None
    member = _MEMBER.fullmatch(text)
    if builder is not None:
        variable, text = builder[1], trim(builder[2])
    elif member is not None:
        variable, text = member[1], trim(member[2])
    if _ALL.fullmatch(text):
        return variable, [Interval(_INFINITE[1], True, _INFINITE[0], True)]
    found: list[Interval] = []
    for part in cut(text, _UNION):
        without = _punctured(part)
        if without is not None:
            found.extend(without)
            continue
        one = _point(part) or _bracketed(part)
        if one is None:
            related = _related(part)
            if related is None or (variable and related[0] != variable):
                return None
            variable = related[0]
            found.extend(related[1])
        else:
            found.append(one)
    # One point is a value like any other.
    return (variable, found) if any(one.low != one.high for one in found) else None


def _bracketed(text: str) -> Interval | None:
    if not (text[:1] in ("(", "[") and text[-1:] in (")", "]")):
        return None
    ends = cut(text[1:-1], re.compile("[,;]"))
    if len(ends) != 2:
        return None
    low, high = (_plain_infinity(end) for end in ends)
    return Interval(low, text[0] == "(", high, text[-1] == ")")


def _point(text: str) -> Interval | None:
    """`\\{5\\}` and `x = 5`, as a part of a union."""
    match = _POINT.fullmatch(text)
    return Interval(trim(match[1]), False, trim(match[1]), False) if match is not None else None


def _punctured(text: str) -> list[Interval] | None:
    """One interval without one of its points: `(0, 5) \\setminus \\{2\\}`."""
    match = _WITHOUT.fullmatch(text)
    whole = read(trim(match[1])) if match is not None else None
    if match is None or whole is None or len(whole[1]) != 1:
        return None
    one, hole = whole[1][0], trim(match[2])
    return [
        Interval(one.low, one.low_open, hole, True),
        Interval(hole, True, one.high, one.high_open),
    ]


def _plain_infinity(text: str) -> str:
    squeezed = text.replace(" ", "").replace("{", "").replace("}", "")
    return squeezed if squeezed in _INFINITE else text


def _related(text: str) -> tuple[str, list[Interval]] | None:
    """`a < x \\le b`, `x > a`, `x \\ne a`, `x = a`, and two half-lines joined by "and"."""
    parts = cut(text, _AND)
    if len(parts) == 2:
        return _both(parts[0], parts[1])
    named = _EQUAL.fullmatch(text)
    if named is not None:
        return named[1], [Interval(trim(named[2]), False, trim(named[2]), False)]
    signs = [match[0] for match in outside(text, _RELATION)]
    sides = cut(text, _RELATION)
    if len(signs) == 1 and len(sides) == 2:
        return _one_sign(sides[0], signs[0], sides[1])
    if len(signs) == 2 and len(sides) == 3 and _SYMBOL.fullmatch(sides[1]):
        low, middle, high = sides
        if all(sign in ("<", "\\le") for sign in signs):
            return middle, [_between(low, signs[0], signs[1], high)]
        if all(sign in (">", "\\ge") for sign in signs):
            return middle, [_between(high, signs[1], signs[0], low)]
    return None


def _both(one: str, other: str) -> tuple[str, list[Interval]] | None:
    left, right = _related(one), _related(other)
    if left is None or right is None or left[0] != right[0]:
        return None
    if len(left[1]) != 1 or len(right[1]) != 1:
        return None
    low, high = left[1][0], right[1][0]
    if low.high not in _INFINITE:
        low, high = high, low
    if low.high not in _INFINITE or high.low not in _INFINITE:
        return None
    return left[0], [Interval(low.low, low.low_open, high.high, high.high_open)]


def _one_sign(left: str, sign: str, right: str) -> tuple[str, list[Interval]] | None:
    if _SYMBOL.fullmatch(left) and not _SYMBOL.fullmatch(right):
        return left, _half_line(sign, right)
    if _SYMBOL.fullmatch(right) and not _SYMBOL.fullmatch(left):
        return right, _half_line(_FLIPPED[sign], left)
    return None


def _between(low: str, low_sign: str, high_sign: str, high: str) -> Interval:
    low, high = _plain_infinity(low), _plain_infinity(high)
    return Interval(low, low_sign in "<>", high, high_sign in "<>")


def _half_line(sign: str, end: str) -> list[Interval]:
    up, down = _INFINITE
    if sign == "\\ne":
        return [Interval(down, True, end, True), Interval(end, True, up, True)]
    if sign in ("<", "\\le"):
        return [Interval(down, True, end, sign == "<")]
    return [Interval(end, sign == ">", up, True)]
