"""The math verifier beside bare math-verify 0.9: what it accepts, what it loses, how fast it is.

    PYTHONPATH=. .venv/bin/python benchmarks/verifier.py DATA_FOLDER [hard tests gold fuzz]

DATA_FOLDER has eval/, train/ and verifier/ with JSON Lines. Everything runs in the trainer's pool,
one worker a verifier, each answer under a deadline of 5 seconds.

hard: answers labelled right or wrong (verifier/hardverify_math*.jsonl), for each verifier the right
      ones accepted and the wrong ones accepted, over all problems and over two random halves
tests: math-verify's own test cases; rows that it gets right and we do not
gold: every reference of eval/ and train/ judged against itself in three formats, refused rows by id
fuzz: 10,000 generated strings: verdicts by reason, those over the deadline, answers per second and
      core of both, in turns
"""

import json
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import math_verify
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from grpo.types import Verdict
from grpo.verify import VERIFIERS
from grpo.verify.pool import VerifierPool
from tests.unit.test_verify_hostile import GOLDS, answers

DEADLINE_S = 5.0
STRINGS = 10_000
TURN = 250
FORMATS = {
    "box": r"So it is \boxed{%s}.",
    "answer line": "Answer: %s",
    "minerva": "Final Answer: The final answer is $%s$. I hope it is correct.",
}


def bare(response: str, answer: str) -> Verdict:
    gold = math_verify.parse(answer, parsing_timeout=None)  # pyright: ignore
    target = math_verify.parse(response, parsing_timeout=None)  # pyright: ignore
    equal = math_verify.verify(gold, target, timeout_seconds=None)
    return Verdict(float(equal), "", "correct" if equal else "wrong")


if __name__ == "benchmarks.verifier":  # imported as a plugin, not run or spawned
    VERIFIERS.register("bare_math_verify")(bare)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def box(text: str) -> str:
    return text if "\\boxed" in text else rf"\boxed{{{text}}}"


def judge(pool: VerifierPool, pairs: list[tuple[str, str]]) -> list[Verdict]:
    futures = [pool.submit(response, answer) for response, answer in pairs]
    return [future.result() for future in futures]


def hard(data: Path, pools: dict[str, VerifierPool]) -> None:
    (path,) = sorted(data.glob("verifier/hardverify_math*.jsonl"))
    rows = read(path)
    ids = sorted({row["id"] for row in rows})
    random.Random(0).shuffle(ids)
    middle = len(ids) // 2
    halves = {"all": set(ids), "half 1": set(ids[:middle]), "half 2": set(ids[middle:])}
    forms = {
        "bare, text": (pools["bare"], lambda row: (row["pred"], row["gold"])),
        "bare, boxed": (pools["bare"], lambda row: (box(row["pred"]), box(row["gold"]))),
        "ours": (pools["ours"], lambda row: (box(row["pred"]), row["gold"])),
    }
    for name, (pool, form) in forms.items():
        verdicts = judge(pool, [form(row) for row in rows])
        for half, members in halves.items():
            counts = Counter(
                (row["expected"], bool(verdict.reward))
                for row, verdict in zip(rows, verdicts, strict=True)
                if row["id"] in members
            )
            right, wrong = (counts[kind, True] + counts[kind, False] for kind in (True, False))
            print(
                f"hard  {name:12} {half:6} right answers accepted {counts[True, True]}/{right} "
                f"= {counts[True, True] / right:.3f}, wrong ones {counts[False, True]}/{wrong}"
            )
    accepted = [
        f"{row['id']} ({verdict.reason})"
        for row, verdict in zip(rows, verdicts, strict=True)
        if verdict.reward and not row["expected"]
    ]
    print(f"hard  wrong answers that ours accepts: {', '.join(accepted) or 'none'}")


def tests(data: Path, pools: dict[str, VerifierPool]) -> None:
    rows = read(data / "verifier" / "mathverify_tests.jsonl")
    pairs = [(row["pred"], row["gold"]) for row in rows]
    theirs, ours = judge(pools["bare"], pairs), judge(pools["ours"], pairs)
    labels = [row["expected"] for row in rows]
    right = [
        [bool(verdict.reward) == label for verdict, label in zip(side, labels, strict=True)]
        for side in (theirs, ours)
    ]
    lost = [i for i, (a, b) in enumerate(zip(*right, strict=True)) if a and not b]
    bare_right, ours_right = (f"{sum(side)}/{len(rows)}" for side in right)
    print(f"tests bare right {bare_right}, ours {ours_right}, rows lost {lost}")


def gold(data: Path, pools: dict[str, VerifierPool]) -> None:
    for path in sorted([*data.glob("eval/*.jsonl"), *data.glob("train/*.jsonl")]):
        rows = read(path)
        golds = [str(row["answer"]) if row["answer"] is not None else "" for row in rows]
        for name, form in FORMATS.items():
            verdicts = judge(pools["ours"], [(form % answer, answer) for answer in golds])
            refused = [
                f"{row['id']} ({verdict.reason})"
                for row, verdict in zip(rows, verdicts, strict=True)
                if not verdict.reward
            ]
            share = 1 - len(refused) / len(rows)
            print(f"gold  {path.stem:40} {name:12} {share:.4f} of {len(rows)}", flush=True)
            for line in refused:
                print(f"gold    refused {line}")


def generated() -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []

    @seed(0)
    @settings(
        max_examples=STRINGS,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(answers(), st.sampled_from(GOLDS))
    def collect(text: str, answer: str) -> None:
        found.append((box(text), answer))

    collect()
    return found[:STRINGS]


def turns(pairs: list[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    for start in range(0, len(pairs), TURN):
        yield pairs[start : start + TURN]


def fuzz(data: Path, pools: dict[str, VerifierPool]) -> None:
    pairs = generated()
    seconds = dict.fromkeys(pools, 0.0)
    reasons: dict[str, Counter[str]] = {name: Counter() for name in pools}
    slowest = dict.fromkeys(pools, 0.0)
    late: dict[str, list[tuple[str, str]]] = {name: [] for name in pools}
    for turn in turns(pairs):
        for name, pool in pools.items():
            started = time.monotonic()
            verdicts = judge(pool, turn)
            seconds[name] += time.monotonic() - started
            reasons[name].update(verdict.reason.split(":")[0] for verdict in verdicts)
            slowest[name] = max(slowest[name], *(verdict.seconds for verdict in verdicts))
            late[name] += [
                pair
                for pair, verdict in zip(turn, verdicts, strict=True)
                if verdict.reason == "timeout"
            ]
    for name in pools:
        rate = len(pairs) / seconds[name]
        counts = dict(reasons[name])
        print(f"fuzz  {name}: {rate:.1f} answers/s, slowest {slowest[name]:.2f} s, {counts}")
        for text, answer in late[name]:
            print(f"fuzz    timeout: {text!r} for {answer!r}")


def main(folder: str, *parts: str) -> None:
    measures = {"hard": hard, "tests": tests, "gold": gold, "fuzz": fuzz}
    options = {"marked": "preferred"}  # some of the labelled answers are prose
    ours = VerifierPool("math", options, workers=1, timeout_s=DEADLINE_S)
    theirs = VerifierPool(
        "bare_math_verify", {}, workers=1, timeout_s=DEADLINE_S, plugins=("benchmarks.verifier",)
    )
    with ours, theirs:
        for part in parts or measures:
            measures[part](Path(folder), {"ours": ours, "bare": theirs})


if __name__ == "__main__":
    main(*sys.argv[1:])
