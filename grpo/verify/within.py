"""Mathematical answers whose reference allows an error, as some of OlympiadBench's do."""

import json
from fractions import Fraction
from typing import Any

from grpo.types import Verdict
from grpo.verify.answers import Marked, final_answer
from grpo.verify.equivalence.numbers import read_number
from grpo.verify.equivalence.spelling import tidy
from grpo.verify.math import math
from grpo.verify.registry import VERIFIERS


@VERIFIERS.register("math_within")
def math_within(
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
    """Verifier `math`, and a number is right within the reference's tolerance, too.

    `answer` is JSON: {"value": the reference or a list of its parts, "tolerance": the absolute
    error that is allowed, such as "1e-1"}. Without a tolerance, and for a reference that is no such
    object, it is verifier `math`.
    """
    try:
        value, tolerance = _read(answer)
    except ValueError as error:
        return Verdict(0.0, "", f"gold does not parse: {error}")
    verdict = math(
        response,
        value,
        problem=problem,
        truncated=truncated,
        thinking=thinking,
        marked=marked,
        mark=mark,
        evaluated=evaluated,
        original=original,
        float_rounding=float_rounding,
        strict=strict,
    )
    if verdict.reward or tolerance is None:
        return verdict
    said = final_answer(response, truncated=truncated, thinking=thinking, mark=mark)
    gold, given = read_number(tidy(value)), read_number(tidy(said.text if said else ""))
    if gold is None or given is None or abs(gold.value - given.value) > tolerance:
        return verdict
    return Verdict(1.0, verdict.parsed, "correct: tolerance")


def _read(answer: str) -> tuple[str, Fraction | None]:
    """Raises ValueError, in words, where an object is not as described."""
    if not answer.lstrip().startswith("{"):
        return answer, None
    try:
        reference: Any = json.loads(answer)
    except json.JSONDecodeError:  # a set in LaTeX begins with a brace, too
        return answer, None
    if "value" not in reference:
        raise ValueError(f"expected a JSON object with a value, got {answer[:60]!r}")
    value, tolerance = reference["value"], reference.get("tolerance")
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text, None if tolerance is None else Fraction(str(tolerance))
