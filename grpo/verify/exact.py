"""The verifier that compares answers character by character."""

from grpo.types import Verdict
from grpo.verify.answers import (
    PARSED_CAP,
    Marked,
    after_thinking,
    final_answer,
    fold,
    last_line,
)
from grpo.verify.registry import VERIFIERS


@VERIFIERS.register("exact")
def exact(
    response: str,
    answer: str,
    *,
    truncated: bool = False,
    thinking: bool = False,
    marked: Marked = "required",
    mark: str = "",
) -> Verdict:
    """The answer that the response marks (grpo/verify/answers.py) must equal the reference up to
    white space. `marked`: with "preferred" the last line that is not empty counts where nothing is
    marked. `mark`: begins the line of the answer, beside "Answer:"."""
    given = final_answer(response, truncated=truncated, thinking=thinking, mark=mark)
    if given is None and marked == "required":
        return Verdict(0.0, "", "no answer: none is marked")
    spoken = after_thinking(response, thinking=thinking) or ""
    text = fold(given.text if given is not None else last_line(spoken))
    parsed = text[:PARSED_CAP]
    if not text:
        return Verdict(0.0, parsed, "no answer")
    return (
        Verdict(1.0, parsed, "correct") if text == fold(answer) else Verdict(0.0, parsed, "wrong")
    )
