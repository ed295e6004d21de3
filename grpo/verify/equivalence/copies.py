"""Whether an answer is copied: what stands in the problem as a formula and is written otherwise in
the reference.

`99^2 + 99 + 1` equals 9901: whoever is asked for the value and answers so has computed nothing.
"""

import re
from functools import lru_cache

from grpo.verify.equivalence.expressions import canonical
from grpo.verify.equivalence.guards import too_large
from grpo.verify.equivalence.numbers import read_number
from grpo.verify.equivalence.spelling import tidy
from grpo.verify.equivalence.text import LETTER, LONGEST_PROBLEM, cut, squeeze
from grpo.verify.equivalence.units import split_unit

_MOST_FORMULAS = 200
_MOST_READ = 20  # by the parser, which takes a few milliseconds for each
# Bounded, so that a text of nothing but openings is read in linear time.
MATH = re.compile(
    r"\$\$(.{1,2000}?)\$\$|(?<!\\)\$(.{1,2000}?)(?<!\\)\$|\\\((.{1,2000}?)\\\)|\\\[(.{1,2000}?)\\\]",
    re.DOTALL,
)
_SIDES = re.compile(r"=|<|>|\\(?:le|ge|ne|approx|in)(?![A-Za-z])|[,;]")
# In another order an expression has the same of these.
_CHARACTER = re.compile(rf"{LETTER.pattern}|\d")
_INTEGER = re.compile(r"(?:[A-Za-z]=)?-?\d+")
_WITH_UNIT = re.compile(r"(\d[\d.,]*)\s?([A-Za-z]{1,12})")


def formulas(problem: str) -> list[str]:
    """What stands between math delimiters in a problem, as it is written."""
    return [next(group for group in match.groups() if group) for match in MATH.finditer(problem)]


def copied(gold: str, answer: str, problem: str) -> bool:
    """Is the answer a formula of the problem, where the gold is another one of the same value?

    Whole formulas count, the sides of their relations and the items of their lists, in any order
    of their terms; a value with its unit counts wherever it stands, where the gold is in another
    unit; an integer never.
    """
    given = squeeze(answer)
    if not problem or given == squeeze(gold) or _INTEGER.fullmatch(given):
        return False
    parts = _parts(problem)
    if given in parts:
        return True
    measured = _WITH_UNIT.fullmatch(given)
    if measured is not None:
        if _same_number(gold, measured[1]):
            return False
        wanted = rf"(?<![\w.]){re.escape(measured[1])}\s*{measured[2]}(?![A-Za-z])"
        return re.search(wanted, _opened(problem)) is not None
    if read_number(answer) is not None:
        return False
    # What has no letters is evaluated as it is read, so that all of its orders would be equal.
    written = sorted(_CHARACTER.findall(answer))
    alike = [
        formula
        for formula in parts.values()
        if LETTER.search(formula) and sorted(_CHARACTER.findall(formula)) == written
    ]
    expression = canonical(answer) if alike else None
    if expression is None or canonical(gold) == expression:
        return False
    return any(canonical(formula) == expression for formula in alike[:_MOST_READ])


def _same_number(gold: str, number: str) -> bool:
    wanted, written = read_number(split_unit(gold)[0]), read_number(number)
    return wanted is not None and written is not None and wanted.value == written.value


@lru_cache(maxsize=512)
def _parts(problem: str) -> dict[str, str]:
    """Every formula of the problem and its sides, squeezed, with its tidy text."""
    found: dict[str, str] = {}
    for span in formulas(problem[:LONGEST_PROBLEM]):
        whole = tidy(span)
        for part in (whole, *cut(whole, _SIDES)):
            if part and len(found) < _MOST_FORMULAS and not too_large(part):
                found.setdefault(squeeze(part), part)
    return found


@lru_cache(maxsize=512)
def _opened(problem: str) -> str:
    return squeeze(tidy(problem[:LONGEST_PROBLEM]))
