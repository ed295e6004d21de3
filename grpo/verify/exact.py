"""Where a response marks its answer, and the verifier that compares it character by character."""

import re

from grpo.types import Verdict
from grpo.verify.registry import VERIFIERS

PARSED_CAP = 200

_BOX = re.compile(r"\\boxed\s*\{")
# A backslash takes the next character with it, so \{ and \} do not count.
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
# "Final Answer: The final answer is 5" is Minerva's form.
_ANSWER = re.compile(
    r"\banswer\s*[*_]*\s*[:：]\s*(?:the final answer is\b:?\s*)?([^\n]+)", re.IGNORECASE
)


@VERIFIERS.register("exact")
def exact(response: str, answer: str) -> Verdict:
    """The last \\boxed{}, else what follows the last "Answer:", else the last line that is not
    empty must equal the reference up to white space."""
    given = last_box(response)
    if given is None:
        given = answer_line(response) or last_line(response)
    given = fold(given)
    parsed = given[:PARSED_CAP]
    if not given:
        return Verdict(0.0, parsed, "no answer")
    if given == fold(answer):
        return Verdict(1.0, parsed, "correct")
    return Verdict(0.0, parsed, "wrong")


def last_box(text: str) -> str | None:
    """What the last \\boxed{} holds; "" where it is never closed, None where there is none."""
    start = None
    for match in _BOX.finditer(text):
        start = match.end()
    if start is None:
        return None
    depth = 1
    for match in _BRACE.finditer(text, start):
        if match.group() == "{":
            depth += 1
        elif match.group() == "}":
            depth -= 1
        if depth == 0:
            return text[start : match.start()].strip()
    return ""


def answer_line(text: str) -> str | None:
    """What follows the last "Answer:" on its line, or on the next where that line ends there."""
    found = _ANSWER.findall(text)
    return found[-1].strip().strip("*_").strip() if found else None


def last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else ""


def fold(text: str) -> str:
    """Without white space at the ends, and with single spaces inside."""
    return " ".join(text.split())
