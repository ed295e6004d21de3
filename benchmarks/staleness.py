"""Sampling ahead of the learner (schedule.max_staleness 1) against taking turns (0): seconds of a
step, and with --accuracy the held-out accuracy of both at the end.

    .venv/bin/python benchmarks/staleness.py [--json FILE]                       # about 4 minutes
    .venv/bin/python benchmarks/staleness.py --steps 80 --accuracy [--json FILE]         # about 9

Both sides run recipes/tiny_cpu.yaml with 16 prompts a step (`--prompts`), learner.shared_prefix and
the same seed from the same warm-started model (that of runs/tiny_cpu where the demo has been run;
else it is built first). They take the machine in turns, 8 steps each, so that both meet the same
one. The ratio is that of the medians of two blocks, its range is over the blocks.

Only what stands idle on-policy can be won back: on cores that both sides share that is less than on
devices of their own, and less where learning outweighs sampling.

The learning rate is 2e-4. At the demo's 5e-4 one step moves the policy by 0.03 to 0.13 nats a
token, which is too far for answers that are a step old (there the reward sinks; docs/speed.md).
"""

import tempfile
from pathlib import Path
from statistics import mean, median
from typing import Any

from common import Row, Spread, command, demo_model, parser, report
from turns import block_seconds, in_blocks, steps

from grpo.eval.result import load

RECIPE = Path("recipes/tiny_cpu.yaml")
BLOCK = 8
PHASES = ("wait", "rollout", "learn", "sync")
SAME = [
    "learner.shared_prefix=true", "learner.lr=2e-4", "logging.wandb=off",
    "logging.samples_every=0", "checkpoint.every=1000000", "eval.at_start=false",
]  # fmt: skip


def phases(run: Path) -> dict[str, float]:
    """The median seconds of each phase, and the means of what was learned from how stale tokens."""
    rows = steps(run)[BLOCK:]
    found = {f"{phase}_s": median(row[f"time/{phase}_s"] for row in rows) for phase in PHASES}
    for name in ("staleness/mean", "goodput/share"):
        found[name] = mean(row[name] for row in rows)
    return found


def accuracy_of(run: Path, after: int) -> tuple[float, float, float]:
    """avg@k on sums that were never trained on, with its 95 % interval."""
    (result,) = load(run / "eval" / f"step_{after:06d}.json")
    score = result.score("avg@")
    return score.value, score.low, score.high


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--steps", type=int, default=32)
    arguments.add_argument("--prompts", type=int, default=16)
    arguments.add_argument("--accuracy", action="store_true")
    asked = arguments.parse_args()
    if asked.steps < 2 * BLOCK:
        arguments.error(
            f"--steps {asked.steps}: at least {2 * BLOCK}, as the first {BLOCK} do not count"
        )
    same = [
        *SAME, f"model.path={demo_model()}", f"rollout.prompts={asked.prompts}",
        f"schedule.steps={asked.steps}", f"eval.at_end={str(asked.accuracy).lower()}",
    ]  # fmt: skip
    results: dict[str, Any] = {"prompts": asked.prompts}
    with tempfile.TemporaryDirectory(prefix="staleness-") as folder:
        names = ["staleness_0", "staleness_1"]
        runs = [
            [*same, f"output={folder}", f"name={name}", f"schedule.max_staleness={k}"]
            for k, name in enumerate(names)
        ]
        in_blocks(RECIPE, runs, BLOCK, Path(folder))
        for name in names:
            run = Path(folder) / name
            results[name] = {"step_s": block_seconds(run, BLOCK)} | phases(run)
            if asked.accuracy:
                results[name]["accuracy"] = accuracy_of(run, asked.steps)
    rows = [_time_row(results)]
    if asked.accuracy:
        rows.append(_accuracy_row(results))
    report("staleness", command(), results, rows, asked.json)


def _time_row(results: dict[str, Any]) -> Row:
    in_turns, ahead = (results[f"staleness_{k}"]["step_s"] for k in (0, 1))
    spread = Spread.of([ours / rival for ours, rival in zip(ahead, in_turns, strict=True)])
    results["ratio"] = spread.median
    ours, rival = (f"{median(seconds):.2f} s" for seconds in (ahead, in_turns))
    return Row("a step, staleness 1 against 0", ours, rival, spread, aim="<= 0.75")


def _accuracy_row(results: dict[str, Any]) -> Row:
    """No aim can say "within the interval": the reader sees both."""
    (ahead, ahead_text), (in_turns, in_turns_text) = (
        (value, f"{value:.3f} ({low:.3f} to {high:.3f})")
        for value, low, high in (results[f"staleness_{k}"]["accuracy"] for k in (1, 0))
    )
    return Row("held-out accuracy, at the end", ahead_text, in_turns_text, Spread(ahead / in_turns))


if __name__ == "__main__":
    main()
