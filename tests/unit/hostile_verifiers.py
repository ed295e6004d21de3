"""A plugin whose verifier misbehaves on demand; imported by pool workers."""

import os
import time

from grpo.types import Verdict
from grpo.verify import VERIFIERS


@VERIFIERS.register("hostile")
def hostile(response: str, answer: str, *, reward: float = 1.0) -> Verdict:
    if response == "hang":
        time.sleep(600)
    if response == "spin":
        _ = 7 ** (10**9)  # one call in C that holds the interpreter lock for minutes
    if response == "pid":
        return Verdict(reward, str(os.getpid()), "correct")
    if response == "die":
        os._exit(1)
    if response == "raise":
        raise ZeroDivisionError("one over nothing")
    return Verdict(reward, response, "correct")
