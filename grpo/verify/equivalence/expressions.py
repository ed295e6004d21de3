"""Two expressions with nothing around them: sampled first, then given to math-verify."""

import importlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

import sympy
from latex2sympy2_extended.latex2sympy2 import (
    ConversionConfig,
    NormalizationConfig,
    latex2sympy,
    normalize_latex,
)
from math_verify import verify
from math_verify.grader import should_treat_as_complex
from sympy.functions.elementary.hyperbolic import HyperbolicFunction
from sympy.functions.elementary.trigonometric import (
    InverseTrigonometricFunction,
    TrigonometricFunction,
)

from grpo.verify.equivalence.numbers import close, read_number
from grpo.verify.equivalence.spoken import spelled_number
from grpo.verify.equivalence.text import FUNCTION, FUNCTION_OF
from grpo.verify.equivalence.words import plain

# sympy imports these when it first subtracts, simplifies or compares sets, 0.2 s in all. Imported
# here, they are there before the pool forks and cost no worker's first answers anything.
for _name in (
    "assumptions.wrapper",
    "physics.units",
    "tensor.tensor",
    "sets.setexpr",
    "sets.handlers.functions",
    "sets.handlers.issubset",
):
    importlib.import_module(f"sympy.{_name}")

# math-verify's own, without units: it takes every trailing "m", "c" or "more" for one.
_NORMALIZATION = NormalizationConfig(
    basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none"
)
# Letters that the parser takes for a constant or for a function of what follows.
_LETTER = re.compile(r"\\(?:(gamma|Gamma(?!\s*\())|Pi)(?![A-Za-z])")
_DEGREES = re.compile(r"(\d+(?:\.\d+)?)\s*\^\s*\{?\s*\\circ\s*\}?")
_WORD = re.compile(
    r"(?<![\\A-Za-z{_])[A-Za-z]{4,}|(?<![\\A-Za-z])(?:and|or|not|if|the|is)(?![a-z])"
)
_TEXT = re.compile(r"(?<!_)(?<!_\{)\\text\{")
_BASE = re.compile(r"(?<=\d)\s*_\s*(\{(?:[^{}]|\{[^{}]*\})*\}|\w)")
_POWER_OF_I = re.compile(r"(?<![\\A-Za-z])i\s*\^")
_EQUATION = re.compile(r"(?<![<>!:])=")

_DIGITS = 30
_DIFFER = sympy.Float("1e-9")
# f', x_1' and x'_1: a letter with an index or without.
_PRIMED = re.compile(
    r"(?<![\\A-Za-z])([A-Za-z])(?:_(?:\{([^{}]*)\}|(\w)))?('+)(?:_(?:\{([^{}]*)\}|(\w)))?"
)
_AGREE = sympy.Float("1e-20")
_NOTHING = sympy.Float("1e-60")
_POINTS_NEEDED = 6
_LARGEST_OPERATIONS = 400
_MOST_SYMBOLS = 4
# Inside and outside of (-1, 1) and of (0, 1), negative too, and none where a fraction is simple.
_NEAR = (
    *(3181, 6971, 1493, 8839, 4957, 617, 9511),
    *(-2971, -7433, 13931, 22787, 35081, 71993, -16747, -41011),
)
# Because |x - 2025| is 2025 - x up to 2025.
_FAR = (1234577, -3456793, 9345683, 31415927, -98765441, 104729111)
_DENOMINATOR = 9973
_PRECISE_BITS = 40  # of the 103 in 30 digits; far points may cancel more than that
_STEPS = (sympy.floor, sympy.ceiling)  # alike at any number of points, and different between them
_SAMPLED = (
    sympy.Add,
    sympy.Mul,
    sympy.Pow,
    sympy.Number,
    sympy.NumberSymbol,
    sympy.core.numbers.ImaginaryUnit,
    sympy.Symbol,
    sympy.exp,
    sympy.log,
    sympy.Abs,
    sympy.factorial,
    sympy.binomial,
    sympy.gamma,
    *_STEPS,
    TrigonometricFunction,
    InverseTrigonometricFunction,
    HyperbolicFunction,
)


