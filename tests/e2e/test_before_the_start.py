"""What `grpo check` lets pass goes through a run: code of the model's own, a generation config that
transformers will not save, and a fork with another optimizer's settings."""

import json
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch

from tests.e2e.test_run import Run, recipe
from tests.unit.small_models import bring_code, changed

pytestmark = pytest.mark.full

GENERATION = "generation_config.json"


@pytest.fixture(scope="module")
def first(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folder of runs with a finished one in it, and the model that it began with."""
    folder = tmp_path_factory.mktemp("code")
    model = folder / "model"
    copytree(models["tied"], model)
    bring_code(model)
    changed(model / GENERATION, temperature=0.6)
    run = Run(recipe(folder, model), "schedule.steps=2", "model.trust_remote_code=true")
    assert run.finish() == 0, run.text()
    return folder, model


def test_a_model_with_code_of_its_own_trains_and_its_export_has_the_code(first):
    folder, model = first
    exported = folder / "run" / "checkpoints" / "step_000002" / "hf"
    for name in ("configuration_mine.py", "modeling_mine.py"):
        assert (exported / name).read_text() == (model / name).read_text()
    assert json.loads((exported / "config.json").read_text())["model_type"] == "mine"


def test_a_generation_config_that_transformers_will_not_save_ends_no_run(first):
    folder, model = first
    exported = folder / "run" / "checkpoints" / "step_000002" / "hf"
    assert (exported / GENERATION).read_text() == (model / GENERATION).read_text()


def options_of(checkpoint: Path) -> dict[str, Any]:
    """Of the optimizer that a checkpoint was saved with."""
    (file,) = checkpoint.glob("zero/zero/*_optim_states.pt")
    saved: Any = torch.load(file, weights_only=False)["optimizer_state_dict"]
    return saved["optimizer_state_dict"]["param_groups"][0]


def test_a_fork_takes_its_steps_with_the_recipes_settings(first):
    folder, model = first
    start = folder / "run" / "checkpoints" / "step_000002"
    run = Run(
        recipe(folder, model),
        *("name=fork", "schedule.steps=3", "model.trust_remote_code=true"),
        *("learner.weight_decay=0.5", "learner.betas=[0.5, 0.75]", "--resume", str(start)),
    )
    assert run.finish() == 0, run.text()
    assert "learner.weight_decay: was 0.1, now 0.5" in run.text()
    assert options_of(start)["weight_decay"] == 0.1
    forked = options_of(folder / "fork" / "checkpoints" / "step_000003")
    assert (forked["weight_decay"], tuple(forked["betas"])) == (0.5, (0.5, 0.75))
