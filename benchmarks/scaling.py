"""How the learner's cost grows with group size, length and ranks: the slope, not only a point.

    .venv/bin/python benchmarks/scaling.py [--json FILE]

An optimizer step on made-up answers through Learner, ZeRO-3 over gloo, a Qwen3 of 256 wide
and 4 layers in float32. Group sizes double at one length, lengths double at one group size, all
sizes in turns; the slope is the exponent x of seconds = c * size^x, fitted to each round. A slope
of 1 is a cost in proportion; what is below it are the fixed parts, what is above it is attention,
whose own share would be 2. Ranks: the same step on one rank with two threads and on two with one
thread each, whose ratio is what sharding and its collectives cost on one host.
"""

import math
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import (
    SMALL_QWEN3,
    Row,
    Spread,
    command,
    made_up_batch,
    made_up_recipe,
    parser,
    report,
)
from transformers import AutoModelForCausalLM, Qwen3Config

from grpo.batch.cut import cut
from grpo.fleet.cluster import Cluster
from grpo.fleet.learner import Learner
from grpo.learner.spec import LearnerSpec

VOCABULARY = SMALL_QWEN3["vocab_size"]
PROMPT, ROUNDS = 16, 3
GROUP_SIZES, LENGTHS = (4, 8, 16, 32), (64, 128, 256, 512)
LENGTH, GROUP_SIZE, GROUPS = 128, 8, 2
BUDGET = 4096
Size = tuple[int, int]  # answers of a group, tokens of a sequence


def save_model(folder: Path) -> None:
    torch.manual_seed(0)
    config = Qwen3Config(**SMALL_QWEN3)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)


def spec(model: Path, threads: int) -> LearnerSpec:
    recipe = made_up_recipe(model, dtype="float32", gradient_checkpointing=False, warmup_steps=0)
    return LearnerSpec(str(model), recipe, "gloo", bucket_bytes=1 << 20, threads=threads)


def seconds(learner: Learner, size: Size) -> float:
    """Of one optimizer step, its cut included."""
    siblings, length = size
    batch = made_up_batch(VOCABULARY, GROUPS, siblings, PROMPT, length - PROMPT)
    started = time.perf_counter()
    learner.load([cut(batch, len(learner.workers), BUDGET)])
    learner.step(0, 0)
    return time.perf_counter() - started


def slope(sizes: tuple[int, ...], times_s: list[float]) -> float:
    """Least squares in logarithms."""
    return statistics.linear_regression(
        [math.log(size) for size in sizes], [math.log(t) for t in times_s]
    ).slope


def main() -> None:
    options = parser(__doc__).parse_args()
    by_group = [(siblings, LENGTH) for siblings in GROUP_SIZES]
    by_length = [(GROUP_SIZE, length) for length in LENGTHS]
    both = (GROUP_SIZE, LENGTH)
    with tempfile.TemporaryDirectory() as scratch:
        model = Path(scratch) / "model"
        save_model(model)
        with Cluster(Path(scratch) / "logs") as cluster:
            one = Learner(cluster.learner_ranks(spec(model, 2), 1), 600)
            two = Learner(cluster.learner_ranks(spec(model, 1), 2), 600)
            rounds = [measure(one, two, [*by_group, *by_length], both) for _ in range(ROUNDS + 1)]
    kept = rounds[1:]  # the first steps create Adam's moments and warm the allocators up
    groups = Spread.of([slope(GROUP_SIZES, [r[size] for size in by_group]) for r in kept])
    lengths = Spread.of([slope(LENGTHS, [r[size] for size in by_length]) for r in kept])
    ranks = Spread.of([r["two"] / r["one"] for r in kept])
    medians = {size: statistics.median(r[size] for r in kept) for size in rounds[0]}
    ends = [medians[size] for size in (by_group[0], by_group[-1], by_length[0], by_length[-1])]
    rows = [
        Row(
            f"learner, groups of {GROUP_SIZES[0]} to {GROUP_SIZES[-1]}: slope of cost",
            f"{ends[0]:.2f} to {ends[1]:.2f} s",
            "proportion (1)",
            groups,
            "<= 1.1",
        ),
        Row(
            f"learner, sequences of {LENGTHS[0]} to {LENGTHS[-1]} tokens: slope of cost",
            f"{ends[2]:.2f} to {ends[3]:.2f} s",
            "proportion (1), attention alone 2",
            lengths,
            "<= 1.2",
        ),
        Row(
            "learner, two ranks of a thread over one rank of two",
            f"{medians['two']:.2f} s",
            f"{medians['one']:.2f} s",
            ranks,
        ),
    ]
    results: dict[str, Any] = {
        "seconds": {str(size): round(value, 4) for size, value in medians.items()},
        "slope_group_size": groups.median,
        "slope_length": lengths.median,
        "two_ranks_over_one": ranks.median,
    }
    report("scaling", command(), results, rows, options.json)


def measure(one: Learner, two: Learner, sizes: list[Size], both: Size) -> dict[Any, float]:
    """A round: every size on one rank, then one size on either."""
    times: dict[Any, float] = {size: seconds(one, size) for size in sizes}
    return times | {"one": seconds(one, both), "two": seconds(two, both)}


if __name__ == "__main__":
    main()
