"""The learner's checkpoint, written and read by our own files and by DeepSpeed's save and load.

    .venv/bin/python benchmarks/checkpoint.py [--layers 4] [--ranks 2] [--rounds 3] [--json FILE]

The shapes of Qwen3-0.6B with fewer layers (random weights, bfloat16, AdamW with its moments). Both
sides run in the same ranks, in turns; their files are flushed to the disk (fsync) within the time,
as a run does, and are in the page cache when they are read. Four layers take 8 GiB of memory, 6 GiB
of disk and 2 minutes.
"""

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import Row, Spread, command, made_up_recipe, parser, report, save_qwen3

from grpo.fleet import cluster as cluster_module
from grpo.fleet.cluster import Cluster
from grpo.fleet.learner import Learner
from grpo.learner.spec import LearnerSpec
from grpo.store.files import fsync_path

TIMEOUT_S = 600.0


def make_rank(*args: Any) -> Any:
    """Defined here, as DeepSpeed is imported in the rank's own process."""
    from grpo.learner.rank import LearnerRank

    class BothRank(LearnerRank):
        """Without annotations, whose names would not travel with the function."""

        def fill(self):
            """Moments, as after a step."""
            zero = self._engine.optimizer
            for master in zero.fp32_partitioned_groups_flat:
                moments = {key: torch.rand_like(master) for key in ("exp_avg", "exp_avg_sq")}
                zero.optimizer.state[master] = {"step": torch.tensor(1.0), **moments}

        def save_theirs(self, folder):
            self._engine.save_checkpoint(str(folder), tag="zero", exclude_frozen_parameters=True)

        def restore_theirs(self, folder):
            self._engine.load_checkpoint(str(folder), tag="zero")

    return BothRank(*args)


def start(cluster: Cluster, model: Path, ranks: int) -> Learner:
    recipe = made_up_recipe(
        model, dtype="bfloat16", gradient_checkpointing=False, optimizer="adamw", lr=1e-6
    )
    spec = LearnerSpec(str(model), recipe, "shm", 256 << 20, max(1, (os.cpu_count() or 1) // ranks))
    cluster_module._make_learner_rank = make_rank
    learner = Learner(cluster.learner_ranks(spec, ranks), TIMEOUT_S)
    learner.everywhere("fill")
    return learner


def timed(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def flushed(learner: Learner, method: str, folder: Path) -> None:
    learner.everywhere(method, folder)
    for path in folder.rglob("*"):
        fsync_path(path)


def measure(learner: Learner, folder: Path, rounds: int) -> tuple[dict[str, Any], list[Row]]:
    sides = {"ours": ("save", "restore"), "theirs": ("save_theirs", "restore_theirs")}
    seconds: dict[str, list[float]] = {m: [] for side in sides.values() for m in side}
    sizes: dict[str, int] = {}
    for number in range(rounds + 1):  # the first is not counted
        for side in list(sides) if number % 2 else list(sides)[::-1]:
            save, restore = sides[side]
            to = folder / side
            shutil.rmtree(to, ignore_errors=True)
            seconds[save].append(timed(lambda s=save, t=to: flushed(learner, s, t)))
            seconds[restore].append(timed(lambda r=restore, t=to: learner.everywhere(r, t)))
            sizes[side] = sum(p.stat().st_size for p in to.rglob("*") if p.is_file())
    shown = [f"{sizes[side] / 1e9:.2f} GB" for side in sides]
    rows = [Row("on disk", *shown, Spread(sizes["ours"] / sizes["theirs"]))]
    for ours, theirs in zip(*sides.values(), strict=True):
        a, b = seconds[ours][1:], seconds[theirs][1:]
        shown = [f"{Spread.of(side)} s" for side in (a, b)]
        ratio = Spread(statistics.median(a) / statistics.median(b))
        rows.append(Row(ours, *shown, ratio))
    return {"seconds": seconds, "bytes": sizes}, rows


def main() -> None:
    asked = parser(__doc__)
    asked.add_argument("--layers", type=int, default=4)
    asked.add_argument("--ranks", type=int, default=2)
    asked.add_argument("--rounds", type=int, default=3)
    options = asked.parse_args()
    with tempfile.TemporaryDirectory() as folder, Cluster(Path(folder, "logs")) as cluster:
        model = Path(folder, "model")
        save_qwen3(model, options.layers)
        learner = start(cluster, model, options.ranks)
        results, rows = measure(learner, Path(folder), options.rounds)
    report("checkpoint", command(), results, rows, options.json)


if __name__ == "__main__":
    main()
