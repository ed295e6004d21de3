"""Rules that need one number or one expression on each side."""

import re
from fractions import Fraction

from grpo.verify.equivalence.expressions import value
from grpo.verify.equivalence.lists import split_name
from grpo.verify.equivalence.numbers import (
    equal_numbers,
    read_number,
    rounds_to,
    same_percentage,
)
from grpo.verify.equivalence.text import FUNCTION_OF, Same, cut
from grpo.verify.equivalence.units import Nouns, same_unit, split_noun, split_unit

_OR = re.compile(r"\\text\{\s*OR\s*\}|(?<![A-Za-z\\])OR(?![A-Za-z])")
_COMMA = re.compile(r"(-?\d+),(\d+)")
_RELATION = re.compile(r"(?<![<>!:\\])=(?!=)|\\(?:approx|simeq)(?![A-Za-z])")
_APPROXIMATE = re.compile(r"\\(?:approx|simeq)(?![A-Za-z])")
_EQUALS = re.compile(r"(?<![<>!:\\])=(?!=)")


def number(gold: str, answer: str, float_rounding: int) -> str | None:
    """Of two plain numbers: "" where they are equal, "rounding" or "percentage" where that rule
    makes them so, "no" where nothing does. None where a side is no plain number."""
    left, right = read_number(gold), read_number(answer)
    if left is None or right is None:
        return None
    if equal_numbers(left, right, float_rounding):
        return ""
    finer = right.step is None or (left.step is not None and right.step < left.step)
    scale = 100 if left.percent else 1
    if (left.percent or not right.percent) and finer and rounds_to(left, right.worth * scale):
        return "rounding"
    return "percentage" if same_percentage(left, right) else "no"


def alternatives(gold: str, answer: str, same: Same) -> bool | None:
    """A gold that gives several forms of one value, `A OR B`: any of them will do."""
    parts = cut(gold, _OR)
    return any(same(part, answer) for part in parts) if len(parts) > 1 else None


def decimal_comma(gold: str, answer: str, same: Same) -> bool | None:
    """`1,22` for a gold of 1.22, digit by digit. A gold of `1,22` is the list of 1 and 22, unless
    what follows its comma is no integer: `0,07`."""
    for comma, point, may_be_list in ((gold, answer, True), (answer, gold, False)):
        match = _COMMA.fullmatch(comma)
        if match is None or f"{match[1]}.{match[2]}" != point:
            continue
        if not may_be_list or (match[2][0] == "0" and len(match[2]) > 1):
            return True
    return None


def chain(gold: str, answer: str, same: Same) -> bool | None:
    """`x = 5 + 5 = 10`: each member of the answer must be right, so that `5 = 24` is nothing. Of a
    gold's (`0.56 = 56%`) any will do. What follows `\\approx` must be what it rounds, to the digit
    where only that is right, else within its last one."""
    golds = cut(gold, _EQUALS)
    if len(golds) > 1 and all(read_number(part) is not None for part in golds):
        return any(same(part, answer) for part in golds)
    _, rest = split_name(answer)
    if _EQUALS.search(split_name(gold)[1]) or not cut(rest, _RELATION)[1:]:
        return None
    exact, *approximate = cut(rest, _APPROXIMATE)
    members = cut(exact, _EQUALS)
    target = split_name(gold)[1]
    if all(same(target, member) for member in members):
        return not any(_is_far(members[-1], part) for part in approximate)
    if not approximate and _EQUALS.search(gold):
        return None  # two equations
    return any(same(target, part) and _rounded(members[-1], part) for part in approximate)


def _is_far(exact: str, approximate: str) -> bool:
    """Is the second, where both can be read, no approximation of the first?"""
    decimal, worth = read_number(approximate), value(exact)
    if decimal is None or decimal.percent or worth is None:
        return False
    # An integer may be rounded to any place: 23,456 is about 23,000.
    return abs(worth - decimal.worth) > (decimal.step or max(Fraction(1), abs(worth) / 10))


def _rounded(exact: str, approximate: str) -> bool:
    """Is the second a decimal, or of an irrational number an integer, that the first rounds to?"""
    decimal, worth = read_number(approximate), value(exact)
    if decimal is None or worth is None:
        return False
    if decimal.step is None and read_number(exact) is not None:
        return False
    return abs(worth - decimal.worth) <= (decimal.step or Fraction(1)) / 2


def rounding(gold: str, answer: str, same: Same) -> bool | None:
    """A gold decimal of three significant digits or more, and the exact value that it rounds:
    `1.414` and `\\sqrt{2}`."""
    decimal = read_number(gold)
    if decimal is None or decimal.step is None or read_number(answer) is not None:
        return None
    worth = value(answer)
    return True if worth is not None and rounds_to(decimal, worth) else None


def units(gold: str, answer: str, same: Same, exact: bool, nouns: Nouns) -> bool | None:
    """A unit or noun behind the value may be left out, or be another of its kind: `3\\text{ m}`
    and `300\\text{ cm}`. `exact`: in a list, a noun must be the same noun. `nouns`: those of the
    problem, which may stand behind a bare gold."""
    (left, gold_unit), (right, answer_unit) = split_unit(gold), split_unit(answer)
    if right == answer and read_number(gold) is not None:
        right, answer_unit = split_noun(answer, nouns)
    if not gold_unit and not answer_unit:  # "units" counts nothing
        return None if (left, right) == (gold, answer) else same(left, right)
    if gold_unit == "degree" and not answer_unit and FUNCTION_OF.search(right):
        return None  # the sign belongs to what the function is of
    angle = _radians(left, gold_unit, right, answer_unit)
    if angle is not None:
        return same(*angle)
    factor = same_unit(gold_unit, answer_unit, exact, nouns)
    if factor is None:
        return None
    if factor == 1:
        return same(left, right)
    worth = read_number(right)
    if worth is None:
        return None
    scaled = worth.value * factor
    sign = "-" if scaled < 0 else ""
    return same(left, f"{sign}\\frac{{{abs(scaled.numerator)}}}{{{scaled.denominator}}}")


def _radians(gold: str, gold_unit: str, answer: str, answer_unit: str) -> tuple[str, str] | None:
    """Both in radians, where one is in degrees and the other is a bare multiple of pi."""
    if gold_unit == "degree" and not answer_unit and "\\pi" in answer:
        return f"\\frac{{({gold}) \\pi}}{{180}}", answer
    if answer_unit == "degree" and not gold_unit and "\\pi" in gold:
        return gold, f"\\frac{{({answer}) \\pi}}{{180}}"
    return None
