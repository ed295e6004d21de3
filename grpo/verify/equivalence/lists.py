"""Several values: labels, order, either sign."""

import re
from collections.abc import Sequence
from itertools import product

from grpo.verify.equivalence.numbers import read_number
from grpo.verify.equivalence.text import Same, cut, items, outside, squeeze, trim, unwrap
from grpo.verify.equivalence.units import split_unit
from grpo.verify.equivalence.words import plain

_LONGEST_LIST = 60
_EQUALS = re.compile(r"(?<![<>!:\\])=(?!=)")
_SYMBOL = (
    r"(?:[f-hF-H]\s*\^\s*(?:\{\s*-1\s*\}|-1)(?=\s*\()|\\?[A-Za-z]+|\|[A-Za-z]{1,3}\|"
    r"|\\(?:text|mathbb|mathcal)\{[^{}]*\})"
    r"(?:_(?:\{[^{}]*\}|\w))?'*(?:\([A-Za-z0-9,\s+-]{1,12}\))?"
)
_NAME = re.compile(
    rf"(?:\\(?:angle|triangle|overline|widehat)\s*)?{_SYMBOL}(?:\s*(?:[:/+]|\\cdot|)\s*{_SYMBOL}){{0,3}}"
    rf"|\\frac\{{{_SYMBOL}\}}\{{{_SYMBOL}\}}"
)
_TUPLE = re.compile(rf"\(\s*{_SYMBOL}(?:\s*,\s*{_SYMBOL})+\s*\)")
_IN = re.compile(r"\\(?:in|approx)(?![A-Za-z])")
_ALPHABETS = ("abcdefgh", "kmn", "pqr", "uvw", "xyz")
_EXTREMES = (
    frozenset(("min", "minimum", "smallest", "least", "minimal")),
    frozenset(("max", "maximum", "largest", "greatest", "maximal")),
)
_EXTREME = re.compile(
    r"(?:the\s+)?([a-z]+)(?:\s+(?:value|number)(?:\s+of\s+[a-z])?)?\s*(?:=|:|is)\s*(.+)", re.I
)
_NUMBERED = re.compile(
    r"(?:(?<=^)|(?<=,)|(?<=;))\s*(?:sequence|case|solution|root|pair|set|part)\s*\d\s*:\s*", re.I
)
_AND = re.compile(r"(?<![A-Za-z])and(?![A-Za-z])")
_MORE_THAN_ONE = re.compile(r"[,;]|(?<![A-Za-z])(?:and|or)(?![A-Za-z])|(?<![\d^{])\d")
_SIGN = re.compile(r"\\(pm|mp)(?![A-Za-z])")


def split_name(text: str) -> tuple[str, str]:
    """`x = 5` -> ("x", "5"), `x \\in S` -> ("x", "S"); "" for the name where there is none."""
    for pattern in (_EQUALS, _IN):
        found = outside(text, pattern)
        if found:
            name = text[: found[0].start()].strip()
            rest = trim(text[found[0].end() :])
            if rest and (_NAME.fullmatch(name) or _TUPLE.fullmatch(name)):
                return squeeze(name), rest
    return "", text


def same_name(gold: str, answer: str) -> bool:
    """Equal, or the same letter with and without an index or arguments: `m` and `m_{max}`."""
    if gold == answer or not (gold and answer):
        return True
    if any(gold.count(mark) != answer.count(mark) for mark in "^'"):
        return False  # f, its inverse and its derivative
    heads = [re.match(r"\\?[A-Za-z]+", name) for name in (gold, answer)]
    return (
        heads[0] is not None
        and heads[1] is not None
        and heads[0][0] == heads[1][0]
        and min(len(gold), len(answer)) == len(heads[0][0])
    )


def name(gold: str, answer: str, same: Same) -> bool | None:
    """One named value against the bare one: `x = 5` and `5`; two names must be the same."""
    (left, gold_value), (right, answer_value) = split_name(gold), split_name(answer)
    if not left and not right:
        return None
    if not same_name(left, right) or _several(gold_value) or _several(answer_value):
        return None
    return same(gold_value, answer_value) or None


def _several(text: str) -> bool:
    return any(len(outside(text, pattern)) > 0 for pattern in (_EQUALS,))


def _values(text: str) -> list[tuple[str, list[tuple[str, str]]]]:
    """Readings of a text as a list: the bracket around it, and (name, value) of every item."""
    readings = []
    for parts in items(text):
        if not parts:
            continue
        bracket = ""
        head, rest = split_name(text)
        if len(parts) == 1 or (head.startswith("(") and unwrap(rest)[0]):
            bracket, inside = unwrap(rest if head else text)
            for inner in items(inside) if bracket else [parts]:
                names = items(head[1:-1])[0] if head.startswith("(") else []
                if names and len(names) == len(inner):
                    named = list(zip(map(squeeze, names), inner, strict=True))
                else:
                    named = [split_name(part) for part in inner]
                readings.append((bracket, named))
            continue
        named = [split_name(part) for part in parts]
        # In `x = 1, 2` and `n = 1, 2 and 3` the name is that of all.
        if named[0][0] and not any(other for other, _ in named[1:]):
            named = [(named[0][0], value) for _, value in named]
        readings.append((bracket, named))
    return readings


def _is_number(text: str) -> bool:
    """One number with or without its unit: `58,500 plates`."""
    number = split_unit(text)[0]
    return read_number(number) is not None and _MORE_THAN_ONE.search(text, len(number)) is None


