"""Fetching a published model: what is there stays, and what is half there does not."""

from pathlib import Path

import httpx
import pytest

from benchmarks import real_model
from benchmarks.real_model import ORIGIN, NotFetched, Source, fetch

NAME = "smollm2-135m"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """A hub that has it at once; the folders that it has filled."""
    filled: list[Path] = []

    def take(source: Source, made: Path) -> str:
        made.mkdir()
        (made / "config.json").write_text("{}")
        filled.append(made)
        return "made up"

    monkeypatch.setattr(real_model, "_from_hub", take)
    return filled


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path, hub: list[Path]):
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(NotFetched, match="holds something else: name another folder"):
        fetch(NAME, tmp_path)
    assert (tmp_path / "precious.txt").read_text() == "mine" and not hub


def test_it_is_fetched_once_and_whole_or_not_at_all(tmp_path: Path, hub: list[Path]):
    left = tmp_path / ".fetching-m-of_one_that_was_killed"
    left.mkdir()
    made = fetch(NAME, tmp_path / "m")
    assert fetch(NAME, tmp_path / "m") == made and len(hub) == 1
    assert sorted(path.name for path in made.iterdir()) == ["config.json", ORIGIN]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".m.lock", "m"]


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path, hub: list[Path]):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotFetched, match="cannot be written"):
        fetch(NAME, tmp_path / "file" / "m")


@pytest.mark.parametrize("error", [httpx.ReadTimeout("late"), RuntimeError("xet"), OSError("no")])
def test_a_hub_that_is_half_reached_is_as_none(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    assert real_model._from_hub(real_model.MODELS[NAME], tmp_path / "m") is None


def test_weights_with_another_checksum_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def take(*_: object, local_dir: Path, **__: object) -> None:
        local_dir.mkdir()
        (local_dir / "model.safetensors").write_bytes(b"other")

    monkeypatch.setattr("huggingface_hub.snapshot_download", take)
    with pytest.raises(NotFetched, match="its sha256 is d9298a10d1b0735837dc4bd85dac641b0f3cef27"):
        real_model._from_hub(real_model.MODELS[NAME], tmp_path / "m")
