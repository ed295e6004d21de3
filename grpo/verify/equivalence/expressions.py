"""Two expressions with nothing around them: sampled first, then given to math-verify."""

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

import sympy
from latex2sympy2_extended.latex2sympy2 import NormalizationConfig, latex2sympy, normalize_latex
from math_verify import verify
from math_verify.grader import should_treat_as_complex
from sympy.functions.elementary.hyperbolic import HyperbolicFunction
from sympy.functions.elementary.trigonometric import (
    InverseTrigonometricFunction,
    TrigonometricFunction,
)

from grpo.verify.equivalence.numbers import close, read_number
from grpo.verify.equivalence.text import FUNCTION

# math-verify's own, without units: it takes every trailing "m", "c" or "more" for one.
_NORMALIZATION = NormalizationConfig(
    basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none"
)
_WORD = re.compile(
    r"(?<![\\A-Za-z{_])[A-Za-z]{4,}|(?<![\\A-Za-z])(?:and|or|not|if|the|is)(?![a-z])"
)
_TEXT = re.compile(r"(?<!_)(?<!_\{)\\text\{")
_EQUATION = re.compile(r"(?<![<>!:])=")

_DIGITS = 30
_DIFFER = sympy.Float("1e-9")
_AGREE = sympy.Float("1e-20")
_NOTHING = sympy.Float("1e-60")
_POINTS_NEEDED = 6
_LARGEST_OPERATIONS = 400
_MOST_SYMBOLS = 4
# Inside and outside of (-1, 1) and of (0, 1), negative too, and none where a fraction is simple.
_POINTS = [
    sympy.Rational(p, 9973)
    for p in (
        *(3181, 6971, 1493, 8839, 4957, 617, 9511),
        *(-2971, -7433, 13931, 22787, 35081, 71993, -16747, -41011),
    )
]
_SAMPLED = (
    sympy.Add,
    sympy.Mul,
    sympy.Pow,
    sympy.Number,
    sympy.NumberSymbol,
    sympy.Symbol,
    sympy.exp,
    sympy.log,
    sympy.Abs,
    sympy.floor,
    sympy.ceiling,
    TrigonometricFunction,
    InverseTrigonometricFunction,
    HyperbolicFunction,
)


@dataclass(frozen=True)
class Options:
    """As of math-verify's `verify`: decimals that must agree, and whether the names of variables
    and the order of sets matter."""

    float_rounding: int = 6
    strict: bool = True


@lru_cache(maxsize=4096)
def parse(text: str) -> Any:
    """A sympy object, or None where there are words in the text or it is no expression."""
    if not text or _TEXT.search(text) or any(_unknown(word) for word in _WORD.findall(text)):
        return None
    try:
        return latex2sympy(
            normalize_latex(text, _NORMALIZATION),
            is_real=not should_treat_as_complex(text),
            convert_degrees=False,
            normalization_config=None,
        )
    except Exception:  # a parser's own faults on text that is no mathematics: it cannot be read
        return None


def _unknown(word: str) -> bool:
    return FUNCTION.match(word) is None and word not in ("sqrt", "frac", "infty")


def same_expression(gold: str, answer: str, options: Options) -> bool:
    """A name in front of a value ("x =") must have been taken off: an equation is no value."""
    left = parse(gold)
    right = parse(answer) if left is not None else None
    if left is None or right is None:
        return False
    if _EQUATION.search(answer) and not _EQUATION.search(gold):
        return False
    decimal = _same_decimal(gold, answer, options)
    if decimal is not None:
        return decimal
    if options.strict:
        sampled = agree(left, right)
        if sampled is not None:
            return sampled
    return verify(
        [left],
        [right],
        float_rounding=options.float_rounding,
        strict=options.strict,
        timeout_seconds=None,
    )


def _same_decimal(gold: str, answer: str, options: Options) -> bool | None:
    """Of a decimal and a constant; None for anything else. math-verify rounds both and so takes
    every tiny number for 0."""
    numbers = read_number(gold), read_number(answer)
    if not any(number is not None and number.step is not None for number in numbers):
        return None
    sides = [
        number.worth if number is not None else value(text)
        for number, text in zip(numbers, (gold, answer), strict=True)
    ]
    if sides[0] is None or sides[1] is None:
        return None
    return close(sides[0], sides[1], options.float_rounding)


def value(text: str) -> Fraction | None:
    """What a constant is worth to 30 digits; None for what is no real constant."""
    expression = parse(text)
    if not _can_sample(expression) or expression.free_symbols:
        return None
    number = _at(expression, {})
    if number is None or not number.is_real:
        return None
    return Fraction(str(number)) if len(str(number)) < 400 else None


def agree(left: Any, right: Any) -> bool | None:
    """Whether two expressions have the same value wherever both are real, tried at a few points.

    False: at one point they differ. True: they agree to 20 digits at 6 points or more, and are
    real at the same ones. None: it takes more to tell (decimals, sets, too few real points).
    """
    if not (_can_sample(left) and _can_sample(right)):
        return None
    symbols = sorted(left.free_symbols | right.free_symbols, key=str)
    if not symbols:
        return _agree_constants(left, right)
    if len(symbols) > _MOST_SYMBOLS:
        return None
    met, apart = 0, False
    for shift in range(len(_POINTS)):
        point = {
            symbol: _POINTS[(shift + 5 * i) % len(_POINTS)] for i, symbol in enumerate(symbols)
        }
        values = _at(left, point), _at(right, point)
        real = [number is not None and bool(number.is_real) for number in values]
        apart = apart or real[0] != real[1]
        if not all(real):
            continue
        difference, scale = abs(values[0] - values[1]), max(abs(values[0]), abs(values[1]))
        if difference > _DIFFER * scale and difference > _AGREE:
            return False
        if difference <= _AGREE * max(scale, 1):
            met += 1
        else:
            apart = True
    if apart or left.has(sympy.Float) or right.has(sympy.Float):
        return None
    return True if met >= _POINTS_NEEDED else None


def _agree_constants(left: Any, right: Any) -> bool | None:
    """By their difference, exactly where it is rational: 2^100 and 2^100 + 1 have 30 digits in
    common."""
    if left.has(sympy.Float) or right.has(sympy.Float):
        return None
    values = _at(left, {}), _at(right, {})
    real = all(number is not None and number.is_real for number in values)
    if real and abs(values[0] - values[1]) > _DIFFER * max(map(abs, values)):
        return False
    difference = (left - right).doit()
    if difference.is_Rational:
        return bool(difference == 0)
    number = _at(difference, {})
    if number is None or not number.is_real:
        return None
    if number == 0 or number._prec <= 2:  # no digit of it is certain
        return True if abs(number) < _NOTHING else None
    return False if abs(number) > _NOTHING else None


def _can_sample(expression: Any) -> bool:
    if not isinstance(expression, sympy.Expr):
        return False
    nodes = sympy.preorder_traversal(expression)
    return all(
        count < _LARGEST_OPERATIONS and isinstance(node, _SAMPLED)
        for count, node in enumerate(nodes)
    )


def _at(expression: Any, point: dict[Any, Any]) -> Any:
    """The value at a point; None where there is none."""
    try:
        number = expression.evalf(_DIGITS, subs=point) if point else expression.evalf(_DIGITS)
    except (ArithmeticError, ValueError, TypeError, AttributeError, NotImplementedError):
        return None
    return number if number.is_number and number.is_finite and number.is_Atom else None
