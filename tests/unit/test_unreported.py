"""A step that a full disk keeps out of the metrics, and whose checkpoint has room, is in them after
a resume."""

import errno
import json
from pathlib import Path

import pytest

from grpo.config.recipe import Recipe
from grpo.errors import DiskFull
from grpo.store.checkpoint import RunFolder
from grpo.store.log import MetricsLog
from grpo.train import trainer
from tests.unit.test_keep_best import BASE, run


@pytest.mark.parametrize("full", ["metrics", "rollouts"])
def test_what_a_full_disk_kept_out_of_the_metrics_is_in_them_after_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: str
):
    changes = {"disk": {"wait_minutes": 0}, "logging": {"samples_every": 0}}
    changes |= {"schedule": {"steps": 4}, "checkpoint": {"every": 4}}
    chosen = Recipe.model_validate(BASE | changes)
    folder = RunFolder(tmp_path)

    def no_room(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def log(self: MetricsLog, step: int, metrics: dict[str, float]) -> None:
        no_room() if self.path == folder.metrics and step == 2 else well(self, step, metrics)

    def write_rollouts(place: Path, step: int, groups: list[object]) -> None:
        no_room() if step == 2 else write_well(place, step, [])

    well, write_well = MetricsLog.log, trainer.write_rollouts
    with monkeypatch.context() as patch:
        if full == "metrics":
            patch.setattr(MetricsLog, "log", log)
        else:
            patch.setattr(trainer, "write_rollouts", write_rollouts)
        with pytest.raises(DiskFull):
            run(chosen, tmp_path)
    assert folder.checkpoint_steps() == [2]
    run(chosen, tmp_path)
    lines = [json.loads(line) for line in folder.metrics.open()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert lines[1]["reward/mean"] == 0.5
    assert len(list(folder.rollouts.glob("step_*.parquet"))) == 4
