"""`grpo train` goes on from a checkpoint with another machine's settings, as with its own."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from tests.e2e.steps import weights
from tests.e2e.test_run import Run, recipe, serials, steps_logged

pytestmark = pytest.mark.full

BEGUN = 2
NEW = ["schedule.steps=3", "checkpoint.keep=9"]


def go_on(begun: Path, folder: Path, *overrides: str) -> tuple[Path, str]:
    """A copy of the run takes one more step: its folder, and what was said."""
    shutil.copytree(begun, folder, symlinks=True, dirs_exist_ok=True)
    run = Run(folder / "recipe.yaml", f"output={folder}", *NEW, *overrides)
    assert run.finish() == 0, run.text()
    assert f"resumed after step {BEGUN} " in run.text()
    return folder, " ".join(run.text().split())


@pytest.fixture(scope="module")
def begun(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps of one rank and one engine, on-policy."""
    folder = tmp_path_factory.mktemp("begun")
    run = Run(recipe(folder, models["untied"]), f"schedule.steps={BEGUN}", "rollout.engines=1")
    assert run.finish() == 0, run.text()
    return folder


@pytest.fixture(scope="module")
def undisturbed(begun: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return go_on(begun, tmp_path_factory.mktemp("undisturbed"), "rollout.engines=1")[0]


def after(folder: Path) -> dict[str, torch.Tensor]:
    return weights(folder / "run" / "checkpoints" / f"step_{BEGUN + 1:06d}")


def last_line(folder: Path) -> dict[str, float]:
    return json.loads((folder / "run" / "metrics.jsonl").read_text().splitlines()[-1])


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["learner.ranks=2", "rollout.engines=2", "learner.micro_batch_tokens=300",
             "placement=disaggregated"],
            "",
        ),
        (["rollout.engines=1", "schedule.max_staleness=1"], "schedule.max_staleness was 0, now 1"),
    ],
    ids=["more ranks and engines", "sampling ahead"],
)  # fmt: skip
def test_the_first_step_with_other_settings_is_that_with_the_old_ones(
    begun: Path, undisturbed: Path, tmp_path: Path, overrides: list[str], said: str
):
    """The same answers, and weights within 1e-6. Nothing is told of what changes no arithmetic."""
    folder, told = go_on(begun, tmp_path, *overrides)
    assert said in told and ("max_staleness was" in told) == bool(said)
    assert steps_logged(folder) == list(range(1, BEGUN + 2))
    assert serials(folder) == serials(undisturbed)
    found, expected, before = (
        after(folder),
        after(undisturbed),
        weights(begun / "run" / "checkpoints" / f"step_{BEGUN:06d}"),
    )
    worst = max(float((found[n] - expected[n]).abs().max()) for n in expected)
    moved = max(float((expected[n] - before[n]).abs().max()) for n in expected)
    print(f"{worst:.1e} apart at most; the step moved {moved:.1e}")
    assert worst <= 1e-6 and moved > 1e-4
    for key in ("reward/mean", "length/mean", "learn/pg_loss"):
        assert last_line(folder)[key] == pytest.approx(last_line(undisturbed)[key], abs=1e-6)
