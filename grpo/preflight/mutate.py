"""A reference answer as models write it, and wrong answers that look like it."""

import re
from collections.abc import Callable, Sequence
from fractions import Fraction

_LONGEST_NUMBER = 100  # digits
_WORDS = re.compile(r"\\(?:text\w*|math(?:rm|bf|it|tt|sf)|mbox|hbox|operatorname)\s*\{[^{}]*\}")
# Digits outside of sub- and superscripts: the 2 of x_2 and of cm^2 may be nobody's answer.
_NUMBER = re.compile(r"(?<![\d_^])(?<![_^]\{)(?<![_^]\{-)(?<![_^]-)\d+")
# With one of these, a minus sign in front is not the negative of the whole.
_NO_SIGN = re.compile(
    r"[,;:=<>|%\[\]]|\\(?:pm|mp|text|math|mbox|in\b|le|ge|ne|eq|lt|gt|approx|sim|cup|cap|infty|\{"
    r"|begin|left|right|lfloor|lceil|cdots|ldots|dots|to\b|mod|pmod)|±|∞|≤|≥|≠|\("
)
_LETTERS = re.compile(r"(?<![A-Za-z\\])[A-Za-z]{2,}")
_PLAIN = re.compile(r"(-?)(\d*\.?\d+)")
_RATIO = re.compile(r"(-?)(?:\\[dt]?frac\{(\d+)\}\{(\d+)\}|(\d+)/(\d+))")
_LOOK_AHEAD = 20  # rows searched for one whose answer is another
_FLIPPED = str.maketrans("[]()", "()[]")
_INTERVAL = re.compile(r"[\[(][^\[\](),]+,[^\[\](),]+[\])]")
_UNION = re.compile(r"\s*(?:\\cup|∪)\s*")
_DEGREE = re.compile(
    r"(\\(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])\s*[({]?\s*-?\d+(?:\.\d+)?)"
    r"\s*(?:\^\s*\{?\s*\\circ\s*\}?|°)"
)
_EXPONENT = re.compile(r"\^\s*\{[^{}]*\}")
_INNER_SIGN = re.compile(r"(?<=[\w})])\s*([+-])\s*(?=[\w\\({])")
# Units beside another of the same kind: whoever reads the number alone takes one for the other.
_OTHER_UNITS = {
    "cm": "m",
    "m": "cm",
    "mm": "cm",
    "km": "m",
    "inches": "feet",
    "feet": "inches",
    "miles": "kilometers",
    "centimeters": "meters",
    "meters": "centimeters",
    "seconds": "minutes",
    "minutes": "hours",
    "hours": "minutes",
    "days": "weeks",
    "weeks": "days",
    "years": "months",
    "months": "years",
    "mph": "km/h",
    "kg": "g",
    "g": "kg",
    "dollars": "cents",
    "cents": "dollars",
    "square": "cubic",
    "cubic": "square",
    "degrees": "radians",
}
_UNIT = re.compile(rf"(?<![A-Za-z\\.])(?:{'|'.join(_OTHER_UNITS)})(?![A-Za-z])")
_DOLLARS = re.compile(r"\\\$\s*(\d(?:[\d.,]|\\!)*)")

# What a model's last words may be, around the answer.
FORMATS: dict[str, Callable[[str], str]] = {
    r"\boxed{gold}": lambda gold: f"Putting it together:\n\n\\boxed{{{gold}}}",
    r"\boxed{$gold$}": lambda gold: f"Putting it together:\n\n\\boxed{{{in_dollars(gold)}}}",
    "Answer: gold": lambda gold: f"Putting it together.\n\nAnswer: {gold}",
    "Answer: $gold$": lambda gold: f"Putting it together.\n\nAnswer: {in_dollars(gold)}",
    "<answer>gold</answer>": lambda gold: f"Putting it together:\n\n<answer>{gold}</answer>",
}
JUDGED_IN = r"\boxed{gold}"  # the format that wrong answers are written in


def in_dollars(gold: str) -> str:
    """As it is where it has dollar signs of its own."""
    return gold if "$" in gold else f"${gold}$"


def off_by_one(gold: str) -> str | None:
    """The first number one higher; None where there is none."""
    return _change(gold, 0, lambda digits: str(int(digits) + 1).zfill(len(digits)))


def last_digit_changed(gold: str) -> str | None:
    """The last digit of the last number three higher, 7 to 0, 8 to 1, 9 to 2."""
    return _change(gold, -1, lambda digits: digits[:-1] + str((int(digits[-1]) + 3) % 10))


def sign_flipped(gold: str) -> str | None:
    """With a minus sign in front, or without the one that is there. None for zero, for what has
    no digits, and where a sign in front would not negate the whole."""
    bare = gold.strip().strip("$").strip()
    if not re.search("[1-9]", bare) or _NO_SIGN.search(bare):
        return None
    if _LETTERS.search(re.sub(r"\\[A-Za-z]+", " ", bare)):
        return None
    if not bare.startswith("-"):
        return f"-{bare}"
    # -a - b loses its sign and is a - b: not the negative, but another value all the same.
    return bare[1:].strip()


