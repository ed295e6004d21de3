"""Sampling ahead of the learner (schedule.max_staleness 1) against taking turns (0): seconds of a
step, and with --accuracy the held-out accuracy of both at the end.

    .venv/bin/python benchmarks/staleness.py [--json FILE]                       # about 6 minutes
    .venv/bin/python benchmarks/staleness.py --steps 80 --accuracy [--json FILE]        # about 15

Both sides run recipes/tiny_cpu.yaml with the same seed from the same warm-started model (that of
runs/tiny_cpu, if the demo has been run; else it is built first), one after the other, the order
reversed in every second round. The learning rate is 2e-4: at the demo's 5e-4 one step moves the
policy by 0.03 to 0.13 nats a token, which is too far for answers that are a step old (there the
reward sinks; docs/speed.md). A step's time is that between two lines of metrics.jsonl: whatever
is done between two steps is in it.
"""

import itertools
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from common import Row, Spread, command, demo_model, parser, report

from grpo.eval_result import load
from grpo.metrics import read_metrics

RECIPE = Path("recipes/tiny_cpu.yaml")
# Slower than the rest; with staleness 1 the first of them waits for two steps' groups.
STARTING_STEPS = 4
PHASES = ("wait", "rollout", "learn", "sync")
SAME = [
    "logging.wandb=off", "logging.samples_every=0", "checkpoint.every=1000000",
    "eval.at_start=false", "learner.lr=2e-4",
]  # fmt: skip


def train(folder: Path, model: Path, staleness: int, steps: int, accuracy: bool) -> Path:
    """A whole run in a process of its own; returns its folder."""
    settings = [
        f"output={folder}", f"name=staleness_{staleness}", f"model.path={model}",
        f"schedule.max_staleness={staleness}", f"schedule.steps={steps}", *SAME,
    ]  # fmt: skip
    if not accuracy:
        settings.append("eval.at_end=false")
    grpo = str(Path(sys.executable).with_name("grpo"))
    subprocess.run([grpo, "train", str(RECIPE), *settings], check=True, stdout=sys.stderr)
    return folder / f"staleness_{staleness}"


def step_seconds(run: Path) -> list[float]:
    times = [row["time"] for row in _steps(run)]
    return [b - a for a, b in itertools.pairwise(times)][STARTING_STEPS:]


def phases(run: Path) -> dict[str, float]:
    """The median seconds of each phase, and the means of what was learned from how stale tokens."""
    rows = _steps(run)[STARTING_STEPS:]
    found = {f"{phase}_s": median(row[f"time/{phase}_s"] for row in rows) for phase in PHASES}
    for name in ("staleness/mean", "goodput/share"):
        found[name] = sum(row[name] for row in rows) / len(rows)
    return found


def _steps(run: Path) -> list[dict[str, Any]]:
    return [row for row in read_metrics(run / "metrics.jsonl") if "time/step_s" in row]


def accuracy_of(run: Path, steps: int) -> tuple[float, float, float]:
    """avg@k on sums that were never trained on, with its 95 % interval."""
    (result,) = load(run / "eval" / f"step_{steps:06d}.json")
    score = result.score("avg@")
    return score.value, score.low, score.high


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--steps", type=int, default=40)
    arguments.add_argument("--rounds", type=int, default=1)
    arguments.add_argument("--accuracy", action="store_true")
    asked = arguments.parse_args()
    model = demo_model()
    seconds: dict[int, list[float]] = {0: [], 1: []}
    results: dict[str, Any] = {}
    for number in range(asked.rounds):
        folder = Path(tempfile.mkdtemp(prefix="staleness-"))
        for staleness in (0, 1) if number % 2 == 0 else (1, 0):
            run = train(folder, model, staleness, asked.steps, asked.accuracy)
            seconds[staleness].append(median(step_seconds(run)))
            side: dict[str, Any] = {"step_s": seconds[staleness][-1]} | phases(run)
            if asked.accuracy:
                side["accuracy"] = accuracy_of(run, asked.steps)
            results.setdefault(f"staleness_{staleness}", []).append(side)
        shutil.rmtree(folder)
    ratios = [ours / rival for ours, rival in zip(seconds[1], seconds[0], strict=True)]
    results["ratio"] = Spread.of(ratios).median
    ahead, in_turns = (f"{median(seconds[k]):.2f} s" for k in (1, 0))
    spread = Spread.of(ratios)
    rows = [Row("a step, staleness 1 against 0", ahead, in_turns, spread, aim="<= 0.75")]
    if asked.accuracy:
        rows.append(_accuracy_row(results))
    report("staleness", command(), results, rows, asked.json)


def _accuracy_row(results: dict[str, Any]) -> Row:
    """Of the last round. No aim can say "within the interval": the reader sees both."""
    (ahead, ahead_text), (in_turns, in_turns_text) = (
        (value, f"{value:.3f} ({low:.3f} to {high:.3f})")
        for value, low, high in (results[f"staleness_{k}"][-1]["accuracy"] for k in (1, 0))
    )
    return Row("held-out accuracy, at the end", ahead_text, in_turns_text, Spread(ahead / in_turns))


if __name__ == "__main__":
    main()
