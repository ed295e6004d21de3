"""What stands behind a value: a unit, a noun, or a word that changes what is said."""

import re
from fractions import Fraction
from functools import lru_cache

from grpo.verify.equivalence.numbers import read_number
from grpo.verify.equivalence.text import FUNCTION, trim

_SCALES: dict[str, dict[str, str]] = {
    "length": {
        "mm|millimeter|millimetre": "1/1000",
        "cm|centimeter|centimetre": "1/100",
        "dm|decimeter": "1/10",
        "m|meter|metre": "1",
        "km|kilometer|kilometre": "1000",
        "in|inch|inche": "0.0254",
        "ft|foot|feet": "0.3048",
        "yd|yard": "0.9144",
        "mi|mile": "1609.344",
    },
    "mass": {
        "mg|milligram": "1/1000",
        "g|gram": "1",
        "kg|kilogram": "1000",
        "lb|pound": "453.59237",
        "oz|ounce": "28.349523125",
    },
    "time": {
        "s|sec|second": "1",
        "min|minute": "60",
        "h|hr|hour": "3600",
        "day": "86400",
        "week": "604800",
    },
    "money": {"cent|¢": "1/100", "dollar|usd|buck": "1"},
    "angle": {"degree|deg": "1"},
    "volume": {"ml|milliliter|millilitre": "1/1000", "l|liter|litre": "1"},
}
_UNITS = {
    name: (kind, Fraction(scale))
    for kind, scales in _SCALES.items()
    for names, scale in scales.items()
    for name in names.split("|")
}
_MANY = {
    "dozen": 12,
    "hundred": 10**2,
    "thousand": 10**3,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
}
# Words that change what the number says; both sides must have the same ones.
LOADED = frozenset(
    re.findall(
        r"\w+",
        """
        more less least most over under above below greater fewer larger smaller not no
        except nor than or and but between from until before after am pm noon midnight north
        south east west left right up down clockwise counterclockwise negative minus plus
        times squared cubed percent percentage half quarter third base modulo mod per
        approximately about almost nearly wrong false incorrect odd even prime if when unless
        bc ad
        """,
    )
)
_FILLERS = frozenset(("of", "the", "a", "an", "in", "unit", "each"))
_RAW_TAIL = re.compile(r"(?<=[\d})\s%])\s*((?:[A-Za-z]{2,}|(?<=\s)[A-Za-z])[A-Za-z\s./^\d{}]*)$")
_TEXT_TAIL = re.compile(r"\s*\\text\{.*$", re.DOTALL)
_POWER = re.compile(r"\^\s*\{?\s*([23])\s*\}?")


@lru_cache(maxsize=8192)
def split_unit(text: str) -> tuple[str, str]:
    """The value, and the words behind it with single spaces in lower case ("" where it ends in
    none): `5\\text{ cm}^2` -> ("5", "cm ^2"), `90^\\circ` -> ("90", "degree")."""
    match = _TEXT_TAIL.search(text)
    if match is not None and not text[: match.start()].endswith(("_", "{")):
        unit = match[0]
    else:
        match = _RAW_TAIL.search(text)
        unit = match[1] if match is not None else ""
        if match is None or not _is_raw_unit(text[: match.start()], unit):
            match = re.search(r"\s*\^\s*\\circ\s*[CF]?$", text)
            unit = match[0] if match is not None else ""
    core = trim(text[: match.start()]) if match is not None and unit else text
    if core and core[-1] in "_^\\=<>+-*/":
        return text, ""
    return core, _fold(unit) if core else ""


def _is_raw_unit(core: str, unit: str) -> bool:
    """Words outside of a text command may be variables: only known ones behind a number count, or
    a word of four letters."""
    words = re.findall(r"[A-Za-z]+", unit)
    if FUNCTION.match(words[0]):
        return False
    if any(len(word) >= 4 for word in words):
        return True
    plain = read_number(trim(core)) is not None
    return plain and all(_singular(w.lower()) in _UNITS or w.lower() in LOADED for w in words)


def _fold(unit: str) -> str:
    unit = re.sub(r"\\text\{|[{}()]", " ", unit.replace("^\\circ", " degree "))
    unit = re.sub(r"(?<=[a-zA-Z])\.\s*(?=[a-zA-Z]\b)", "", _POWER.sub(r" ^\1 ", unit))  # a.m.
    unit = unit.replace("\\", " ").replace("-", " ").lower()
    words = re.findall(r"[a-z¢]+|\^[23]|\d+|/|[^\sa-z.,]", unit)
    words = [_singular(word) for word in words]
    return " ".join(word for word in words if word not in _FILLERS)


def _singular(word: str) -> str:
    return word[:-1] if len(word) > 2 and word.endswith("s") and not word.endswith("ss") else word


def same_unit(gold: str, answer: str, exact: bool = False) -> Fraction | None:
    """By what the answer's value must be multiplied to be in the gold's unit, None where they are
    units of different things. A unit may be left out, and a noun worded otherwise unless `exact`;
    a word that changes the value's meaning, or a number among the words, may not."""
    gold_words, answer_words = gold.split(), answer.split()
    factor = Fraction(1)
    for word in answer_words:
        factor *= _MANY.get(word, 1)
    for word in gold_words:
        factor /= _MANY.get(word, 1)
    gold_words = [word for word in gold_words if word not in _MANY]
    answer_words = [word for word in answer_words if word not in _MANY]
    if _loaded(gold_words) != _loaded(answer_words):
        return None
    if not gold_words or not answer_words or gold_words == answer_words:
        return factor
    left, right = _scale(gold_words), _scale(answer_words)
    if left is None and right is None:
        return None if exact else factor
    if left is None or right is None:
        known, other = (gold_words, answer_words) if left else (answer_words, gold_words)
        return factor if not exact and set(known) <= set(other) else None
    (kind, scale), (other_kind, other_scale) = left, right
    if kind == other_kind:
        return factor * other_scale / scale
    # "square units" are those of any length.
    plain = {one.partition("^")[0] for one in (kind, other_kind)}
    powers = {one.partition("^")[2] for one in (kind, other_kind)}
    return factor if plain == {"unit", "length"} and len(powers) == 1 else None


def _loaded(words: list[str]) -> set[str]:
    return {w for w in words if w in LOADED or not (w[0].isalpha() or w[0] in "^¢/")}


def _scale(words: list[str]) -> tuple[str, Fraction] | None:
    """Kind and size of a known unit, as ("length^2", 1/10000) for "square cm" and "cm ^2"."""
    power = 1
    for word, raised in (("square", 2), ("sq", 2), ("cubic", 3), ("^2", 2), ("^3", 3)):
        if word in words:
            power = raised
            words = [other for other in words if other != word]
    if len(words) > 1 or not all(word in _UNITS for word in words):
        return None
    kind, scale = _UNITS[words[0]] if words else ("unit", Fraction(1))
    return (kind if power == 1 else f"{kind}^{power}"), scale**power
