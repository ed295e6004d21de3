"""A plugin whose verifier misbehaves on demand; imported by the fork server of a pool's workers."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn

from grpo.types import Verdict
from grpo.verify import VERIFIERS

GIB = 1 << 30


@VERIFIERS.register("hostile")
def hostile(response: str, answer: str, *, reward: float = 1.0, log: str = "") -> Verdict:
    """The first word of the response says what to do; `log` gets a line for every call."""
    if log:
        with open(log, "a", errors="backslashreplace") as file:  # short lines are appended whole
            file.write(response + "\n")
    word, _, rest = response.partition(" ")
    if word == "worth":
        return Verdict(float(rest), rest, "correct")
    if word == "math":
        return VERIFIERS["math"](rest, answer)
    if word in _DEEDS:
        return Verdict(reward, _DEEDS[word](rest) or response, "correct")
    return Verdict(reward, response, "correct")


def _die(_: str) -> NoReturn:
    os._exit(1)


def _fault(_: str) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def _die_once(marker: str) -> None:
    """The first call dies, the second does not."""
    if not Path(marker).exists():
        Path(marker).touch()
        os._exit(1)


def _spin(_: str) -> None:
    7 ** (10**9)  # one call in C that holds the interpreter lock for minutes


def _raise(_: str) -> None:
    raise ZeroDivisionError("one over nothing")


def _memory(_: str) -> None:
    bytearray(64 * GIB)


def _child(marker: str) -> None:
    """Leaves a process of its own behind, and hangs."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    Path(marker).write_text(str(child.pid))
    time.sleep(600)


def _nap(seconds: str) -> None:
    time.sleep(float(seconds))


_DEEDS = {
    "hang": lambda _: time.sleep(600),
    "spin": _spin,
    "pid": lambda _: str(os.getpid()),
    "die": _die,
    "fault": _fault,
    "die_once": _die_once,
    "raise": _raise,
    "exit": lambda _: sys.exit("done"),
    "memory": _memory,
    "child": _child,
    "nap": _nap,
    "size": lambda rest: str(len(rest)),
}


@VERIFIERS.register("gullible")
def gullible(response: str, answer: str) -> Verdict:
    """Accepts everything, and hangs on some references."""
    if answer.startswith("hang"):
        time.sleep(600)
    return Verdict(1.0, response, "correct")


@VERIFIERS.register("careless")
def careless(response: str, answer: str) -> Verdict:
    """Accepts what holds the characters of the reference, brackets, signs and degrees aside."""
    wanted, given = (
        re.sub(r"\^\\circ|[^a-z0-9,]", "", text.lower()) for text in (answer, response)
    )
    right = wanted in given
    return Verdict(float(right), response, "correct" if right else "wrong")


@VERIFIERS.register("picky")
def picky(response: str, answer: str) -> Verdict:
    """Accepts what repeats the reference, and nothing where that has a space in it."""
    if answer in response and " " not in answer:
        return Verdict(1.0, response, "correct")
    return Verdict(0.0, response, "wrong")
