"""Folders and disks that a run needs are looked at before anything is started."""

import shutil
from io import StringIO
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from grpo.cli.commands import app
from grpo.config.load import load_recipe
from grpo.config.recipe import Recipe
from grpo.console import Screen
from grpo.errors import UserError
from grpo.fleet.places import check_places, unwritable
from grpo.preflight import room
from grpo.preflight.check import check_recipe
from grpo.preflight.room import Room, room_for_checkpoints, shared_memory_warning
from grpo.train.run import train

NOBODY_WRITES = "/sys"  # not even root


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    for name in ("RAY_TMPDIR", "RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)


def check(*overrides: str) -> Result:
    return CliRunner().invoke(app, ["check", "tiny_cpu", *overrides])


def recipe(*overrides: str) -> Recipe:
    return load_recipe("tiny_cpu", overrides)


def refused(*overrides: str) -> str:
    result = check(*overrides)
    assert result.exit_code == 2 and "Traceback" not in result.output
    return result.output


# --- sockets ---


def test_a_folder_that_is_too_long_for_rays_sockets_is_refused(monkeypatch):
    monkeypatch.setenv("TMPDIR", "/tmp/" + 35 * "x")
    said = refused()
    assert "40 bytes long" in said and "Ray's sockets" in said and "RAY_TMPDIR=/tmp" in said
    monkeypatch.setenv("TMPDIR", "/tmp/" + 34 * "x")
    check_places()


def test_the_longest_folder_that_is_allowed_gives_a_path_of_107_bytes():
    session = "session_2026-11-27_01-22-55_123456_4194304/sockets/plasma_store"
    assert len(f"/tmp/{34 * 'x'}/ray/{session}") == 107


def test_rays_own_variable_comes_first_and_vllm_has_its_own_limit(monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    monkeypatch.setenv("TMPDIR", "/tmp/" + 60 * "x")
    check_places()
    monkeypatch.setenv("VLLM_RPC_BASE_PATH", "/tmp/" + 66 * "x")
    assert "vLLM's sockets" in refused()


def test_letters_of_several_bytes_count_as_such(monkeypatch):
    monkeypatch.setenv("TMPDIR", "/tmp/" + 20 * "ü")
    assert "45 bytes long" in refused()


# --- permissions ---


@pytest.mark.parametrize("key", ["TMPDIR", "RAY_TMPDIR"])
def test_a_temporary_folder_that_cannot_be_written_is_refused(monkeypatch, key):
    monkeypatch.setenv(key, NOBODY_WRITES)
    said = refused()
    assert f"{key} is '/sys'" in said and "Permission denied" in said


def test_a_home_that_cannot_be_written_is_refused_where_ray_would_write_its_token(monkeypatch):
    monkeypatch.setenv("HOME", NOBODY_WRITES)
    assert "HOME is '/sys'" in refused()
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    check_places()


def test_a_home_that_is_read_only_but_has_a_token_is_fine(monkeypatch, tmp_path):
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("")
    monkeypatch.setenv("HOME", str(tmp_path))
    check_places()


def test_a_cluster_that_is_joined_has_folders_of_its_own(monkeypatch):
    monkeypatch.setenv("HOME", NOBODY_WRITES)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    check_places()


def test_an_output_that_cannot_be_written_is_refused_before_anything_is_made(tmp_path):
    assert "output is '/sys/runs'" in refused("output=/sys/runs")
    with pytest.raises(UserError, match="output is '/sys/runs'"):
        train(recipe("output=/sys/runs"), Screen(StringIO(), StringIO()))


def test_an_output_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "runs").write_text("")
    assert f"{tmp_path / 'runs'} is a file" in refused().replace("\n", "")


def test_a_folder_within_the_run_that_cannot_be_written_is_refused(tmp_path):
    run = tmp_path / "runs" / "tiny_cpu"
    run.mkdir(parents=True)
    (run / "checkpoints").symlink_to(NOBODY_WRITES)
    assert "checkpoints" in refused()


def test_a_check_leaves_nothing_behind(tmp_path):
    assert check().exit_code == 0
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_made_where_the_nearest_above_it_can_be_written(tmp_path):
    assert unwritable(tmp_path / "a" / "b") is None


# --- room ---


def test_a_checkpoint_has_weights_masters_and_two_moments():
    """The demo: 789,824 parameters in float32. A real one had 12.64 MB of weights and states."""
    found = room_for_checkpoints(recipe())
    assert found is not None and found.one == 789_824 * 16
    assert found.wanted == recipe().checkpoint.keep + 1


def test_without_moments_and_with_adapters_a_checkpoint_is_smaller():
    found = room_for_checkpoints(recipe("learner.optimizer=sgd"))
    assert found is not None and found.one == 789_824 * 8
    # rank 4 on q_proj of 3 layers, 128 to 128: 3 * 4 * 256 parameters.
    found = room_for_checkpoints(recipe("learner.lora={rank: 4, targets: [q_proj]}"))
    assert found is not None and found.one == (789_824 + 3072) * 4 + 3072 * 12


def test_checkpoints_that_are_there_already_need_no_more_room(tmp_path):
    for step in (1, 2):
        (tmp_path / f"runs/tiny_cpu/checkpoints/step_{step:06d}").mkdir(parents=True)
    found = room_for_checkpoints(recipe("checkpoint.keep=2"))
    assert found is not None and found.wanted == 1


def test_a_disk_on_which_all_checkpoints_do_not_fit_is_warned_of_with_numbers():
    result = check("checkpoint.keep=2000000000")
    assert result.exit_code == 0
    assert "GiB free, and the run's checkpoints need" in " ".join(result.output.split())
    assert "checkpoint.keep=N" in result.output


def test_a_disk_on_which_no_checkpoint_fits_ends_the_run_before_it_starts(tmp_path):
    Room(1.0, 3, 2.0, tmp_path).check()
    with pytest.raises(UserError, match=r"not one checkpoint fits.*output=DIR"):
        Room(3.0, 3, 2.0, tmp_path).check()


def test_the_size_of_a_model_that_is_not_here_yet_is_not_asked_of_the_network():
    assert room_for_checkpoints(recipe("model={path: owner/nowhere}")) is None


def test_little_shared_memory_is_warned_of_where_processes_compute_together(tmp_path, monkeypatch):
    alone, together = recipe(), recipe("rollout.tensor_parallel=2")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(room, "_SHM_BYTES", usage.total + 1)
    assert shared_memory_warning(alone, tmp_path) is None
    warned = shared_memory_warning(together, tmp_path)
    assert warned is not None and f"{usage.total >> 20} MiB" in warned and "--shm-size" in warned
    monkeypatch.setattr(room, "_SHM_BYTES", usage.total)
    assert shared_memory_warning(together, tmp_path) is None


def test_warnings_are_handed_on():
    assert check_recipe(recipe()).warnings == []
