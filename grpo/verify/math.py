"""Mathematical equivalence, judged by math-verify."""

import logging
from functools import lru_cache
from typing import Any

import math_verify

from grpo.types import Verdict
from grpo.verify.exact import PARSED_CAP, answer_line, fold, last_box
from grpo.verify.registry import VERIFIERS

# math-verify warns that its alarm is off. The alarm works in a main thread only and does not
# interrupt long integer arithmetic; the pool's deadline does both.
logging.getLogger("math_verify").setLevel(logging.ERROR)

# Only the end of an answer is judged.
_TAIL_CHARS = 50_000
# math-verify searches prose with large regular expressions.
_PROSE_TAIL_CHARS = 5_000

Parsed = list[Any]  # sympy expressions, then the text they were read from


@VERIFIERS.register("math")
def math(response: str, answer: str, *, float_rounding: int = 6, strict: bool = True) -> Verdict:
    """Is the answer that the response marks mathematically equal to the reference?

    Where there is a \\boxed{}, the last one is judged and nothing else; else what follows the last
    "Answer:"; else the last expression that math-verify recognises in the text.
    `float_rounding`: decimals that must agree. `strict`: sets differ from tuples and the names of
    variables matter. May run for minutes on hostile input: call it through the pool.
    """
    response = response[-_TAIL_CHARS:]
    boxed = last_box(response)
    marked = boxed if boxed is not None else answer_line(response)
    if marked == "":
        return Verdict(0.0, "", "no answer")
    if marked is not None and fold(marked) == fold(answer):
        return Verdict(1.0, marked[:PARSED_CAP], "correct")

    gold = _parse_gold(answer)
    if not gold:
        return Verdict(0.0, (marked or "")[:PARSED_CAP], "gold does not parse")
    target = _parse_prose(response) if marked is None else _parse_marked(marked)
    parsed = (marked or _text(target))[:PARSED_CAP]
    if not target:
        # A box that holds nothing readable is an answer, and a wrong one.
        return Verdict(0.0, parsed, "no answer" if marked is None else "wrong")
    equal = math_verify.verify(
        gold, target, float_rounding=float_rounding, strict=strict, timeout_seconds=None
    )
    return Verdict(1.0, parsed, "correct") if equal else Verdict(0.0, parsed, "wrong")


@lru_cache(maxsize=4096)
def _parse_gold(answer: str) -> Parsed:
    return _parse_prose(answer) if last_box(answer) else _parse_marked(answer)


def _parse_marked(text: str) -> Parsed:
    """An expression on its own, with or without math delimiters or a final full stop."""
    text = text.replace("\\$", "").strip().rstrip(".").strip()
    if not text:
        return []
    if "$" in text or "\\(" in text or "\\[" in text:
        return _parse_prose(text)
    return math_verify.parse(f"\\boxed{{{text}}}", parsing_timeout=None)  # pyright: ignore


def _parse_prose(text: str) -> Parsed:
    return math_verify.parse(text[-_PROSE_TAIL_CHARS:], parsing_timeout=None)  # pyright: ignore


def _text(target: Parsed) -> str:
    """The text that an expression was read from; printing sympy itself may take for ever."""
    return next((part for part in target if isinstance(part, str)), "")
