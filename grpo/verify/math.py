"""Mathematical equivalence, judged by math-verify and by the rules of grpo.verify.equivalence."""

import logging
from functools import lru_cache
from typing import Any

import math_verify

from grpo.types import Verdict
from grpo.verify.equivalence import Options, judge
from grpo.verify.equivalence.marks import marked
from grpo.verify.equivalence.numbers import read_number
from grpo.verify.equivalence.text import squeeze, tidy
from grpo.verify.exact import PARSED_CAP, fold
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

    Where there is a \\boxed{}, the last one is judged, with those that "and", "or" or a comma join
    to it; else what follows the last "Answer:"; else the last expression that math-verify
    recognises in the text. `float_rounding`: decimals that must agree. `strict`: sets differ from
    tuples and the names of variables matter. The reason of a right answer names the rule that
    accepted it, "correct" alone stands for plain equality; docs/verifiers.md lists the rules. May
    run for minutes on hostile input: call it through the pool.
    """
    response = response[-_TAIL_CHARS:]
    given = marked(response)
    if given is None:
        return _judge_prose(response, answer, float_rounding, strict)
    parsed = given[:PARSED_CAP]
    if not given:
        return Verdict(0.0, parsed, "no answer")
    if fold(given) == fold(answer):
        return Verdict(1.0, parsed, "correct")
    gold = _gold(answer)
    if not squeeze(tidy(gold)):
        return Verdict(0.0, parsed, "gold does not parse")
    return _verdict(gold, given, Options(float_rounding, strict))


def _verdict(gold: str, given: str, options: Options) -> Verdict:
    reason = judge(gold, given, options) or "wrong"
    return Verdict(float(reason.startswith("correct")), given[:PARSED_CAP], reason)


@lru_cache(maxsize=4096)
def _gold(answer: str) -> str:
    """A reference may be a whole solution that marks its answer."""
    whole = "\\boxed" in answer or "nswer" in answer
    return (marked(answer, loose=True) or answer) if whole else answer


def _judge_prose(response: str, answer: str, float_rounding: int, strict: bool) -> Verdict:
    """A response that marks no answer: math-verify alone, plain numbers read by us."""
    gold = _parse_gold(answer)
    if not gold:
        return Verdict(0.0, "", "gold does not parse")
    target = _parse_prose(response)
    if not target:
        return Verdict(0.0, "", "no answer")
    parsed = _text(target)[:PARSED_CAP]
    if math_verify.verify(
        gold, target, float_rounding=float_rounding, strict=strict, timeout_seconds=None
    ):
        return Verdict(1.0, parsed, "correct")
    if read_number(tidy(parsed)) is not None:
        return _verdict(_gold(answer), parsed, Options(float_rounding, strict))
    return Verdict(0.0, parsed, "wrong")


@lru_cache(maxsize=4096)
def _parse_gold(answer: str) -> Parsed:
    """A reference that is an expression on its own has no math delimiters for math-verify."""
    text = answer.replace("\\$", "").strip().rstrip(".").strip()
    if not text or any(mark in text for mark in ("\\boxed", "$", "\\(", "\\[")):
        return _parse_prose(text) if text else []
    return _parse_prose(f"\\boxed{{{text}}}")


def _parse_prose(text: str) -> Parsed:
    return math_verify.parse(text[-_PROSE_TAIL_CHARS:], parsing_timeout=None)  # pyright: ignore


def _text(target: Parsed) -> str:
    """The text that an expression was read from; printing sympy itself may take for ever."""
    return next((part for part in target if isinstance(part, str)), "")
