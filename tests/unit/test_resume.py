"""Where a run goes on, and that nothing of it is lost on the way."""

import json
import shutil
from io import StringIO
from pathlib import Path

import pytest

from grpo.config.recipe import Recipe
from grpo.console import Screen
from grpo.errors import UserError
from grpo.store.checkpoint import RunFolder, TrainState
from grpo.train.resume import eval_path, starting_point


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return Recipe.model_validate(
        {"name": "r", "model": {"path": "m"}, "data": {"name": "d", "path": "x"}}
    )


@pytest.fixture
def run(tmp_path: Path, recipe: Recipe) -> RunFolder:
    """Two steps in, with a checkpoint of the first and an evaluation of the second."""
    folder = RunFolder(tmp_path / "r")
    assert starting_point(recipe, folder, Screen(), "auto") is None
    with folder.write_checkpoint(1, keep=1) as writing:
        TrainState(1, 1, {}, 100, {}).save(writing)
    folder.metrics.write_text('{"step": 1, "x": 0.5}\n{"step": 2, "x": 0.25}\n')
    folder.rollouts.mkdir()
    for step in (1, 2):
        (folder.rollouts / f"step_{step:06d}.parquet").write_text(f"answers of {step}")
    folder.evaluations.mkdir()
    eval_path(folder, 2).write_text("scores of 2")
    return folder


def go_on(recipe: Recipe, run: RunFolder, resume: str = "auto") -> tuple[Path | None, str, str]:
    """The checkpoint, what was noted and what was warned of."""
    out, err = StringIO(), StringIO()
    return starting_point(recipe, run, Screen(out, err), resume), out.getvalue(), err.getvalue()


def files(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


def test_steps_behind_the_checkpoint_are_set_aside_and_the_message_says_where(recipe, run):
    checkpoint, noted, warned = go_on(recipe, run)
    assert checkpoint == run.checkpoints / "step_000001" and warned == ""
    (aside,) = (run.path / "set_aside").iterdir()
    assert str(aside) in noted.replace("\n", "")
    assert files(aside) == {
        "metrics.jsonl": '{"step": 2, "x": 0.25}\n',
        "rollouts/step_000002.parquet": "answers of 2",
        "eval/step_000002.json": "scores of 2",
    }
    assert run.metrics.read_text() == '{"step": 1, "x": 0.5}\n'


@pytest.mark.parametrize("damage", ["gone", "cut short"])
def test_a_run_without_a_readable_checkpoint_starts_again_and_loses_nothing(recipe, run, damage):
    state = run.checkpoints / "step_000001" / "state.json"
    if damage == "gone":
        shutil.rmtree(run.checkpoints)
    else:
        state.write_text(state.read_text()[:-9])
    before = {**files(run.rollouts), **files(run.evaluations)}
    checkpoint, noted, warned = go_on(recipe, run)
    (aside,) = (run.path / "set_aside").iterdir()
    assert checkpoint is None
    assert "no checkpoint that can be read" in warned and str(aside) in noted.replace("\n", "")
    rows = [json.loads(line)["step"] for line in (aside / "metrics.jsonl").open()]
    assert rows == [1, 2] and run.metrics.read_text() == ""
    kept = {**files(aside / "rollouts"), **files(aside / "eval")}
    assert kept == before
    if damage == "cut short":
        assert (aside / "checkpoints" / "step_000001" / "state.json").exists()


def test_a_run_whose_recipe_file_is_gone_keeps_what_it_had_written(recipe, run):
    run.recipe.unlink()
    shutil.rmtree(run.checkpoints)
    go_on(recipe, run, "never")
    (aside,) = (run.path / "set_aside").iterdir()
    assert len((aside / "metrics.jsonl").read_text().splitlines()) == 2


def test_going_on_where_nothing_is_later_says_nothing(recipe, run):
    go_on(recipe, run)
    assert go_on(recipe, run)[1:] == ("", "")
    assert len(list((run.path / "set_aside").iterdir())) == 1


def test_a_folder_that_is_no_checkpoint_moves_nothing(recipe, run):
    before = files(run.path)
    with pytest.raises(UserError, match=r"no state\.json in it"):
        go_on(recipe, run, "somewhere")
    assert files(run.path) == before


def test_other_ranks_go_on_in_silence_and_another_staleness_with_a_word(recipe, run):
    changed = recipe.model_dump()
    changed["learner"] |= {"ranks": 4, "offload_optimizer": True, "micro_batch_tokens": 64}
    _, _, warned = go_on(Recipe.model_validate(changed), run)
    assert warned == ""
    changed["schedule"] |= {"max_staleness": 1}
    _, _, warned = go_on(Recipe.model_validate(changed), run)
    told = " ".join(warned.split())
    assert "schedule.max_staleness was 0, now 1" in told
    assert "up to 1 steps ahead of the learner (correction: truncated_token)" in told


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one_and_says_so(recipe, run):
    with run.write_checkpoint(2, keep=2) as writing:
        (writing / "zero").mkdir()
        (writing / "zero" / "optimizer.pt").write_text("moments")
        TrainState(2, 2, {}, 200, {}).save(writing)
    (run.checkpoints / "step_000002" / "zero" / "optimizer.pt").write_text("mom")
    checkpoint, _, warned = go_on(recipe, run)
    assert checkpoint == run.checkpoints / "step_000001"
    said = " ".join(warned.split())
    assert "step_000002 is damaged (zero/optimizer.pt has 3 bytes of 7)" in said
    (aside,) = (run.path / "set_aside").iterdir()
    assert (aside / "checkpoints" / "step_000002").is_dir()
