"""What hanging and crashing answers cost a verifier pool: wall time with and without them.

    PYTHONPATH=. .venv/bin/python benchmarks/verifier_pool.py [answers] [deadline in seconds]

Judges generated math answers (5,000), then the same with 2 % of them replaced by some that hang
and 1 % by some that kill their worker, then the first ones again. A hang must cost its deadline and
nothing else, so the run with them is allowed 1.5 times the mean of the other two plus hangs x
deadline / workers. Every call of the verifier is logged: one for each answer, two for one that
crashes.
"""

import json
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from grpo.types import Verdict
from grpo.verify.pool import VerifierPool

WORKERS = 2
EXPECTED = {"math": "correct", "hang": "timeout", "die": "verifier crashed"}


def main(count: int, deadline_s: float) -> None:
    rng = random.Random(0)
    numbers = [rng.randrange(10**6) for _ in range(count)]
    good = [math_answer(i, number) for i, number in enumerate(numbers)]
    mixed = list(good)
    spoiled = rng.sample(range(count), count * 3 // 100)
    hangs = spoiled[: count * 2 // 100]
    for i in spoiled:
        mixed[i] = f"{'hang' if i in hangs else 'die'} {i}"
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "calls"
        before_s, _ = run(good, numbers, deadline_s, log)
        log.unlink()
        mixed_s, verdicts = run(mixed, numbers, deadline_s, log)
        calls = Counter(log.read_text().splitlines())
        after_s, _ = run(good, numbers, deadline_s, log)
    clean_s = (before_s + after_s) / 2  # on a shared machine the two differ
    assert calls == {answer: 2 if answer.startswith("die") else 1 for answer in mixed}
    reasons = [verdict.reason for verdict in verdicts]
    others = Counter(
        (answer.split()[0], reason)
        for answer, reason in zip(mixed, reasons, strict=True)
        if reason != EXPECTED[answer.split()[0]]
    )
    assert not others, f"a busy machine needs a longer deadline: {others}"
    deadlines_s = len(hangs) * deadline_s / WORKERS
    print(
        json.dumps(
            {
                "answers": count,
                "verdicts": Counter(reasons),
                "calls": calls.total(),
                "clean_s": [round(before_s, 2), round(after_s, 2)],
                "mixed_s": round(mixed_s, 2),
                "deadlines_s": deadlines_s,
                "allowed_s": round(1.5 * clean_s + deadlines_s, 2),
            }
        )
    )
    assert mixed_s <= 1.5 * clean_s + deadlines_s


def math_answer(i: int, number: int) -> str:
    """Right, and written in another way than the reference."""
    boxed = f"\\sqrt{{4}} \\cdot \\frac{{{number}}}{{2}}" if i % 2 else f"{number}.0"
    return f"math answer {i}: \\boxed{{{boxed}}}"


def run(
    answers: list[str], numbers: list[int], deadline_s: float, log: Path
) -> tuple[float, list[Verdict]]:
    options = {"log": str(log)}
    plugins = ("tests.unit.hostile_verifiers",)
    with VerifierPool(
        "hostile", options, workers=WORKERS, timeout_s=deadline_s, plugins=plugins
    ) as pool:
        started = time.monotonic()
        items = zip(answers, map(str, numbers), strict=True)
        verdicts = list(pool.stream(items))
        return time.monotonic() - started, verdicts


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 5000, float(sys.argv[2]) if sys.argv[2:] else 1.0)
