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
}
ANOTHERS = "another row's answer"


def _change(gold: str, which: int, change: Callable[[str], str]) -> str | None:
    masked = _WORDS.sub(lambda match: "\0" * len(match[0]), gold)
    found = [match for match in _NUMBER.finditer(masked) if match[0].isascii()]
    if not found or len(found[which][0]) > _LONGEST_NUMBER:
        return None
    start, end = found[which].span()
    return gold[:start] + change(gold[start:end]) + gold[end:]


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
