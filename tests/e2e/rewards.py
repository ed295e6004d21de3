"""A plugin: rewards that a model with random weights earns about half of the time."""

from grpo.types import Verdict
from grpo.verify import VERIFIERS


@VERIFIERS.register("even_length")
def even_length(response: str, answer: str) -> Verdict:
    even = len(response) % 2 == 0
    return Verdict(float(even), response, "correct" if even else "wrong")
