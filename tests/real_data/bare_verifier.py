"""A plugin: math-verify with nothing around it, in the pool because it may spin."""

import math_verify

from grpo.types import Verdict
from grpo.verify import VERIFIERS


@VERIFIERS.register("bare")
def bare(response: str, answer: str) -> Verdict:
    gold = math_verify.parse(answer, parsing_timeout=None)  # pyright: ignore
    given = math_verify.parse(response, parsing_timeout=None)  # pyright: ignore
    equal = math_verify.verify(gold, given, timeout_seconds=None)
    return Verdict(float(equal), "", "correct" if equal else "wrong")
