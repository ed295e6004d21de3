"""Definitions of functions, up to the letter that they use, and equations solved for y."""

import re
from typing import Any

import sympy

from grpo.verify.equivalence.expressions import agree, parse
from grpo.verify.equivalence.text import Same, outside, trim

_EQUALS = re.compile(r"(?<![<>!:\\])=(?!=)")
_HEAD = re.compile(r"([A-Za-z])\s*\(\s*([A-Za-z](?:\s*,\s*[A-Za-z])*)\s*\)")


def definition(gold: str, answer: str, same: Same) -> bool | None:
    """`f(x) = 2x` and `f(t) = 2t`. None where a side defines no function."""
    left, right = _read(gold), _read(answer)
    if left is None or right is None or left[0] != right[0] or len(left[1]) != len(right[1]):
        return None
    if left[1] == right[1]:
        return None
    bodies = [_renamed(variables, body) for _, variables, body in (left, right)]
    if bodies[0] is None or bodies[1] is None:
        return False
    return agree(bodies[0], bodies[1]) is True


def _read(text: str) -> tuple[str, list[str], str] | None:
    found = outside(text, _EQUALS)
    if len(found) != 1:
        return None
    head = _HEAD.fullmatch(text[: found[0].start()].strip())
    if head is None:
        return None
    variables = [variable.strip() for variable in head[2].split(",")]
    return head[1], variables, trim(text[found[0].end() :])


def _renamed(variables: list[str], body: str) -> Any:
    """The body with its variables numbered; None where it cannot be read."""
    expression = parse(body)
    symbols = [parse(variable) for variable in variables]
    if not isinstance(expression, sympy.Expr) or not all(
        isinstance(symbol, sympy.Symbol) for symbol in symbols
    ):
        return None
    numbered = [sympy.Symbol(f"argument_{i}", real=True) for i in range(len(symbols))]
    return expression.subs(list(zip(symbols, numbered, strict=True)), simultaneous=True)


def solved_for_y(gold: str, answer: str, same: Same) -> bool | None:
    """A line or curve that the gold gives as an equation of first degree in y, against y itself:
    `y + 1 = 2x` and `2x - 1`."""
    if len(outside(gold, _EQUALS)) != 1:
        return None
    body = trim(re.sub(r"^y\s*=", "", answer))
    if "=" in body or "y" in body:
        return None
    equation, right = parse(gold), parse(body)
    if not isinstance(equation, sympy.Eq) or not isinstance(right, sympy.Expr):
        return None
    y = parse("y")
    left, other = equation.lhs, equation.rhs
    if not isinstance(left, sympy.Expr) or not isinstance(other, sympy.Expr):
        return None
    difference: Any = left - other
    if y not in difference.free_symbols or difference.diff(y).free_symbols:
        return None
    solution = -difference.subs(y, 0) / difference.diff(y)
    return agree(solution, right) is True
