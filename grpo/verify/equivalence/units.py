"""What stands behind a value: a unit, a noun, or a word that changes what is said."""

import re
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from grpo.verify.equivalence.dimensions import Unit, is_part, read_unit, unit_named
from grpo.verify.equivalence.numbers import read_number
from grpo.verify.equivalence.text import FUNCTION, LONGEST_PROBLEM, trim

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
        almost nearly wrong false incorrect odd even prime if when unless bc ad
        too impossible invalid extraneous rejected undefined unknown doubled tripled halved double
        triple twice
        """,
    )
)
# Words that the answer may leave out and may add, but not turn into each other.
_OPPOSED = frozenset(
    re.findall(
        r"\w+",
        """
        ago now later earlier early late profit loss gain debt lost missing short
        """,
    )
)
# Words that may stand behind any number: what every count counts, and that it is the answer.
_COUNTS = frozenset(
    re.findall(
        r"\w+",
        """
        way arrangement possibility possibilitie combination permutation selection choice outcome
        method solution value number integer total altogether maximum minimum max min approximately
        approx about guess people person time different distinct possible such exactly only overall
        """,
    )
)
_NOT_NOUNS = LOADED | _OPPOSED | _COUNTS
_CHINESE_COUNTS = frozenset("个人种条只本次名位件张支枝棵辆头朵页方法情况不同的解组对")
_FILLERS = frozenset(("of", "the", "a", "an", "in", "unit", "each"))
_RAW_TAIL = re.compile(
    r"(?<=[\d})\s%])\s*((?:[A-Za-z]{2,}|(?<=\s)[A-Za-z])(?:[A-Za-z\s./^\d{}-]|\\cdot(?![A-Za-z]))*)$"
)
_CHINESE_TAIL = re.compile(r"(?<=[\d}])\s*([\u4e00-\u9fff]+)$")
_TEXT_TAIL = re.compile(r"\s*\\text\{.*$", re.DOTALL)
_SHORT_NOUN = re.compile(r"(.*\d)\s+([A-Za-z]{3})")
_ASKED = re.compile(r"\b[Hh]ow (?:many|much) (?:(more|fewer|less) )?([a-z]+)")
# Words of LOADED that a question may count.
_COUNTABLE = frozenset(
    (
        "more",
        "fewer",
        "less",
        "prime",
        "odd",
        "even",
        "negative",
        "base",
        "half",
        "double",
        "triple",
    )
)
_POWER = re.compile(r"\^\s*\{?\s*(-?[1-9])\s*\}?")
_WORDS = re.compile(r"[A-Za-z¢°µμΩÅ]+|[\u4e00-\u9fff]+|\^-?\d|\d+|/|[^\s\w.,]")
# Letters alone that are a unit behind a number, and not a variable.
_SINGLE = frozenset("msghl")


@lru_cache(maxsize=8192)
def split_unit(text: str) -> tuple[str, str]:
    """The value, and the words behind it with single spaces ("" where it ends in none), nouns in
    lower case: `5\\text{ cm}^2` -> ("5", "cm ^2"), `90^\\circ` -> ("90", "degree")."""
    match = _TEXT_TAIL.search(text)
    if match is not None and not text[: match.start()].endswith(("_", "{")):
        unit = match[0]
    else:
        match = _RAW_TAIL.search(text) or _CHINESE_TAIL.search(text)
        unit = match[1] if match is not None else ""
        if match is None or not _is_raw_unit(text[: match.start()], unit):
            match = re.search(r"\s*\^\s*\\circ\s*[CFK]?$", text)
            unit = match[0] if match is not None else ""
    core = trim(text[: match.start()]) if match is not None and unit else text
    if not core or core[-1] in "_^\\=<>+-*/":
        return text, ""
    return core, _fold(unit)


def _is_raw_unit(core: str, unit: str) -> bool:
    """Words outside of a text command may be variables: only known ones behind a number count, or
    a word of four letters."""
    words = re.findall(r"[A-Za-z]+|[\u4e00-\u9fff]+", unit.replace("\\cdot", ""))
    if FUNCTION.fullmatch(words[0]) and not all(map(_is_known, words)):  # 30 min, 30 sec are units
        return False
    if any(len(word) >= 4 or word[0] > "z" for word in words):
        return True
    return read_number(trim(core)) is not None and all(map(_is_known, words))


def _is_known(word: str) -> bool:
    if len(word) == 1:
        return word in _SINGLE
    return unit_named(word) is not None or word.lower() in LOADED or is_part(word)


def _fold(unit: str) -> str:
    unit = re.sub(r"\^\s*\{?\s*\\circ\s*\}?\s*([CF]?)\b", _temperature, unit)
    unit = _POWER.sub(r" ^\1 ", re.sub(r"\\text\{|\\cdot(?![A-Za-z])", " ", unit))
    unit = re.sub(r"(?<=[A-Za-z])'s?(?![A-Za-z])", "", re.sub(r"[{}()]", " ", unit))
    unit = re.sub(r"(?<=[a-zA-Z])\.\s*(?=[a-zA-Z]\b)", "", unit)  # a.m.
    unit = re.sub(r"(?<!\^)-", " ", unit.replace("\\", " "))
    words = _WORDS.findall(unit)
    kept = [word for i, word in enumerate(words) if not _is_filler(word, words[i + 1 :])]
    return " ".join(word if is_part(word) or unit_named(word) else _noun(word) for word in kept)


def _temperature(match: re.Match[str]) -> str:
    return {"C": " celsius ", "F": " fahrenheit "}.get(match[1], " degree ")


def _is_filler(word: str, rest: list[str]) -> bool:
    """ "in" is a word before another one, else inches."""
    if word.lower() == "in":
        return bool(rest) and not rest[0].startswith(("^", "/"))
    return word.lower() in _FILLERS or _singular(word.lower()) in _FILLERS


def _noun(word: str) -> str:
    return _singular(word.lower())


def _singular(word: str) -> str:
    return word[:-1] if len(word) > 2 and word.endswith("s") and not word.endswith("ss") else word


class Nouns(NamedTuple):
    """What an answer may be counted in, in the singular. `words`: those of the problem. `asked`:
    those of its last "how many ..."; only there do "more" and "dozen" belong to what is counted."""

    words: frozenset[str] = frozenset()
    asked: frozenset[str] = frozenset()


_NO_NOUNS = Nouns()


@lru_cache(maxsize=512)
def nouns_of(problem: str) -> Nouns:
    problem = problem[:LONGEST_PROBLEM]
    words = re.findall(r"[A-Za-z]{3,}|[\u4e00-\u9fff]", problem)
    questions = _ASKED.findall(problem)
    asked = {_noun(word) for word in questions[-1] if word} if questions else set[str]()
    told = {_noun(word) for word in words if word.lower() not in LOADED}
    return Nouns(
        frozenset(told) - LOADED - frozenset(_MANY),
        frozenset(word for word in asked if word not in LOADED or word in _COUNTABLE),
    )


def split_noun(text: str, nouns: Nouns) -> tuple[str, str]:
    """A number and a noun that is asked for, and short enough to be variables: `5 men`."""
    match = _SHORT_NOUN.fullmatch(text)
    if match is None or read_number(match[1]) is None or _noun(match[2]) not in nouns.asked:
        return text, ""
    return match[1], _noun(match[2])


def same_unit(
    gold: str, answer: str, exact: bool = False, nouns: Nouns = _NO_NOUNS
) -> Fraction | None:
    """By what the answer's value must be multiplied to be in the gold's unit, None where they are
    units of different things.

    A unit or noun may be left out. Behind a bare gold any unit may stand, and a noun of the
    problem (`nouns`) or of any count. `exact`: in a list, both sides must have the same noun.
    """
    gold_words, answer_words = gold.split(), answer.split()
    factor = Fraction(1)
    asked = frozenset[str]() if gold_words else nouns.asked
    for word in answer_words:
        factor *= 1 if word in asked else _MANY.get(word, 1)
    for word in gold_words:
        factor /= _MANY.get(word, 1)
    gold_words = [word for word in gold_words if word not in _MANY]
    answer_words = [word for word in answer_words if word not in _MANY]
    answer_words = [word for word in answer_words if word not in asked or word not in LOADED]
    if not answer_words or _spelled(gold_words) == _spelled(answer_words):
        return factor if _loaded(gold_words) == _loaded(answer_words) else None
    (left, golds), (right, answers) = _parted(gold_words), _parted(answer_words)
    if _loaded(golds) != _loaded(answers):
        return None
    turned = _OPPOSED.intersection(answers)
    if turned and _OPPOSED.intersection(golds) not in (frozenset(), turned):
        return None
    extra = _counted(answers) - _counted(golds)
    if extra and (exact or _counted(golds) or left is not None or not extra <= nouns.words | asked):
        return None
    if exact and _counted(golds) - _counted(answers):
        return None
    if left is None or right is None:
        other = right is not None and bool(_counted(golds))
        return None if other else factor
    scale = _scale(left, right)
    return None if scale is None else factor * scale


def _parted(words: list[str]) -> tuple[Unit | None, list[str]]:
    """The unit among the words, and the other words."""
    measured = [word for word in words if is_part(word) or unit_named(word) is not None]
    unit = read_unit(tuple(measured))
    if unit is None:
        return None, words
    return unit, [word for word in words if word not in measured]


def _spelled(words: list[str]) -> list[str]:
    return [_singular(word) if word.islower() else word for word in words]


def _counted(words: list[str]) -> set[str]:
    return {w for w in words if w not in _NOT_NOUNS and not set(w) <= _CHINESE_COUNTS}


def _loaded(words: list[str]) -> set[str]:
    return {w for w in words if w in LOADED or not (w[0].isalpha() or w[0] in "^¢/°")}


def _scale(gold: Unit, answer: Unit) -> Fraction | None:
    """None where they measure different things. "Square units" are those of any length."""
    if gold.dimensions == answer.dimensions:
        return answer.scale / gold.scale
    for plain, other in ((gold, answer), (answer, gold)):
        ((kind, power),) = plain.dimensions[:1]
        if kind == "unit" and other.dimensions == (("[length]", power),):
            return Fraction(1)
    return None
