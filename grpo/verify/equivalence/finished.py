"""Whether an answer was worked out: nothing is left to compute in it.

`59 + 11` equals 70: whoever is asked for the value and answers so has computed nothing.
"""

import re
from functools import lru_cache
from typing import NamedTuple

from grpo.verify.equivalence.lists import split_name
from grpo.verify.equivalence.numbers import read_number
from grpo.verify.equivalence.text import LETTER, cut, squeeze

_TOKENS = re.compile(
    r"(?P<number>\d{1,3}(?:(?:,|\{,\})\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d*)?|\.\d+)"
    r"|(?P<skip>\\(?:left|right|,|;|:|!|quad|qquad)|\^\s*\{?\s*\\circ\s*\}?|\\?%|\s+|[~`'\"])"
    r"|(?P<times>\\(?:times|cdot|div)(?![A-Za-z])|\*(?!\*)|/)"
    r"|(?P<power>\^|\*\*)|(?P<add>[+-])|(?P<open>[({\[])|(?P<close>[)}\]])|(?P<factorial>!)"
    r"|(?P<index>_)|(?P<words>\\(?:text|begin|end)\s*\{[^{}]*\}|(?<![\\A-Za-z])[A-Za-z]{2,})|(?P<name>\\[A-Za-z]+|[A-Za-z])"
    r"|(?P<between>.)",
    re.DOTALL,
)
_COMMA = re.compile("[,;]")
_EQUALS = re.compile("=")
_CONSTANTS = frozenset((r"\pi", r"\infty", r"\theta", r"\alpha", r"\beta", r"\gamma", r"\lambda"))
_FRACTION = re.compile(r"\\[dtc]?frac")
_DEEPEST = 60
_MOST_TOKENS = 2_000
_GREEK = re.compile(r"\\(?![dt]?frac|sqrt|pi(?![A-Za-z])|cdot|times|left|right)[A-Za-z]+")


class _Part(NamedTuple):
    """literal: a rational number that is written down, `3`, `\\frac{3}{4}` or `2^5`
    left: something in it could be computed: an operation between two literals"""

    literal: bool
    left: bool


@lru_cache(maxsize=8192)
def unfinished(text: str) -> bool:
    """Is an operation between numbers left to do in the text? `59+11`, `2 \\cdot 35`;
    not in fractions, roots, powers, factorials, or multiples of what is no number: `2\\sqrt{3}`.

    Of `30 + 6 = 36` the last member counts. Syntax that is not known is taken for a letter.
    """
    return any(_unfinished(split_name(item)[1]) for item in cut(text, _COMMA))


def is_unsolved(gold: str, answer: str) -> bool:
    """Is the answer an equation that leaves the unknown among other terms, `x - 59 = 11`, where the
    reference gives its value, `x = 70`?"""
    name, value = split_name(gold)
    if not name or LETTER.search(value) or _GREEK.search(value) or "=" not in answer:
        return False
    members = [squeeze(member) for item in cut(answer, _COMMA) for member in cut(item, _EQUALS)]
    return any(LETTER.search(member) for member in members) and squeeze(name) not in members


def _unfinished(item: str) -> bool:
    members = [member for member in cut(item, _EQUALS) if re.search(r"\d", member)]
    return bool(members) and all(_Reader(member).read().left for member in members)


class _Reader:
    """Recursive descent over the text; any text can be read."""

    def __init__(self, text: str):
        found = _TOKENS.finditer(text[: 4 * _MOST_TOKENS])
        tokens = [(match.lastgroup or "", match[0]) for match in found]
        self._tokens = [token for token in tokens if token[0] != "skip"][:_MOST_TOKENS]
        self._at = 0
        self._depth = 0

    def read(self) -> _Part:
        left = False
        while self._at < len(self._tokens):
            left |= self._sum().left
            self._at += 1  # what ends a sum here: a comma, a relation, words, a bracket too many
        return _Part(False, left)

    def _kind(self) -> str:
        return self._tokens[self._at][0] if self._at < len(self._tokens) else ""

    def _text(self) -> str:
        return self._tokens[self._at][1]

    def _sum(self) -> _Part:
        terms = [self._product()]
        while self._kind() == "add":
            terms.append(self._product())
        if len(terms) == 1:
            return terms[0]
        literals = sum(term.literal for term in terms)
        return _Part(literals == len(terms), literals > 1 or any(term.left for term in terms))

    def _product(self) -> _Part:
        while self._kind() == "add":  # a sign
            self._at += 1
        start = self._at
        factors = [self._power()]
        slashes = 0
        while self._kind() in ("times", "number", "open", "name"):
            if self._kind() == "times":
                slashes += self._text() == "/"
                self._at += 1
                while self._kind() == "add":
                    self._at += 1
            factors.append(self._power())
        if len(factors) == 1:
            return factors[0]
        written = self._written(start)
        if read_number(written) is not None:  # 1.5 \times 10^6, 2\frac{3}{8}, 17/12
            return _Part(True, False)
        literals = sum(factor.literal for factor in factors)
        left = any(factor.left for factor in factors)
        # In 3/x and 5/2 x one literal stands beside another only as a fraction.
        return _Part(literals == len(factors), left or literals - slashes > 1 or slashes > 1)

    def _power(self) -> _Part:
        base = self._atom()
        while self._kind() in ("factorial", "index", "power"):
            kind = self._kind()
            self._at += 1
            if kind == "factorial":
                continue
            start = self._at
            exponent = self._argument()
            if kind == "index":
                base = _Part(False, base.left)
                continue
            # 2^{1/2} is a root, and no number that is written down.
            written = [text for _, text in self._tokens[start : self._at]]
            root = any(text == "/" or "." in text or _FRACTION.match(text) for text in written)
            literal = base.literal and exponent.literal and not root
            base = _Part(literal, base.left or exponent.left)
        return base

    def _written(self, start: int) -> str:
        """The tokens since `start`; a space between two numbers, which are not one."""
        texts = [text for _, text in self._tokens[start : self._at]]
        return re.sub(r"(?<=\d) (?=\D)|(?<=\D) ", "", " ".join(texts))

    def _argument(self) -> _Part:
        """A group in braces, or one character's worth."""
        while self._kind() == "add":
            self._at += 1
        return self._atom()

    def _atom(self) -> _Part:
        kind = self._kind()
        if kind in ("", "between", "close", "words", "times", "add"):
            return _Part(False, False)
        text = self._text()
        self._at += 1
        if kind == "number":
            return _Part(True, False)
        if kind == "open":
            return self._group()
        if kind != "name" or len(text) == 1:
            return _Part(False, False)
        return self._command(text)

    def _command(self, name: str) -> _Part:
        if _FRACTION.fullmatch(name):
            top, bottom = self._argument(), self._argument()
            return _Part(top.literal and bottom.literal, top.left or bottom.left)
        left = False
        # What a function is of belongs to it: `3\log_2 8` has one factor that is a number.
        while self._kind() in ("index", "power"):
            self._at += 1
            left |= self._argument().left
        if name in _CONSTANTS:
            return _Part(False, left)
        if self._kind() == "number":
            return _Part(False, left | self._argument().left)
        while self._kind() == "open":
            left |= self._argument().left
        return _Part(False, left)

    def _group(self) -> _Part:
        self._depth += 1
        if self._depth > _DEEPEST:
            self._at = len(self._tokens)
            return _Part(False, False)
        parts = [self._sum()]
        while self._kind() not in ("", "close"):
            self._at += 1
            parts.append(self._sum())
        self._at += 1
        self._depth -= 1
        left = any(part.left for part in parts)
        return parts[0] if len(parts) == 1 else _Part(False, left)
