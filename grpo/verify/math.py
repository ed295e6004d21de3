"""Mathematical equivalence, judged by math-verify and by the rules of grpo.verify.equivalence."""

import logging
from functools import lru_cache
from typing import Any

import math_verify

from grpo.types import Verdict
from grpo.verify.answers import (
    PARSED_CAP,
    Marked,
    after_thinking,
    final_answer,
    fold,
    stated,
    without_clause,
)
from grpo.verify.answers import (
    marked as marked_in,
)
from grpo.verify.equivalence import Options, judge, refusal
from grpo.verify.equivalence.guards import too_large
from grpo.verify.equivalence.numbers import read_number
from grpo.verify.equivalence.spelling import tidy
from grpo.verify.equivalence.text import squeeze
from grpo.verify.registry import VERIFIERS

# math-verify warns that its alarm is off. The alarm works in a main thread only and does not
# interrupt long integer arithmetic; the pool's deadline does both.
logging.getLogger("math_verify").setLevel(logging.ERROR)

# math-verify searches prose with large regular expressions.
_PROSE_TAIL_CHARS = 5_000

Parsed = list[Any]  # sympy expressions, then the text they were read from


@VERIFIERS.register("math")
def math(
    response: str,
    answer: str,
    *,
    problem: str = "",
    truncated: bool = False,
    thinking: bool = False,
    marked: Marked = "required",
    mark: str = "",
    evaluated: bool = True,
    original: bool = True,
    float_rounding: int = 6,
    strict: bool = True,
) -> Verdict:
    """Is the answer that the response marks mathematically equal to the reference?

    grpo/verify/answers.py says what a mark is. `marked`: with "preferred" prose counts where no
    mark is, "the answer is 5" or else the last expression that math-verify recognises. `mark`:
    begins the line of the answer, beside "Answer:". `evaluated`: `59+11` is no answer where 70 is
    wanted. `original`: neither is a formula of the problem, unless the reference is written so.
    `float_rounding`: decimals that must agree. `strict`: sets differ from tuples and the names of
    variables matter.

    The reason of a right answer names the rule that accepted it, "correct" alone stands for plain
    equality; docs/verifiers.md lists the rules. May run for minutes on hostile input: call it
    through the pool.
    """
    options = Options(float_rounding, strict, evaluated, original)
    given = final_answer(response, truncated=truncated, thinking=thinking, mark=mark)
    if given is not None:
        return _judge(answer, given.text, given.mark == "line", problem, options)
    if marked == "required":
        return Verdict(0.0, "", "no answer: none is marked")
    spoken = after_thinking(response, thinking=thinking) or ""
    said = stated(spoken)
    if said:
        return _judge(answer, said, True, problem, options)
    return _judge_prose(spoken, answer, problem, options)


def _judge(answer: str, given: str, is_line: bool, problem: str, options: Options) -> Verdict:
    parsed = given[:PARSED_CAP]
    if not given:
        return Verdict(0.0, parsed, "no answer")
    if fold(given) == fold(answer):
        return Verdict(1.0, parsed, "correct")
    gold = _gold(answer)
    if not squeeze(tidy(gold)):
        return Verdict(0.0, parsed, "gold does not parse")
    verdict = _verdict(gold, given, problem, options)
    shorter = without_clause(given) if is_line and not verdict.reward else given
    return verdict if shorter == given else _verdict(gold, shorter, problem, options)


def _verdict(gold: str, given: str, problem: str, options: Options) -> Verdict:
    reason = judge(gold, given, options, problem) or "wrong"
    return Verdict(float(reason.startswith("correct")), given[:PARSED_CAP], reason)


@lru_cache(maxsize=4096)
def _gold(answer: str) -> str:
    """A reference may be a whole solution that marks its answer."""
    whole = "\\boxed" in answer or "nswer" in answer
    given = marked_in(answer, loose=True) if whole else None
    return (given.text if given is not None else "") or answer


def _judge_prose(response: str, answer: str, problem: str, options: Options) -> Verdict:
    """A response that marks no answer: math-verify alone, plain numbers read by us."""
    if too_large(response[-_PROSE_TAIL_CHARS:]):
        return Verdict(0.0, "", "wrong: too large")
    gold = _parse_gold(answer)
    if not gold:
        return Verdict(0.0, "", "gold does not parse")
    target = _parse_prose(response)
    if not target:
        return Verdict(0.0, "", "no answer")
    parsed = _text(target)[:PARSED_CAP]
    rounding, strict = options.float_rounding, options.strict
    if math_verify.verify(
        gold, target, float_rounding=rounding, strict=strict, timeout_seconds=None
    ):
        reason = refusal(tidy(_gold(answer)), tidy(parsed), options, problem) or "correct"
        return Verdict(float(reason == "correct"), parsed, reason)
    if read_number(tidy(parsed)) is not None:
        return _verdict(_gold(answer), parsed, problem, options)
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
