"""A finished step whose metrics and answers could not be written: they go into its checkpoint, and
from there to their places when the run goes on."""

import math
import shutil
from dataclasses import dataclass
from pathlib import Path

from grpo.store.checkpoint import RunFolder
from grpo.store.files import replacing
from grpo.store.log import MetricsLog, read_metrics, write_rollouts
from grpo.train.groups import Collected

_FOLDER = "unreported"  # of a checkpoint


@dataclass(slots=True)
class Unreported:
    """A finished step that is not in the metrics yet."""

    step: int
    metrics: dict[str, float]
    groups: Collected

    def keep(self, checkpoint: Path, rollouts: bool) -> None:
        """Into a checkpoint of this step that is being written."""
        place = checkpoint / _FOLDER
        MetricsLog(place / "metrics.jsonl").log(self.step, self.metrics)
        if rollouts:
            write_rollouts(place, self.step, self.groups.sampled)


def catch_up(checkpoint: Path, folder: RunFolder, log: MetricsLog) -> None:
    """Writes what the checkpoint of this run keeps, unless it is there; as often as one likes."""
    place = checkpoint / _FOLDER
    for kept in sorted(place.glob("step_*.parquet")):
        folder.rollouts.mkdir(parents=True, exist_ok=True)
        if not (folder.rollouts / kept.name).exists():
            with replacing(folder.rollouts / kept.name) as temporary:
                shutil.copyfile(kept, temporary)
    for line in read_metrics(place / "metrics.jsonl"):
        if all(known["step"] != line["step"] for known in read_metrics(folder.metrics)):
            numbers = {k: math.nan if v is None else v for k, v in line.items()}
            log.log(line["step"], {k: v for k, v in numbers.items() if k not in ("step", "time")})
