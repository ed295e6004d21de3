"""Programs known to be right, judged by verifier `code`: how many pass, what the others fail at,
and how long a verdict takes.

    .venv/bin/python benchmarks/code_verifier.py ../shared/data/code [--workers 2]

The folder holds livecodebench_stdin_even.jsonl (programs that its hidden tests found right, judged
on the public tests), humaneval.jsonl and mbpp_sanitized_399.jsonl (the reference programs).
"""

import argparse
import json
import resource
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from grpo.console import Screen
from grpo.types import Verdict
from grpo.verify.pool import VerifierPool
from grpo.verify.sandbox import level

OPTIONS = {"reward": "all", "test_timeout_s": 6.0, "total_timeout_s": 60.0}
DEADLINE_S = 90.0

Case = tuple[str, str, str]  # name, program, tests


def rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def live_code_bench(folder: Path, right: bool) -> Iterator[Case]:
    for row in rows(folder / "livecodebench_stdin_even.jsonl"):
        tests = json.dumps({"public_test_cases": row["public_tests"]})
        for submission in row["submissions"]:
            if submission["passed_all_hidden_tests"] == right:
                yield f"{row['question_id']}/{submission['model']}", submission["code"], tests


def human_eval(folder: Path) -> Iterator[Case]:
    for row in rows(folder / "humaneval.jsonl"):
        tests = json.dumps({key: row[key] for key in ("test", "entry_point", "prompt")})
        yield row["task_id"], row["prompt"] + row["canonical_solution"], tests


def mbpp(folder: Path) -> Iterator[Case]:
    for row in rows(folder / "mbpp_sanitized_399.jsonl"):
        tests = json.dumps({key: row[key] for key in ("test_list", "test_imports")})
        yield row["task_id"], row["code"], tests


def children_cpu_s() -> float:
    """CPU seconds of all processes below this one that have been reaped."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def judge_all(screen: Screen, title: str, cases: list[Case], workers: int) -> None:
    verdicts: list[tuple[str, Verdict]] = []
    before_s = children_cpu_s()
    with VerifierPool("code", OPTIONS, workers=workers, timeout_s=DEADLINE_S) as pool:
        start = time.perf_counter()
        futures: list[tuple[str, Future[Verdict]]] = [
            (name, pool.submit(f"```python\n{program}\n```", tests))
            for name, program, tests in cases
        ]
        with screen.progress(title, len(futures)) as bar:
            for name, future in futures:
                verdicts.append((name, future.result()))
                bar.advance()
        wall_s = time.perf_counter() - start
    cpu_s = (children_cpu_s() - before_s) / len(verdicts)
    seconds = sorted(verdict.seconds for _, verdict in verdicts)
    passed = sum(verdict.reward == 1.0 for _, verdict in verdicts)
    print(
        f"{title}: {passed} of {len(verdicts)} pass; {len(verdicts) / wall_s:.1f} a second; "
        f"CPU seconds each, the pool's start included: {cpu_s:.2f}; "
        f"wall seconds each: median {statistics.median(seconds):.2f}, "
        f"99 % {seconds[int(0.99 * len(seconds))]:.2f}, most {seconds[-1]:.2f}"
    )
    if "false" not in title:
        for name, verdict in verdicts:
            if verdict.reward != 1.0:
                print(f"  {name}: {verdict.reason} ({verdict.seconds:.1f} s)")


def main() -> None:
    parser = argparse.ArgumentParser(description="Judges programs that are known to be right.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    print(level())
    screen = Screen()
    folder = arguments.folder
    sets = {
        "HumanEval": human_eval(folder),
        "MBPP sanitized": mbpp(folder),
        "LiveCodeBench": live_code_bench(folder, True),
        "LiveCodeBench, labelled false": live_code_bench(folder, False),
    }
    for title, cases in sets.items():
        judge_all(screen, title, list(cases), arguments.workers)


if __name__ == "__main__":
    main()
