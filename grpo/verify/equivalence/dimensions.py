"""Units of measurement, by pint: what each measures, and how large it is, exactly.

("km", "/", "h") -> [length] 1, [time] -1; 5/18 of a meter per second
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, lru_cache
from typing import Any

import pint


@dataclass(frozen=True)
class Unit:
    """`dimensions`: what is measured, with its power, sorted. `scale`: how many SI units it is."""

    dimensions: tuple[tuple[str, int], ...]
    scale: Fraction


# Its stubs know of floats alone.
_REGISTRY: Any = pint.UnitRegistry(non_int_type=Fraction)  # pyright: ignore[reportArgumentType]
# Each currency is a thing of its own.
_MONEY = {
    "dollar": ("dollar", "1"),
    "usd": ("dollar", "1"),
    "buck": ("dollar", "1"),
    "cent": ("dollar", "1/100"),
    "¢": ("dollar", "1/100"),
    "penny": ("dollar", "1/100"),
    "pennie": ("dollar", "1/100"),
    "euro": ("euro", "1"),
    "sterling": ("sterling", "1"),
    "rupee": ("rupee", "1"),
    "yuan": ("yuan", "1"),
    "元": ("yuan", "1"),
    "yen": ("yen", "1"),
}
# For pint these are pure numbers, and temperatures of one kind.
_KINDS = {
    "degree": ("degree", "1"),
    "deg": ("degree", "1"),
    "°": ("degree", "1"),
    "度": ("degree", "1"),
    "arcminute": ("degree", "1/60"),
    "arcsecond": ("degree", "1/3600"),
    "radian": ("radian", "1"),
    "rad": ("radian", "1"),
    "bit": ("bit", "1"),
    "byte": ("bit", "8"),
    "celsius": ("celsius", "1"),
    "centigrade": ("celsius", "1"),
    "fahrenheit": ("fahrenheit", "1"),
}
_ALIASES = {"kph": "km/h", "kmph": "km/h", "inche": "inch", "centurie": "century", "sec": "second"}
_CHINESE = {
    **{"米": "m", "厘米": "cm", "毫米": "mm", "分米": "dm", "千米": "km", "公里": "km"},
    **{"克": "g", "千克": "kg", "公斤": "kg", "吨": "tonne", "升": "liter", "毫升": "ml"},
    **{"秒": "s", "分": "minute", "分钟": "minute", "小时": "hour", "时": "hour", "天": "day"},
    **{"日": "day", "周": "week", "月": "month", "个月": "month", "年": "year"},
    **{"平方米": "m^2", "平方厘米": "cm^2", "立方米": "m^3", "立方厘米": "cm^3"},
}
_COMPOUND = frozenset(
    name for name in (*_ALIASES.values(), *_CHINESE.values()) if not name.isalpha()
)
# Names of units that are other things in nearly every problem.
_NOUNS = frozenset(
    re.findall(
        r"\w+",
        """
        a at b count point hand rod chain link pole line mark turn cycle dot pixel drop ream per e i
        """,
    )
)
_POWER_BEFORE = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}
_POWER_AFTER = {"squared": 2, "cubed": 3}
_RAISED = re.compile(r"\^\s*(-?\d)")


@lru_cache(maxsize=4096)
def unit_named(word: str) -> Unit | None:
    """One unit by its symbol or its name, in the singular or plural."""
    word = _CHINESE.get(word, word)
    low = word.lower()
    for name in (low, low.removesuffix("s")):
        kind = _MONEY.get(name) or _KINDS.get(name)
        if kind is not None:
            return Unit(((kind[0], 1),), Fraction(kind[1]))
        if name in _ALIASES:
            return _measured(_ALIASES[name])
    if low in _NOUNS or low.removesuffix("s") in _NOUNS:
        return None
    # "KM" and "Hours" are common; but MJ and mJ are two things.
    return _measured(word) or (_measured(low) if len(word) > 1 else None)


@cache
def _measured(name: str) -> Unit | None:
    known = name in _COMPOUND or (name.isalpha() and _REGISTRY.parse_unit_name(name))
    if not known:
        return None
    try:
        scale, base = _REGISTRY.get_base_units(name)
    except pint.OffsetUnitCalculusError:  # a prefix before a temperature
        return None
    found = base.dimensionality.items()
    powers = tuple(sorted((kind, int(power)) for kind, power in found if power))
    return Unit(powers, Fraction(scale)) if powers else None


@lru_cache(maxsize=4096)
def read_unit(words: tuple[str, ...]) -> Unit | None:
    """What the words of a unit come to, as in ("m", "/", "s", "^2") or ("grams", "per", "cubic",
    "centimeter"); None where one of them is no unit."""
    total: dict[str, int] = {}
    scale = Fraction(1)
    under, before, at = False, 1, 0
    while at < len(words):
        word, at = words[at], at + 1
        if word in ("/", "per"):
            under = True
            continue
        if word.lower() in _POWER_BEFORE:
            before = _POWER_BEFORE[word.lower()]
            continue
        unit = unit_named(word)
        if unit is None:
            return None
        raised = _power(words[at]) if at < len(words) else None
        at += raised is not None
        power = before * (raised or 1) * (-1 if under else 1)
        for kind, own in unit.dimensions:
            total[kind] = total.get(kind, 0) + own * power
        scale *= unit.scale**power
        under, before = False, 1
    if before != 1:  # square units
        total["unit"] = before
    powers = tuple(sorted((kind, power) for kind, power in total.items() if power))
    return Unit(powers, scale) if powers else None


def is_part(word: str) -> bool:
    """Does the word belong to a unit without being one: "per", "square", "^2"?"""
    return word in ("/", "per") or word.lower() in _POWER_BEFORE or _power(word) is not None


def _power(word: str) -> int | None:
    raised = _RAISED.fullmatch(word)
    return int(raised[1]) if raised is not None else _POWER_AFTER.get(word.lower())
