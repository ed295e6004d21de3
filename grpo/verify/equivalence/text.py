"""Answers as text: their parts, and what counts as one word of a formula."""

import re
from collections.abc import Callable

# Whether an answer says the same as a gold; rules get one for the parts that they cut out.
Same = Callable[[str, str], bool]

FUNCTIONS = (
    "sinh?|cosh?|tanh?|cot|sec|csc|arcsin|arccos|arctan|ln|lg|log|exp|max|min|gcd|lcm|mod|det|sgn"
)
# A word of functions and their letters: sin, sinx, sinxcosx; not logs, minutes, tangerines.
FUNCTION = re.compile(rf"(?:(?>{FUNCTIONS})[A-RT-Za-rt-z]?)+")
FUNCTION_OF = re.compile(rf"\\(?:{FUNCTIONS})(?![A-Za-z])")
# A letter that is no part of a word or a command.
LETTER = re.compile(r"(?<![\\A-Za-z])[A-Za-z](?![A-Za-z])")
LONGEST_PROBLEM = 20_000  # characters of a problem that are looked at
_FEET = re.compile(r"[+-]?\d[\d.,]*'+")
_OPENERS, _CLOSERS = "([{", ")]}"
_SEPARATOR = re.compile(
    r"[,;]\s*(?:\\text\{\s*(?:and|or)\s*\}|(?:and|or)(?![A-Za-z]))?"
    r"|\\text\{\s*,?\s*(?:and|or)\s*\}|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])"
)
_THOUSANDS = re.compile(r"(?<![\d.])\d{1,3}(?:,\d{3})+(?!\d)")


def trim(text: str) -> str:
    """Without punctuation at the ends, and without braces around the whole."""
    while True:
        shorter = text.strip(' \t\n"`*').rstrip(".,;:").lstrip(",;:").strip()
        # Quotes, feet and minutes; the prime of a letter has no partner.
        if text.lstrip().startswith(("'", "`")) or _FEET.fullmatch(shorter):
            shorter = shorter.strip("'")
        if shorter.startswith("{") and closing(shorter, 0) == len(shorter) - 1:
            shorter = shorter[1:-1]
        if shorter == text:
            return text
        text = shorter


def squeeze(text: str) -> str:
    """For comparing texts: no text commands, no braces around one character, and a space only
    where it parts two words."""
    text = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", text)
    text = re.sub(r"([_^])\{(\w)\}(?!\w)", r"\1\2", text)
    return re.sub(r"\s+(?!\w)|(?<!\w)\s+", "", text).strip().rstrip(".")


def closing(text: str, start: int) -> int:
    """Where the bracket that opens at `start` closes, -1 where it does not. The three kinds count
    as one: half-open intervals mix them."""
    depth = 0
    for position in range(start, len(text)):
        if text[position] in _OPENERS:
            depth += 1
        elif text[position] in _CLOSERS:
            depth -= 1
            if depth == 0:
                return position
    return -1


def outside(text: str, pattern: re.Pattern[str]) -> list[re.Match[str]]:
    """Matches that begin outside of all brackets."""
    depths, depth = [], 0
    for character in text:
        if character in _CLOSERS:
            depth -= 1
        depths.append(depth)
        if character in _OPENERS:
            depth += 1
    return [match for match in pattern.finditer(text) if depths[match.start()] <= 0]


def cut(text: str, pattern: re.Pattern[str]) -> list[str]:
    """The pieces between the matches that lie outside of all brackets; empty ones left out."""
    pieces, start = [], 0
    for match in outside(text, pattern):
        pieces.append(text[start : match.start()])
        start = match.end()
    pieces.append(text[start:])
    return [piece for piece in (trim(piece) for piece in pieces) if piece]


def items(text: str) -> list[list[str]]:
    """What commas, semicolons, "and" and "or" part: two readings where a comma may as well stand
    between thousands (`1,000, 2,000`), else one."""
    readings = [cut(text, _SEPARATOR)]
    if _THOUSANDS.search(text):
        joined = _THOUSANDS.sub(lambda match: match[0].replace(",", "{,}"), text)
        readings.append(cut(joined, _SEPARATOR))
    return readings


def unwrap(text: str) -> tuple[str, str]:
    """The kind of bracket around the whole, "" for none, and what it holds."""
    for opener, closer in (("(", ")"), ("[", "]"), (r"\{", r"\}")):
        if text.startswith(opener) and text.endswith(closer):
            start = len(opener) - 1
            if closing(text, start) == len(text) - 1:
                return opener, trim(text[len(opener) : -len(closer)])
    return "", text