def inner_sign_changed(gold: str) -> str | None:
    """With the last plus or minus between two terms turned round: x + 3 to x - 3. Not in an
    exponent: (-1)^{n-1} is (-1)^{n+1}."""
    masked = _EXPONENT.sub(_blank, _WORDS.sub(_blank, gold))
    signs = list(_INNER_SIGN.finditer(masked))
    if not signs:
        return None
    at = signs[-1].start(1)
    return gold[:at] + ("-" if gold[at] == "+" else "+") + gold[at + 1 :]


def brackets_flipped(gold: str) -> str | None:
    """Every end of an interval, or of a union of some, open for closed and closed for open. None
    for what may be a pair: without a square bracket or an infinite end."""
    bare = _bare(gold)
    parts = _UNION.split(bare)
    if not all(_INTERVAL.fullmatch(part) for part in parts):
        return None
    return bare.translate(_FLIPPED) if re.search(r"[\[\]∞]|\\infty", bare) else None


def pair_swapped(gold: str) -> str | None:
    """The first two entries of one tuple in each other's place. None where they are the same,
    and for what is an interval."""
    bare = _bare(gold)
    if not re.fullmatch(r"\([^()\[\]]+\)", bare) or re.search(r"[∞<>=|]|\\(?:infty|pm|mp)", bare):
        return None
    first, second, *others = [*_split(bare[1:-1]), ""]
    if not second or _squeezed(first) == _squeezed(second):
        return None
    return f"({', '.join([second.strip(), first.strip(), *filter(None, others)])})"


def unit_changed(gold: str) -> str | None:
    """The first unit in words another one of the same kind, dollars cents, degrees radians."""
    if match := _DOLLARS.search(gold):
        return f"{gold[: match.start()]}{match[1]}\\text{{ cents}}{gold[match.end() :]}"
    found = [m for m in _UNIT.finditer(gold) if re.search(r"\d", gold[: m.start()])]
    if not found or not _in_words(gold, found[0].start()):
        return None
    start, end = found[0].span()
    return gold[:start] + _OTHER_UNITS[gold[start:end]] + gold[end:]


def degree_dropped(gold: str) -> str | None:
    r"""\sin 20^\circ to \sin 20, which is of 20 radians. A degree that no function reads is a unit,
    and may be left out."""
    changed = _DEGREE.sub(lambda match: match[1], gold)
    return None if changed == gold else changed


def answer_of_another(golds: Sequence[str], index: int) -> str | None:
    """The next reference in the data that is not the same text or the same plain number, with or
    without "x ="; None where the next 20 all are."""
    mine = golds[index]
    for step in range(1, min(_LOOK_AHEAD, len(golds) - 1) + 1):
        other = golds[(index + step) % len(golds)]
        if _squeezed(other) != _squeezed(mine) and not _same_number(mine, other):
            return other
    return None


MUTATIONS: dict[str, Callable[[str], str | None]] = {
    "off by one": off_by_one,
    "last digit changed": last_digit_changed,
    "sign flipped": sign_flipped,
    "inner sign changed": inner_sign_changed,
    "brackets flipped": brackets_flipped,
    "pair swapped": pair_swapped,
    "another unit": unit_changed,
    "degree dropped": degree_dropped,
}
ANOTHERS = "another row's answer"


def _change(gold: str, which: int, change: Callable[[str], str]) -> str | None:
    masked = _WORDS.sub(_blank, gold)
    found = [match for match in _NUMBER.finditer(masked) if match[0].isascii()]
    if not found or len(found[which][0]) > _LONGEST_NUMBER:
        return None
    start, end = found[which].span()
    return gold[:start] + change(gold[start:end]) + gold[end:]


def _bare(gold: str) -> str:
    """Without dollar signs around it, and without the commands that let brackets grow."""
    return re.sub(r"\\(?:left|right)(?![A-Za-z])", "", gold.strip().strip("$")).strip()


def _blank(match: re.Match[str]) -> str:
    return "\0" * len(match[0])


def _split(items: str) -> list[str]:
    """At the commas outside of braces."""
    parts, depth = [""], 0
    for character in items:
        depth += (character == "{") - (character == "}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def _in_words(gold: str, at: int) -> bool:
    """Whether a unit at this place is one: in \\text{} and its like, or a word behind a space."""
    words = any(match.start() < at < match.end() for match in _WORDS.finditer(gold))
    return words or re.match(r" [a-z]{2}", gold[at - 1 :]) is not None


def _squeezed(text: str) -> str:
    return re.sub(r"[\s$]|\\[ ,;!]", "", text).rpartition("=")[2]


def _same_number(one: str, other: str) -> bool:
    value = _number(one)
    return value is not None and value == _number(other)


def _number(text: str) -> Fraction | None:
    """A plain number or ratio; None for anything else."""
    text = _squeezed(text).replace(",", "")
    if len(text) > _LONGEST_NUMBER or not text.isascii():
        return None
    if match := _PLAIN.fullmatch(text):
        value = Fraction(match[2])
    elif match := _RATIO.fullmatch(text):
        above, below = int(match[2] or match[4]), int(match[3] or match[5])
        if below == 0:
            return None
        value = Fraction(above, below)
    else:
        return None
    return -value if match[1] else value
