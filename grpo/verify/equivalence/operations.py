r"""Operations that an answer names and leaves to do: integrals, functions of numbers, products of
complex numbers. `\log_2 8` is 3, and whoever writes it has not said so.
"""

import re
from collections import Counter
from functools import lru_cache

from grpo.verify.equivalence.lists import split_name
from grpo.verify.equivalence.moduli import read_residue
from grpo.verify.equivalence.numbers import read_number
from grpo.verify.equivalence.text import closing, cut

Operations = Counter[str]

# Of letters, too: a closed form is what is asked for.
_NAMED = re.compile(
    r"\\(?:i*int|oint|sum|prod|lim)(?![A-Za-z])|\\begin\{vmatrix\}|\\frac\s*\{d\}\s*\{d[a-z]\}"
)
_FUNCTION = re.compile(
    r"\\(?:(?P<trig>(?:sin|cos|tan)h?|cot|sec|csc|arc(?:sin|cos|tan))|(?P<log>log|ln|lg)"
    r"|(?P<other>gcd|lcm|max|min|[pb]?mod|det|arg|Re|Im))(?![A-Za-z])"
)
_STEP = re.compile(r"\\l(floor|ceil)(?![A-Za-z])(.*?)\\r(?:floor|ceil)")
_INDEX = re.compile(r"\s*[_^]\s*(\{|\\circ|-?\w)")
_END = re.compile(r"(?<=[\w)}])\s*[+\-=,;]|[)}\]]|\\(?:sin|cos|tan|log|ln)")
_VARIABLE = re.compile(
    r"(?<![\\A-Za-z])[A-DF-Za-df-z](?![A-Za-z])|\\(?!circ|pi|[dt]?frac|sqrt|begin|end|cdot|times)[a-z]+"
)
_ANGLE = (
    r"[\d.]+\s*\^\s*\{?\s*\\circ\s*\}?|[\d.]*\s*\\pi(?:\s*/\s*\d+)?"
    r"|\\frac\s*\{[\d.]*\s*\\pi\s*\}\s*\{\d+\}"
)
_LONE = re.compile(
    rf"-?\s*\\(?:sin|cos|tan|cot|sec|csc)\s*(?:(?:{_ANGLE})|\(\s*(?:{_ANGLE})\s*\))\s*"
)
_ASKED = re.compile(
    r"(?<![A-Za-z])(?:sin|cos|tan|cot|sec|csc|sines?|cosines?|(?:co)?tangents?|(?:co)?secants?)"
    r"(?![A-Za-z])",
    re.IGNORECASE,
)
_MEMBERS = re.compile(r"=|\\approx(?![A-Za-z])")
_COMMA = re.compile("[,;]")
_LEAST_DIGITS = 3

_I = re.compile(r"(?<![\\A-Za-z])i(?![A-Za-z])|\\sqrt\s*\{\s*-")
_LETTERS = re.compile(r"\\?[A-Za-z]+")
_CONSTANTS = frozenset(
    (*"ie", *re.findall(r"\S+", r"\exp \pi \frac \sqrt \cdot \times \div \cos \sin \circ"))
)
_EXPONENTIAL = re.compile(
    r"(?:(?<![\\A-Za-z])e\s*\^|\\exp(?![A-Za-z]))\s*(?:i|\{[^=]*?i|\([^=]*?i)"
)
_RAISED = re.compile(r"(?:(?<![\\A-Za-z])i|\))\s*\^\s*(?!\{?\s*\\circ)")
_INNER_SIGN = re.compile(r"(?<=[\w)}])\s*[+-]")
_CONJUGATE = re.compile(r"\||\\(?:overline|bar)")


def left_to_do(gold: str, answer: str, problem: str) -> bool:
    """Does the answer name an operation that could be carried out, and that the gold does not?

    A function of a number is one, except where the gold has one of its kind or is a decimal that
    it rounds to; a sine of an angle alone is a value, unless the problem speaks of any. Of
    `\\log_2 8 = 3` one member is enough.
    """
    allowed = _allowed(gold)
    is_asked = _ASKED.search(problem) is not None
    for item in cut(answer, _COMMA):
        members = cut(split_name(item)[1], _MEMBERS)
        if members and all(_exceeds(member, allowed, is_asked) for member in members):
            return True
    return False


@lru_cache(maxsize=4096)
def _allowed(gold: str) -> Operations:
    found = _operations(gold)
    decimal = read_number(gold)
    if decimal is not None and decimal.step is not None and decimal.digits >= _LEAST_DIGITS:
        found.update(trig=1, log=1)
    # Both are polar forms.
    found["trig"] += found["exponential"]
    found["exponential"] = max(found["exponential"], min(found["trig"], 1))
    if _I.search(gold):
        found["imaginary"], found["factor"] = 1, max(1, found["factor"])
    return found


def _exceeds(text: str, allowed: Operations, is_asked: bool) -> bool:
    found = _operations(text)
    if found["trig"] == 1 and not is_asked and _LONE.fullmatch(text):
        found["trig"] = 0
    complex_ = ("imaginary", "factor", "power", "exponential", "conjugate")
    return any(
        count > allowed[kind] if kind in complex_ else count and not allowed[kind]
        for kind, count in found.items()
    )


def _operations(text: str) -> Operations:
    """How many of each kind there are: commands by name, functions of numbers, what is done with
    complex numbers."""
    found = Counter(match[0] for match in _NAMED.finditer(text))
    for match in _FUNCTION.finditer(text):
        if match["other"] and match["other"].endswith("mod") and read_residue(text) is not None:
            continue
        if _VARIABLE.search(_argument(text[match.end() :])) is None:
            found[match["other"] or ("trig" if match["trig"] else "log")] += 1
    for match in _STEP.finditer(text):
        found[match[1]] += _VARIABLE.search(match[2]) is None
    if _I.search(text) and set(_LETTERS.findall(text)) <= _CONSTANTS:
        found["imaginary"] = 1
        found["factor"] = _sums(text)
        found["power"] = len(_RAISED.findall(text))
        found["exponential"] = len(_EXPONENTIAL.findall(text))
        found["conjugate"] = len(_CONJUGATE.findall(text))
    return found


def _argument(rest: str) -> str:
    """What a function is of, from behind its name, with its index and power."""
    at = 0
    while (index := _INDEX.match(rest, at)) is not None:
        at = closing(rest, index.start(1)) + 1 if index[1] == "{" else index.end()
        if at == 0:
            return rest
    start = at + len(rest[at:]) - len(rest[at:].lstrip())
    if rest[start : start + 1] in ("(", "{"):
        end = closing(rest, start)
        return rest if end < 0 else rest[: end + 1]
    end = _END.search(rest, start)
    return rest if end is None else rest[: end.start()]


def _sums(text: str) -> int:
    """How many brackets and parts of fractions hold a sum with the imaginary unit."""
    count = 0
    for match in re.finditer(r"[({]", text):
        inside = text[match.start() + 1 : closing(text, match.start())]
        count += _I.search(inside) is not None and _INNER_SIGN.search(inside) is not None
    return count