@dataclass(frozen=True)
class Options:
    """As of math-verify's `verify`: decimals that must agree, and whether the names of variables
    and the order of sets matter. `evaluated`, `original`: whether an answer must have been worked
    out, and may not be a formula of the problem."""

    float_rounding: int = 6
    strict: bool = True
    evaluated: bool = True
    original: bool = True


def _in_radians(text: str) -> str:
    """`\\sin 30^\\circ` -> `\\sin (\\frac{30\\pi}{180})`: the parser drops the sign."""
    return _DEGREES.sub(r"(\\frac{\1\\pi}{180})", text) if FUNCTION_OF.search(text) else text


@lru_cache(maxsize=4096)
def parse(text: str, cased: bool = False) -> Any:
    """A sympy object, or None where there are words in the text, it is no expression or divides by
    zero. `cased`: `R` and `r` are two letters, which math-verify takes for one."""
    if not text or _TEXT.search(text) or any(_unknown(word) for word in _WORD.findall(text)):
        return None
    try:
        expression = latex2sympy(
            normalize_latex(_LETTER.sub(_own_letter, _unprimed(_in_radians(text))), _NORMALIZATION),
            is_real=not should_treat_as_complex(text),
            convert_degrees=False,
            normalization_config=None,
            conversion_config=ConversionConfig(lowercase_symbols=not cased),
        )
        # Two such are equal whatever else stands in them.
        is_undefined = isinstance(expression, sympy.Basic) and expression.has(sympy.zoo, sympy.nan)
    except Exception:  # a parser's own faults on text that is no mathematics: it cannot be read
        return None
    return None if is_undefined else expression


def _unprimed(text: str) -> str:
    """`f'` -> `f_{p}`: the parser drops primes, so that `f'` would be `f`."""

    def index(match: re.Match[str]) -> str:
        given = next((part for part in match.group(2, 3, 5, 6) if part), "")
        return f"{match[1]}_{{{given}{'p' * len(match[4])}}}"

    return _PRIMED.sub(index, text)


def _own_letter(match: re.Match[str]) -> str:
    return r"\tilde{\gamma}" if match[1] else r"\tilde{\pi}"


def _mixes_cases(text: str) -> bool:
    """Is there a letter, Latin or Greek, in upper and in lower case?"""
    names = set(re.findall(r"\\[A-Za-z]+|[A-Za-z]", text))
    bare = {name.removeprefix("\\") for name in names if len(name) != 2 or name[0] != "\\"}
    return any(name[0].isupper() and name[0].lower() + name[1:] in bare for name in bare)


def _unknown(word: str) -> bool:
    return FUNCTION.fullmatch(word) is None and word not in ("sqrt", "frac", "infty")


def same_expression(gold: str, answer: str, options: Options) -> bool:
    """A name in front of a value ("x =") must have been taken off: an equation is no value."""
    cased = _mixes_cases(gold) or _mixes_cases(answer)
    left = parse(gold, cased)
    right = parse(answer, cased) if left is not None else None
    if left is None or right is None:
        return False
    if _EQUATION.search(answer) and not _EQUATION.search(gold):
        return False
    if not same_bases(gold, answer):
        return False
    decimal = _same_decimal(gold, answer, options)
    if decimal is not None:
        return decimal
    left, right = _with_imaginary_unit(left, right, gold + answer)
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


def _with_imaginary_unit(left: Any, right: Any, texts: str) -> tuple[Any, Any]:
    """Of two constants; a letter `i` that is raised to a power may be a variable."""
    if _POWER_OF_I.search(texts) or not all(isinstance(side, sympy.Expr) for side in (left, right)):
        return left, right
    symbols = left.free_symbols | right.free_symbols
    if {symbol.name for symbol in symbols} != {"i"}:
        return left, right
    unit = dict.fromkeys(symbols, sympy.I)
    return left.subs(unit), right.subs(unit)


