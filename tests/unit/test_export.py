"""`grpo export`: a checked copy of a checkpoint's model, whole or not there."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from grpo.cli.commands import app
from grpo.store import export as export_module
from grpo.store.checkpoint import RunFolder, TrainState

FILES = {"config.json": "{}", "tokenizer_config.json": "{}", "tokenizer.json": "{}"}


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["export", *map(str, arguments)])


def refused(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    return " ".join(result.output.split())


def write_model(folder: Path, value: float) -> None:
    folder.mkdir()
    for name, content in FILES.items():
        (folder / name).write_text(content)
    save_file({"a": torch.full((3,), value), "b": torch.zeros(2)}, folder / "model.safetensors")


@pytest.fixture
def made(tmp_path: Path) -> RunFolder:
    """Two checkpoints, of step 1 and step 2, whose weights are those numbers."""
    folder = RunFolder(tmp_path / "run")
    folder.begin({}, {})
    for step in (1, 2):
        with folder.write_checkpoint(step, keep=2) as writing:
            write_model(writing / "hf", float(step))
            (writing / "zero").mkdir()
            TrainState(step, step, {}, 0, {}).save(writing)
    return folder


def model(folder: RunFolder) -> Path:
    return folder.checkpoints / "step_000002" / "hf"


@pytest.mark.parametrize(
    ("part", "step"), [("", 2), ("checkpoints/step_000001", 1), ("checkpoints/latest", 2)]
)
def test_a_runs_newest_checkpoint_or_the_named_one_is_copied_without_what_resumes(
    made: RunFolder, tmp_path: Path, part: str, step: int
):
    out = tmp_path / "deep" / "out"
    result = run(made.path / part, out)
    assert result.exit_code == 0, result.output
    assert f"the model after step {step}" in " ".join(result.output.split())
    assert {path.name for path in out.iterdir()} == {*FILES, "model.safetensors"}
    assert load_file(out / "model.safetensors")["a"].tolist() == [step] * 3
    assert [path.name for path in out.parent.iterdir()] == ["out"], "nothing is left beside it"


def test_an_empty_folder_is_filled_and_a_full_one_is_left_alone(made: RunFolder, tmp_path: Path):
    (tmp_path / "out").mkdir()
    assert run(made.path, tmp_path / "out").exit_code == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert "is there already: name a folder that is new or empty" in refused(
        made.path, tmp_path / "out"
    )
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before
    (tmp_path / "file").write_text("mine")
    assert "is there already" in refused(made.path, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def poison(path: Path) -> None:
    save_file({"a": torch.tensor([1.0, torch.nan, -torch.inf])}, path)


@pytest.mark.parametrize(
    ("name", "harm", "said"),
    [
        ("config.json", Path.unlink, "config.json is missing"),
        ("tokenizer_config.json", Path.unlink, "tokenizer_config.json is missing"),
        ("config.json", shorten, "config.json is no JSON"),
        ("model.safetensors", Path.unlink, "model.safetensors is missing"),
        ("model.safetensors", shorten, "model.safetensors is damaged or cut short"),
        ("model.safetensors", poison, "model.safetensors: a has 2 values that are not finite"),
        (".", shutil.rmtree, "the checkpoint holds no model"),
    ],
)
def test_a_model_that_is_not_whole_is_not_exported(
    made: RunFolder, tmp_path: Path, name: str, harm, said: str
):
    harm(model(made) / name)
    assert said in refused(made.path, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_weights_in_several_files_are_held_against_their_index(made: RunFolder, tmp_path: Path):
    folder = model(made)
    (folder / "model.safetensors").unlink()
    files = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
    for name, file in files.items():
        save_file({name: torch.ones(2)}, folder / file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": files}))
    assert run(made.path, tmp_path / "out").exit_code == 0
    assert {*files.values(), index.name} < {path.name for path in (tmp_path / "out").iterdir()}
    index.write_text(json.dumps({"weight_map": {**files, "c": "model-2.safetensors"}}))
    assert "name different tensors, such as c" in refused(made.path, tmp_path / "other")
    (folder / "model-2.safetensors").unlink()
    assert "model-2.safetensors is missing" in refused(made.path, tmp_path / "other")


def test_what_is_no_checkpoint_is_said_to_be_none(made: RunFolder, tmp_path: Path):
    said = refused(tmp_path, tmp_path / "out")
    assert "neither a checkpoint (no state.json) nor a run (no recipe.yaml)" in said
    (model(made).parent / "state.json").write_text("{")
    assert "The checkpoint is not complete" in refused(model(made).parent, tmp_path / "out")
    shutil.rmtree(made.checkpoints)
    assert "has no checkpoint yet" in refused(made.path, tmp_path / "out")


def test_what_a_killed_export_left_is_swept_and_a_failed_one_leaves_nothing(
    made: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    left = tmp_path / ".out.writing"
    left.mkdir()
    (left / "half").write_text("a file")
    assert run(made.path, tmp_path / "out").exit_code == 0
    assert not (tmp_path / "out" / "half").exists() and not left.exists()

    def full(source: Path, to: Path) -> Path:
        raise OSError(28, "No space left on device", str(to))

    monkeypatch.setattr(export_module.shutil, "copyfile", full)
    assert "cannot be written: No space left on device. Make room" in refused(
        made.path, tmp_path / "other"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run"]


def test_the_help_shows_how_it_is_used():
    told = run("--help").output
    assert "grpo export runs/mine models/mine" in told and "vllm serve" in told
