"""Verifiers that misbehave, imported by pool workers as a plugin."""

import os
import time

from grpo.types import Verdict
from grpo.verify import VERIFIERS


@VERIFIERS.register("test_misbehaving")
def misbehaving(response: str, answer: str) -> Verdict:
    """Does what the response says, else compares."""
    if response == "sleep":
        time.sleep(300)
    if response == "exit":
        os._exit(1)
    if response == "raise":
        raise KeyError("lost" * 100)
    if response == "nan":
        return Verdict(float("nan"), "", "correct")
    if response == "spin":
        _ = 7 ** (10**9)  # one C call that holds the interpreter lock for minutes
    if response.startswith("pid"):
        time.sleep(0.3)
        return Verdict(1.0, str(os.getpid()), "correct")
    correct = response == answer
    return Verdict(float(correct), response, "correct" if correct else "wrong")
