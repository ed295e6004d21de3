"""A run folder survives kills, full disks and half-written files."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest
import yaml

from grpo.config.recipe import Recipe
from grpo.errors import UserError
from grpo.store.checkpoint import RunFolder, TrainState
from grpo.store.files import read_json_lines

OTHER_DISK = Path("/dev/shm")


def state(step: int) -> TrainState:
    return TrainState(step, step + 1, {"epoch": 0, "row": 8 * step}, 1000 * step, {"anchor": [0.5]})


def write(
    run: RunFolder,
    step: int,
    keep: int = 2,
    content: str = "weights",
    protected: Collection[int] = (),
) -> None:
    with run.write_checkpoint(step, keep, protected) as folder:
        (folder / "hf").mkdir()
        (folder / "hf" / "model.bin").write_text(content)
        state(step).save(folder)


def names(run: RunFolder) -> list[str]:
    return sorted(path.name for path in run.checkpoints.iterdir())


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "a_run")


def test_a_state_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    state(40).save(tmp_path)
    assert TrainState.load(tmp_path) == state(40)
    assert [path.name for path in tmp_path.iterdir()] == ["state.json"]


@pytest.mark.parametrize(
    "damaged", ["", '{"step": 4', "[]", '{"step": 4}', '{"step": "4", "policy_version": 0}', "\xff"]
)
def test_a_damaged_state_is_a_user_error_that_names_the_file(tmp_path: Path, damaged: str) -> None:
    (tmp_path / "state.json").write_text(damaged, encoding="latin-1")
    with pytest.raises(UserError, match=r"state\.json.*--resume DIR"):
        TrainState.load(tmp_path)


def test_a_state_with_a_value_of_the_wrong_kind_names_the_key(tmp_path: Path) -> None:
    state(4).save(tmp_path)
    stored = json.loads((tmp_path / "state.json").read_text())
    (tmp_path / "state.json").write_text(json.dumps({**stored, "cursor": 7}))
    with pytest.raises(UserError, match="cursor is 7, not dict"):
        TrainState.load(tmp_path)


def test_a_checkpoint_is_published_whole_and_latest_points_to_it(run: RunFolder) -> None:
    assert run.latest_checkpoint() is None
    with run.write_checkpoint(40, keep=2) as folder:
        assert folder.name == ".writing_step_000040"
        assert run.latest_checkpoint() is None
        state(40).save(folder)
    assert names(run) == ["latest", "step_000040"]
    assert os.readlink(run.checkpoints / "latest") == "step_000040"
    assert run.latest_checkpoint() == run.checkpoints / "step_000040"


def test_only_the_newest_keep_checkpoints_stay(run: RunFolder) -> None:
    for step in (10, 20, 30, 40):
        write(run, step, keep=2)
    assert names(run) == ["latest", "step_000030", "step_000040"]
    write(run, 50, keep=1)
    assert names(run) == ["latest", "step_000050"]


def test_more_may_be_kept_than_there_are(run: RunFolder) -> None:
    for step in (10, 20, 30, 40, 50):
        write(run, step, keep=4)
    assert run.checkpoint_steps() == [20, 30, 40, 50]


def test_protected_checkpoints_stay_beside_the_newest(run: RunFolder) -> None:
    for step in (10, 20, 30, 40):
        write(run, step, keep=1, protected={10, 30})
    assert run.checkpoint_steps() == [10, 30, 40]
    write(run, 50, keep=2, protected={10})
    assert run.checkpoint_steps() == [10, 40, 50]
    assert run.latest_checkpoint() == run.checkpoints / "step_000050"


def test_only_complete_checkpoints_count_as_steps(run: RunFolder) -> None:
    assert run.checkpoint_steps() == []
    for step in (10, 20):
        write(run, step)
    (run.checkpoints / "step_000010" / "state.json").unlink()
    assert run.checkpoint_steps() == [20]


@pytest.mark.parametrize("harm", ["cut short", "gone"])
def test_a_checkpoint_whose_learner_state_is_not_whole_is_never_picked(
    run: RunFolder, harm: str
) -> None:
    for step in (10, 20):
        with run.write_checkpoint(step, keep=2) as folder:
            (folder / "zero").mkdir()
            (folder / "zero" / "optimizer.pt").write_text("moments")
            state(step).save(folder)
    shard = run.checkpoints / "step_000020" / "zero" / "optimizer.pt"
    if harm == "gone":
        shard.unlink()
    else:
        shard.write_text("mom")
    assert run.latest_checkpoint() == run.latest_healthy(20) == run.checkpoints / "step_000010"
    said = {"gone": "zero/optimizer.pt is not there", "cut short": "has 3 bytes of 7"}[harm]
    ((damaged, why),) = run.damaged_checkpoints().items()
    assert damaged.name == "step_000020" and said in why


def test_a_checkpoint_may_lose_its_exports_and_an_older_one_has_no_sizes(run: RunFolder) -> None:
    write(run, 10)
    (run.checkpoints / "step_000010" / "hf" / "model.bin").unlink()
    assert run.checkpoint_steps() == [10]
    (run.checkpoints / "step_000010" / "sizes.json").unlink()
    assert run.checkpoint_steps() == [10]


def test_a_checkpoint_of_an_abandoned_future_never_pushes_out_the_one_just_written(
    run: RunFolder,
) -> None:
    write(run, 50)
    write(run, 40, keep=1)
    assert run.latest_checkpoint() == run.checkpoints / "step_000040"


def test_writing_a_step_again_replaces_it(run: RunFolder) -> None:
    write(run, 10, content="first")
    write(run, 10, content="second")
    assert (run.checkpoints / "step_000010/hf/model.bin").read_text() == "second"
    assert names(run) == ["latest", "step_000010"]


def test_a_kill_between_the_two_renames_of_a_replacement_loses_nothing(run: RunFolder) -> None:
    write(run, 10, content="first")
    replaced = run.checkpoints / ".replaced_step_000010"
    (run.checkpoints / "step_000010").rename(replaced)
    assert run.latest_checkpoint() == replaced
    write(run, 20, keep=2)
    assert names(run) == ["latest", "step_000010", "step_000020"]


@pytest.mark.parametrize("error", [KeyError("ours"), KeyboardInterrupt(), OSError(5, "I/O error")])
def test_an_exception_removes_what_was_written_and_goes_on(
    run: RunFolder, error: BaseException
) -> None:
    write(run, 10)
    with pytest.raises(type(error)) as caught, run.write_checkpoint(20, keep=1) as folder:
        (folder / "part").write_text("half")
        raise error
    assert caught.value is error
    assert names(run) == ["latest", "step_000010"]


def test_an_incomplete_latest_falls_back_to_the_highest_complete_step(run: RunFolder) -> None:
    for step in (10, 20, 30):
        write(run, step, keep=3)
    (run.checkpoints / "step_000030" / "state.json").write_text('{"step": 3')
    assert run.latest_checkpoint() == run.checkpoints / "step_000020"
    (run.checkpoints / "latest").unlink()
    assert run.latest_checkpoint() == run.checkpoints / "step_000020"


KILLED_WRITER = """
    import sys, time
    from pathlib import Path
    from grpo.store.checkpoint import RunFolder, TrainState
    run = RunFolder(Path(sys.argv[1]))
    with run.lock(), run.write_checkpoint(20, keep=1) as folder:
        (folder / "weights.bin").write_text("half")
        TrainState(20, 20, {}, 0, {}).save(folder)
        print("in the middle", flush=True)
        time.sleep(60)
