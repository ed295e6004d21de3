"""The numbers game: an expression must reach its target with every given number used once."""

import ast
import operator
import re
from collections.abc import Callable
from fractions import Fraction

from grpo.types import Verdict
from grpo.verify.answers import PARSED_CAP, final_answer, fold
from grpo.verify.registry import VERIFIERS

# Far more than a handful of numbers needs, and too little to nest Python's parser to death.
_LONGEST_CHARS = 200

_GOLD = re.compile(r"(-?[0-9]{1,18}) from ([0-9]{1,18}(?: [0-9]{1,18})*)")
_ALLOWED = re.compile(r"[0-9+\-*/() ]+")
_BINARY: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_UNARY: dict[type[ast.unaryop], Callable[[Fraction], Fraction]] = {
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}


@VERIFIERS.register("countdown")
def countdown(
    response: str, answer: str, *, truncated: bool = False, thinking: bool = False
) -> Verdict:
    """Does the expression that the response marks reach the target with the given numbers?

    `answer` is the target and the numbers, "98 from 44 19 35", and each number must be used
    exactly once, with + - * / and parentheses, as in TinyZero's task. What the response marks is
    judged (grpo/verify/answers.py). Values are exact fractions, and the text is parsed but never
    run.
    """
    given = final_answer(response, truncated=truncated, thinking=thinking)
    marked = fold(given.text) if given is not None else ""
    parsed = marked[:PARSED_CAP]
    if not marked:
        return Verdict(0.0, parsed, "no answer")
    gold = _GOLD.fullmatch(fold(answer))
    if gold is None:
        return Verdict(0.0, parsed, "gold does not parse")
    used: list[int] = []
    try:
        value = _value(_parse(marked), used)
    except (SyntaxError, ZeroDivisionError) as error:
        kind = "divides by zero" if isinstance(error, ZeroDivisionError) else "no such expression"
        return Verdict(0.0, parsed, f"wrong: {kind}")
    if sorted(used) != sorted(int(number) for number in gold[2].split(" ")):
        return Verdict(0.0, parsed, "wrong: other numbers")
    if value != int(gold[1]):
        return Verdict(0.0, parsed, "wrong")
    return Verdict(1.0, parsed, "correct")


def _parse(text: str) -> ast.expr:
    """Raises SyntaxError for what is too long, holds another character or is no expression."""
    if len(text) > _LONGEST_CHARS or not _ALLOWED.fullmatch(text):
        raise SyntaxError(text)
    return ast.parse(text, mode="eval").body


def _value(node: ast.expr, used: list[int]) -> Fraction:
    """The exact value; its numbers are added to `used`. Raises SyntaxError for any other operator
    or form (** and // are made of allowed characters, too), and ZeroDivisionError."""
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        used.append(node.value)
        return Fraction(node.value)
    if isinstance(node, ast.UnaryOp) and type(node.op) in _UNARY:
        return _UNARY[type(node.op)](_value(node.operand, used))
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        left, right = _value(node.left, used), _value(node.right, used)
        return _BINARY[type(node.op)](left, right)
    raise SyntaxError(ast.dump(node))
