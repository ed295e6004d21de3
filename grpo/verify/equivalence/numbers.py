"""Plain numbers, read exactly and without a parser: most answers are nothing else."""

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

# A decimal with fewer significant digits says too little to accept what it was rounded from:
# half of the wrong answers to 0.5 round to it.
_LEAST_DIGITS = 3
# Two decimals that agree this far may differ beyond `float_rounding`, but not a tiny one and 0.
_RELATIVE = Fraction(1, 1000)

_PLAIN = r"(?:\d{1,3}(?:(?:,|\{,\}| )\d{3})+|\d{1,1000})(?:\.\d{0,1000})?|\.\d{1,1000}"
_INTEGER = r"\d{1,1000}"
_NUMBER = re.compile(
    rf"(?P<sign>[+-]?)\s*(?:"
    rf"(?P<plain>{_PLAIN})(?:\s*(?:\\times|\\cdot|\*)\s*10\s*\^\s*(?P<ten>\{{?[+-]?\d{{1,3}}\}}?)"
    rf"|[eE](?P<e>[+-]?\d{{1,3}}))?"
    rf"|10\s*\^\s*(?P<power>\{{?[+-]?\d{{1,3}}\}}?)"
    rf"|(?:(?P<whole>{_INTEGER})\s*)?\\frac\s*\{{\s*(?P<n>-?(?:{_PLAIN}))\s*\}}"
    rf"\s*\{{\s*(?P<d>-?(?:{_PLAIN}))\s*\}}"
    rf"|(?:(?P<whole2>{_INTEGER})\s+)?(?P<n2>{_PLAIN})\s*/\s*(?P<d2>-?(?:{_PLAIN}))"
    rf")\s*(?P<percent>%?)"
)
_REPEATING = re.compile(
    r"(?P<sign>[+-]?)\s*(?P<whole>\d{1,100})\.(?:(?P<before>\d{0,100})\s*"
    r"\\(?:overline|bar)\s*\{?\s*(?P<bar>\d{1,100})\s*\}?"
    r"|(?P<before2>\d{0,100})\s*\\dot\s*\{?\s*(?P<dot>\d)\s*\}?"
    r"|(?P<shown>\d{3,100})\s*(?:\\ldots|\.\.\.|…))\s*(?P<percent>%?)"
)
_SHOWN = re.compile(r"(?:(?P<one>\d)(?P=one){2,}|(?P<many>\d{2,6}?)(?P=many)+)$")


@dataclass(frozen=True)
class Number:
    """`value` as written, a percent sign not counted. `step`: the unit in the last place of a
    decimal, None for what is exact. `digits`: how many of a decimal's are significant."""

    value: Fraction
    step: Fraction | None
    digits: int
    percent: bool

    @property
    def worth(self) -> Fraction:
        return self.value / 100 if self.percent else self.value


@lru_cache(maxsize=8192)
def read_number(text: str) -> Number | None:
    """An integer, decimal, fraction, mixed number, power of ten or percentage, or None."""
    match = _NUMBER.fullmatch(text)
    if match is None:
        repeating = _REPEATING.fullmatch(text)
        return _repeating(repeating) if repeating is not None else None
    percent = match["percent"] == "%"
    sign = -1 if match["sign"] == "-" else 1
    if match["plain"]:
        plain = _bare(match["plain"])
        scale = Fraction(10) ** int((match["ten"] or match["e"] or "0").strip("{}"))
        step = Fraction(1, 10 ** len(plain.partition(".")[2])) * scale if "." in plain else None
        digits = len(plain.replace(".", "").lstrip("0"))
        return Number(sign * _fraction(plain) * scale, step, digits, percent)
    if match["power"]:
        return Number(sign * Fraction(10) ** int(match["power"].strip("{}")), None, 1, percent)
    whole = match["whole"] or match["whole2"]
    top = _fraction(_bare(match["n"] or match["n2"]))
    bottom = _fraction(_bare(match["d"] or match["d2"]))
    if bottom == 0 or (whole is not None and not 0 < top < bottom):
        return None
    return Number(sign * (int(whole or 0) + top / bottom), None, 0, percent)


def _repeating(match: re.Match[str]) -> Number | None:
    """`0.1\\overline{6}`, `0.\\dot{3}` and `0.1666...`, exactly. Of the last the digits must
    show what repeats: one digit three times, several twice."""
    before = match["before"] or match["before2"] or ""
    again = match["bar"] or match["dot"]
    if again is None:
        shown = _SHOWN.search(match["shown"])
        if shown is None:
            return None
        again = shown["one"] or shown["many"]
        before = match["shown"][: shown.start()]
    scale = 10 ** len(before)
    value = int(match["whole"]) + Fraction(int(before or "0"), scale)
    value += Fraction(int(again), (10 ** len(again) - 1) * scale)
    return Number(-value if match["sign"] == "-" else value, None, 0, match["percent"] == "%")


def _bare(plain: str) -> str:
    return plain.replace("{,}", "").replace(",", "").replace(" ", "")


def _fraction(plain: str) -> Fraction:
    return Fraction(plain if plain.strip("-.") else "0")


def equal_numbers(gold: Number, answer: Number, float_rounding: int) -> bool:
    """Exactly equal, or where one is a decimal, equal up to `float_rounding` decimals."""
    if gold.worth == answer.worth:
        return True
    if gold.step is None and answer.step is None:
        return False
    return close(gold.worth, answer.worth, float_rounding)


def close(gold: Fraction, answer: Fraction, float_rounding: int) -> bool:
    same = round(gold, float_rounding) == round(answer, float_rounding)
    return same and abs(gold - answer) <= abs(gold) * _RELATIVE


def rounds_to(gold: Number, value: Fraction) -> bool:
    """Is the reference a decimal of three significant digits or more that `value` rounds to?"""
    if gold.step is None or gold.digits < _LEAST_DIGITS:
        return False
    return abs(gold.value - value) <= gold.step / 2


def same_percentage(gold: Number, answer: Number) -> bool:
    """Where the question asks for a percentage, its sign may be left out: 12.5 for 12.5%. Not
    below 1, where the bare number may be meant as a share."""
    if gold.percent == answer.percent or gold.value != answer.value:
        return False
    return gold.percent or abs(gold.value) >= 1