def values(gold: str, answer: str, same: Same) -> bool | None:
    """Lists item by item. Unordered unless one side is in parentheses or names its values
    differently from the other; every item must be met, and no item left over."""
    if _is_number(gold) and _is_number(answer):
        return None
    applies = False
    for (left, golds), (right, answers) in product(_values(gold), _values(answer)):
        if max(len(golds), len(answers)) < 2:
            continue
        applies = True
        if len(answers) > len(golds) and "(" not in (left, right):
            answers = _once(answers)
        if len(golds) != len(answers) or len(golds) > _LONGEST_LIST:
            continue
        if "(" in (left, right) and r"\{" in (left, right):
            continue
        if len(golds) == 2 and {left, right} == {"(", "["}:
            continue  # an interval with its ends, and without
        if _same_items(golds, answers, "(" in (left, right) or "[" in (left, right), same):
            return True
    return False if applies else None


def _same_items(
    golds: Sequence[tuple[str, str]], answers: Sequence[tuple[str, str]], ordered: bool, same: Same
) -> bool:
    gold_names, answer_names = {n for n, _ in golds}, {n for n, _ in answers}
    if gold_names == answer_names and len(gold_names) == len(golds):
        by_name = dict(answers)
        return all(same(value, by_name[label]) for label, value in golds)
    distinct = max(len(gold_names), len(answer_names)) > 1
    if distinct and "" not in gold_names | answer_names:
        return False
    if not distinct and not same_name(*gold_names, *answer_names):
        # Two letters for one unknown are two unknowns, but f(x) = and f(t) = are not.
        golds = [("", f"{label} = {value}") for label, value in golds]
        answers = [("", f"{label} = {value}") for label, value in answers]
    if ordered or distinct:
        left, right = _in_order(golds), _in_order(answers)
        return all(same(g, a) for g, a in zip(left, right, strict=True))
    return _match([v for _, v in golds], [v for _, v in answers], same)


def _once(named: Sequence[tuple[str, str]]) -> Sequence[tuple[str, str]]:
    """A set does not change where one of its members is written twice."""
    return list({(label, squeeze(value)): (label, value) for label, value in named}.values())


def _in_order(named: Sequence[tuple[str, str]]) -> list[str]:
    """By name where the names are a run of letters whose order everybody knows, else as written:
    `y = 2, x = 1` is (1, 2)."""
    names = [label for label, _ in named]
    known = any(set(names) <= set(alphabet) for alphabet in _ALPHABETS)
    pairs = sorted(named) if known and len(set(names)) == len(names) else named
    return [value for _, value in pairs]


def _match(golds: list[str], answers: list[str], same: Same) -> bool:
    left = list(answers)
    for gold in golds:
        squeezed = squeeze(gold)
        found = next((a for a in left if squeeze(a) == squeezed), None)
        if found is None:
            found = next((a for a in left if same(gold, a)), None)
        if found is None:
            return False
        left.remove(found)
    return True


def plus_minus(gold: str, answer: str, same: Same) -> bool | None:
    """`a \\pm b` is two values, a + b and a - b; two signs in one value go together."""
    texts = [_both_signs(text) for text in (gold, answer)]
    if texts == [gold, answer]:
        return None
    return same(texts[0], texts[1])


def _both_signs(text: str) -> str:
    if _SIGN.search(text) is None:
        return text
    head, rest = split_name(text)
    bracket, inside = unwrap(rest if unwrap(rest)[0] else text)
    if bracket in ("(", "["):
        return text
    parts = []
    for part in items(inside)[0]:
        if _SIGN.search(part) is None:
            parts.append(part)
            continue
        label, value = split_name(part)
        for upper in "+-":
            other = "-" if upper == "+" else "+"
            signs = {"pm": upper, "mp": other}
            signed = _SIGN.sub(lambda match, signs=signs: signs[match[1]], value).lstrip("+ ")
            parts.append(f"{label} = {signed}" if label else signed)
    listed = ", ".join(parts)
    return f"{head} = {listed}" if bracket and head else listed


def ordering(gold: str, answer: str, same: Same) -> bool | None:
    """A chain of inequalities between names, against the names in that order: `b < a < c`."""
    for chain, other in ((gold, answer), (answer, gold)):
        parts = cut(chain, re.compile("<|>"))
        if len(parts) > 2 and not ("<" in chain and ">" in chain):
            listed = items(other)[0]
            if len(listed) == len(parts) and all(re.fullmatch(r"\\?[A-Za-z]\w*", p) for p in parts):
                return listed == parts
    return None


def extremes(gold: str, answer: str, same: Same) -> bool | None:
    """`Maximum: 3, Minimum: 1` for the numbers `1, 3`, in whichever order these are."""
    for labelled, bare in ((gold, answer), (answer, gold)):
        named = [_EXTREME.fullmatch(part) for part in items(plain(labelled))[0]]
        numbers = [read_number(part) for part in items(unwrap(bare)[1])[0]]
        if len(named) != 2 or len(numbers) != 2:
            continue
        found = {
            at: match[2]
            for match in named
            for at, words in enumerate(_EXTREMES)
            if match is not None and match[1].lower() in words
        }
        values = sorted(number.worth for number in numbers if number is not None)
        if len(found) == len(values) == 2:
            said = [read_number(found[at]) for at in (0, 1)]
            return [number.worth for number in said if number is not None] == values
    return None


def numbered(gold: str, answer: str, same: Same) -> bool | None:
    """`Case 1: x = 2, Case 2: x = 5`: what only counts the items is left out."""
    texts = [_without_numbers(text) for text in (gold, answer)]
    return same(texts[0], texts[1]) if texts != [gold, answer] else None


def _without_numbers(text: str) -> str:
    listed = _AND.sub(",", plain(text))
    bare = _NUMBERED.sub(" ", listed)
    return trim(bare) if bare != listed else text
