"""On PYTHONPATH: in every Python process of a run, `time.time` jumps by the seconds that the file
GRPO_CHAOS_CLOCK holds, once it is there. Monotonic clocks stay."""

import os
import time

_FILE = os.environ.get("GRPO_CHAOS_CLOCK", "")
_real = time.time
_real_ns = time.time_ns


def _jump_s() -> int:
    try:
        with open(_FILE) as file:
            return int(file.read())
    except (OSError, ValueError):  # not yet, or being written
        return 0


def _now() -> float:
    return _real() + _jump_s()


def _now_ns() -> int:
    return _real_ns() + _jump_s() * 10**9


if _FILE:
    time.time, time.time_ns = _now, _now_ns