def same_bases(gold: str, answer: str) -> bool:
    """Are numbers written to the same bases, `101_2` and `101_{(2)}`? math-verify reads the
    digits alone. The answer may leave out the base, and not bring in one."""
    left, right = (_BASE.findall(text) for text in (gold, answer))
    if not right:
        return True
    return len(left) == len(right) and all(map(_same_base, left, right))


def _same_base(gold: str, answer: str) -> bool:
    left, right = (plain(text.removeprefix("{").removesuffix("}")) for text in (gold, answer))
    left, right = left.strip("() "), right.strip("() ")
    return left == right or spelled_number(left, right, str.__eq__) is True


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


@lru_cache(maxsize=4096)
def canonical(text: str) -> Any:
    """An expression with its terms in one order, None for what is none."""
    expression = parse(text)
    return expression.doit() if _can_sample(expression) else None


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
    real at the same ones. None: it takes more to tell (decimals, steps, sets, too few real points).
    """
    if not (_can_sample(left) and _can_sample(right)):
        return None
    symbols = sorted(left.free_symbols | right.free_symbols, key=str)
    if not symbols:
        return _agree_constants(left, right)
    if len(symbols) > _MOST_SYMBOLS:
        return None
    met, apart = 0, False
    for point in _points(symbols, is_far=not (_is_tower(left) or _is_tower(right))):
        values = _at(left, point), _at(right, point)
        real = [number is not None and bool(number.is_real) for number in values]
        apart = apart or real[0] != real[1]
        if not all(real) or any(number != 0 and number._prec < _PRECISE_BITS for number in values):
            continue
        difference, scale = abs(values[0] - values[1]), max(abs(values[0]), abs(values[1]))
        if difference > _DIFFER * scale and difference > _AGREE:
            return False
        if difference <= _AGREE * scale:
            met += 1
        else:
            apart = True
    uncertain = apart or any(side.has(sympy.Float, *_STEPS) for side in (left, right))
    return True if met >= _POINTS_NEEDED and not uncertain else None


def _points(symbols: list[Any], is_far: bool) -> Iterator[dict[Any, Any]]:
    numbers = (*_NEAR, *_FAR) if is_far else _NEAR
    for shift in range(len(numbers)):
        yield {
            symbol: sympy.Rational(numbers[(shift + 5 * i) % len(numbers)], _DENOMINATOR)
            for i, symbol in enumerate(symbols)
        }


def _is_tower(expression: Any) -> bool:
    """Does a variable stand in an exponent's exponent? At 10,000 that has too many digits."""
    powers = expression.atoms(sympy.Pow, sympy.exp)
    inner = (part for power in powers for part in power.exp.atoms(sympy.Pow, sympy.exp))
    return any(part.exp.free_symbols for part in inner)


def _agree_constants(left: Any, right: Any) -> bool | None:
    """By their difference, exactly where it is rational: 2^100 and 2^100 + 1 have 30 digits in
    common."""
    if left.has(sympy.Float) or right.has(sympy.Float):
        return None
    values = _at(left, {}), _at(right, {})
    known = all(value is not None for value in values)
    if known and abs(values[0] - values[1]) > _DIFFER * max(map(abs, values)):
        return False
    difference = (left - right).doit()
    if difference.is_Rational:
        return bool(difference == 0)
    number = _at(difference, {})
    if number is None:
        return None
    parts = [_vanishes(part) for part in number.as_real_imag()]
    if False in parts:
        return False
    return None if None in parts else True


def _vanishes(number: Any) -> bool | None:
    """None where that is not certain."""
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
    real = number.is_Atom or all(part.is_Atom for part in number.as_real_imag())
    return number if number.is_number and number.is_finite and real else None