"""


def test_kill_9_in_the_middle_of_a_write_leaves_the_old_checkpoint_and_the_lock_free(
    run: RunFolder,
) -> None:
    write(run, 10)
    command = [sys.executable, "-c", textwrap.dedent(KILLED_WRITER), str(run.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "in the middle\n"
        with pytest.raises(UserError, match=f"in use by pid {writer.pid} on .*name=OTHER"):  # noqa: SIM117
            with run.lock():
                pass
        writer.send_signal(signal.SIGKILL)
        writer.wait(timeout=10)
    # The leftover has a readable state.json, and still is never picked.
    assert (run.checkpoints / ".writing_step_000020" / "state.json").exists()
    assert run.latest_checkpoint() == run.checkpoints / "step_000010"
    with run.lock():
        write(run, 30, keep=2)
    assert names(run) == ["latest", "step_000010", "step_000030"]


def test_a_forked_child_that_outlives_the_holder_does_not_keep_the_lock(run: RunFolder) -> None:
    with run.lock():
        child = os.fork()
        if child == 0:
            signal.pause()
            os._exit(0)
    try:
        deadline_s = time.monotonic() + 5
        while True:  # the child lets go a moment after the fork
            try:
                with run.lock():
                    break
            except UserError:
                assert time.monotonic() < deadline_s
                time.sleep(0.01)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(disk)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("no mount command here")
    if mounted.returncode != 0:
        pytest.skip(f"mounting a small tmpfs is not permitted here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_names_the_last_good_checkpoint_and_the_way_on(small_disk: Path) -> None:
    run = RunFolder(small_disk / "run")
    write(run, 10)
    with pytest.raises(UserError) as caught:
        write(run, 20, content="x" * 2_000_000)
    message = str(caught.value)
    assert "checkpoint step_000020" in message
    assert "full" in message and "MiB are free" in message
    assert str(run.checkpoints / "step_000010") in message
    assert "checkpoint.keep=1" in message
    assert isinstance(caught.value.__cause__, OSError)
    assert names(run) == ["latest", "step_000010"]
    write(run, 30)
    assert run.latest_checkpoint() == run.checkpoints / "step_000030"


def test_a_full_disk_is_seen_through_torch_which_hides_the_errno(small_disk: Path) -> None:
    import torch

    run = RunFolder(small_disk / "run")
    with pytest.raises(UserError, match=r"full.*no earlier checkpoint"):  # noqa: SIM117
        with run.write_checkpoint(20, keep=1) as folder:
            torch.save(torch.zeros(500_000), folder / "weights.pt")
    assert names(run) == []


RECIPE = {
    "name": "demo",
    "seed": 0,
    "schedule": {"steps": 10, "minibatches": 1},
    "learner": {"lr": 1e-6, "betas": (0.9, 0.999), "timeout_s": 60.0},
    "rollout": {"prompts": 8, "engine": {}, "engines": 1},
    "checkpoint": {"every": 5, "keep": 2},
    "placement": "auto",
}


def test_the_recipe_is_written_with_what_made_it_and_reads_back_equal(run: RunFolder) -> None:
    run.begin(RECIPE, {"torch": "2.13.0", "revision": "abc"})
    stored = yaml.safe_load(run.recipe.read_text())
    assert stored["made_with"] == {"torch": "2.13.0", "revision": "abc"}
    assert stored["learner"]["lr"] == 1e-6
    assert run.recipe_conflicts(RECIPE) == []


def test_a_new_run_has_no_conflicts(run: RunFolder) -> None:
    assert run.recipe_conflicts(RECIPE) == []


def test_a_key_that_is_younger_than_the_run_had_its_default_there(run: RunFolder) -> None:
    recipe = Recipe.model_validate(
        {"name": "r", "model": {"path": "m"}, "data": {"name": "d", "path": "x"}}
    ).model_dump(mode="json")
    older = {key: value for key, value in recipe.items() if key != "flat_groups"}
    run.begin(older, {})
    assert run.recipe_conflicts(recipe) == []
    changed = recipe | {"flat_groups": {"mode": "keep", "max_rounds": 10}}
    assert run.recipe_conflicts(changed) == ["flat_groups.mode: was 'replace', now 'keep'"]


def test_harmless_keys_may_change_and_others_are_listed_with_both_values(run: RunFolder) -> None:
    run.begin(RECIPE, {})
    changed = {
        **RECIPE,
        "seed": 1,
        "schedule": {"steps": 20, "minibatches": 1, "max_staleness": 1},
        "learner": {
            "lr": 1e-6,
            "betas": (0.9, 0.95),
            "timeout_s": 90.0,
            "ranks": 3,
            "offload_optimizer": True,
        },
        "rollout": {"prompts": 8, "engine": {"enforce_eager": True}, "engines": 2, "top_p": 1.0},
        "checkpoint": {"every": 1, "keep": 9},
        "placement": "colocated",
    }
    assert run.recipe_conflicts(changed) == [
        "learner.betas: was [0.9, 0.999], now [0.9, 0.95]",
        "rollout.top_p: was not set, now 1.0",
        "seed: was 0, now 1",
    ]


def test_rewind_sets_aside_what_later_steps_wrote_and_drops_a_half_line(run: RunFolder) -> None:
    run.rollouts.mkdir(parents=True)
    run.evaluations.mkdir()
    for step in (1, 2, 3):
        (run.rollouts / f"step_{step:06d}.parquet").write_text(f"answers of {step}")
        (run.evaluations / f"step_{step:06d}.json").write_text(f"scores of {step}")
        (run.evaluations / f"step_{step:06d}").mkdir()
    lines = [json.dumps({"step": step, "reward/mean": step / 7}) + "\n" for step in (1, 2, 3)]
    run.metrics.write_text("".join(lines) + '{"step": 4, "rew')
    aside = run.rewind(2)
    assert aside is not None and aside.parent == run.path / "set_aside"
    assert run.metrics.read_text() == "".join(lines[:2])
    assert (aside / "metrics.jsonl").read_text() == lines[2]
    assert (aside / "rollouts" / "step_000003.parquet").read_text() == "answers of 3"
    assert (aside / "eval" / "step_000003.json").read_text() == "scores of 3"
    assert sorted(path.name for path in run.rollouts.iterdir()) == [
        "step_000001.parquet",
        "step_000002.parquet",
    ]
    assert sorted(path.name for path in run.evaluations.iterdir()) == [
        *("step_000001", "step_000001.json", "step_000002", "step_000002.json")
    ]


@pytest.mark.skipif(
    not OTHER_DISK.is_dir()
    or OTHER_DISK.stat().st_dev == Path(tempfile.gettempdir()).stat().st_dev,
    reason=f"{OTHER_DISK} is no other file system",
)
def test_rewind_sets_aside_what_a_link_keeps_on_another_disk(run: RunFolder) -> None:
    with tempfile.TemporaryDirectory(dir=OTHER_DISK) as elsewhere:
        run.path.mkdir()
        run.rollouts.symlink_to(elsewhere)
        for step in (1, 2):
            (run.rollouts / f"step_{step:06d}.parquet").write_text(f"answers of {step}")
        aside = run.rewind(1)
        assert aside is not None
        assert (aside / "rollouts" / "step_000002.parquet").read_text() == "answers of 2"
        assert [path.name for path in Path(elsewhere).iterdir()] == ["step_000001.parquet"]


def test_rewinding_twice_within_a_second_keeps_both(run: RunFolder) -> None:
    run.path.mkdir()
    asides = []
    for word in ("first", "second"):
        run.metrics.write_text(json.dumps({"step": 1, "word": word}) + "\n")
        asides.append(run.rewind(0))
    said = [json.loads((aside / "metrics.jsonl").read_text())["word"] for aside in asides]
    assert said == ["first", "second"]


def test_rewind_loses_a_half_line_even_where_nothing_is_later(run: RunFolder) -> None:
    run.path.mkdir()
    run.metrics.write_text('{"step": 1}\n{"step": 2, "rew')
    assert run.rewind(1) is None
    assert run.metrics.read_text() == '{"step": 1}\n'


def test_a_checkpoint_that_a_run_goes_back_behind_is_not_written_over(run: RunFolder) -> None:
    write(run, 10)
    write(run, 20, content="the abandoned ones")
    aside = run.rewind(10)
    assert aside is not None
    write(run, 20, content="the new ones")
    kept = aside / "checkpoints" / "step_000020" / "hf" / "model.bin"
    assert kept.read_text() == "the abandoned ones"


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("model", "gradient_checkpointing", False),
        ("model", "checkpoint_every", 4),
        ("learner", "shared_prefix", True),
        ("learner", "micro_batch_tokens", 1024),
    ],
)
def test_what_cures_a_lack_of_memory_is_no_other_recipe(
    run: RunFolder, section: str, key: str, value: object
) -> None:
    recipe = Recipe.model_validate(
        {"name": "r", "model": {"path": "m"}, "data": {"name": "d", "path": "x"}}
    ).model_dump(mode="json")
    run.begin(recipe, {})
    assert recipe[section][key] != value
    assert run.recipe_conflicts(recipe | {section: recipe[section] | {key: value}}) == []


def test_rewind_makes_its_own_step_the_latest_one(run: RunFolder) -> None:
    write(run, 10)
    write(run, 20)
    run.rewind(10)
    assert run.latest_checkpoint() == run.checkpoints / "step_000010"
    run.rewind(15)  # nothing to point to
    assert run.latest_checkpoint() == run.checkpoints / "step_000010"


def test_rewinding_an_empty_run_does_nothing(run: RunFolder) -> None:
    run.rewind(0)
    assert not run.path.exists()


def test_a_broken_line_in_the_middle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(UserError, match="line 2 is not JSON"):
        read_json_lines(path)
