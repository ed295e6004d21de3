"""A checkpoint that --resume names is looked at, and compared with the run that owns it."""

import json
import shutil
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from grpo.cli.commands import app
from grpo.config.load import load_recipe, resolved
from grpo.config.recipe import Recipe
from grpo.console import Screen
from grpo.errors import UserError
from grpo.learner.build import build_tokenizer, model_config
from grpo.learner.shards import MASTER, Header, write
from grpo.learner.spec import set_options
from grpo.store.checkpoint import RunFolder, TrainState
from grpo.train.resume import starting_point

CURSOR = {
    "epoch": 0,
    "position": 8,
    "serial": 8,
    "returned": [],
    "num_rows": 4096,
    "fingerprint": "f",
}


def recipe(*overrides: str, name: str = "fork") -> Recipe:
    return load_recipe("tiny_cpu", [f"name={name}", *overrides])


def written(
    folder: RunFolder, of: Recipe, *, ranks: int = 1, prefix: str = "", step: int = 5
) -> Path:
    """A checkpoint with the files of a real one, small."""
    folder.begin(resolved(of), {})
    with folder.write_checkpoint(step, keep=9) as writing:
        shards = writing / "zero" / "zero"
        shards.mkdir(parents=True)
        for rank in range(ranks):
            stem = f"zero_pp_rank_{rank}_mp_rank_00"
            torch.save({}, shards / f"{prefix}{stem}_optim_states.pt")
            torch.save({}, shards / f"{stem}_model_states.pt")
        build = of.model.build
        assert build is not None
        model_config(build, build_tokenizer(build)).save_pretrained(writing / "hf")
        if of.learner.lora is not None:
            (writing / "adapter").mkdir()
            described = {"r": of.learner.lora.rank, "target_modules": list(of.learner.lora.targets)}
            (writing / "adapter" / "adapter_config.json").write_text(json.dumps(described))
        TrainState(step, step, CURSOR, 100, {"optimizer_steps": step}).save(writing)
    return folder.checkpoints / f"step_{step:06d}"


@pytest.fixture
def owner(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "first")


@pytest.fixture
def checkpoint(owner: RunFolder) -> Path:
    return written(owner, recipe(name="first"))


def fork(tmp_path: Path, checkpoint: Path, *overrides: str) -> tuple[Path | None, str]:
    """Where it goes on, and what was noted."""
    out = StringIO()
    folder = RunFolder(tmp_path / "fork")
    found = starting_point(recipe(*overrides), folder, Screen(out, out), str(checkpoint))
    return found, " ".join(out.getvalue().split())


def refused(tmp_path: Path, checkpoint: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as error:
        fork(tmp_path, checkpoint, *overrides)
    assert not (tmp_path / "fork" / "recipe.yaml").exists(), "nothing was begun"
    return str(error.value)


def test_a_run_that_goes_on_from_another_ones_checkpoint_is_told_what_differs(tmp_path, checkpoint):
    found, noted = fork(tmp_path, checkpoint, "learner.lr=0.25", "aggregate=token_mean")
    assert found == checkpoint
    assert f"of the run {tmp_path / 'first'}" in noted
    assert "learner.lr: was 0.0005, now 0.25" in noted
    assert "aggregate.name: was 'balanced', now 'token_mean'" in noted
    assert "name: was 'first'" not in noted


def test_what_only_changes_where_a_run_runs_is_no_difference(tmp_path, checkpoint):
    assert "computes the same" in fork(tmp_path, checkpoint, "checkpoint.keep=7")[1]


def test_going_on_in_the_runs_own_folder_says_nothing(owner, checkpoint):
    out = StringIO()
    starting_point(recipe(name="first"), owner, Screen(out, out), str(checkpoint))
    assert out.getvalue() == ""


def test_a_checkpoint_that_was_set_aside_still_has_its_run(tmp_path, owner, checkpoint):
    later = written(owner, recipe(name="first"), step=7)
    aside = owner.rewind(5)
    assert aside is not None
    moved = aside / "checkpoints" / later.name
    assert f"of the run {owner.path}" in fork(tmp_path, moved)[1]


def test_a_checkpoint_that_was_copied_elsewhere_has_no_recipe_to_compare(tmp_path, checkpoint):
    copied = tmp_path / "elsewhere"
    checkpoint.rename(copied)
    assert "lies in no run's folder" in fork(tmp_path, copied)[1]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["learner.ranks=2"], "learner.ranks was 1 when"),
        (["model.dtype=bfloat16"], "was saved in float32, and model.dtype is bfloat16"),
        (["model.build.layers=4"], "num_hidden_layers: 3 there, 4 here"),
        (["model.build.tie_embeddings=false"], "tie_word_embeddings: True there, False here"),
        (["learner.optimizer=sgd"], "learner.optimizer: was 'adamw', now 'sgd'"),
        (["learner.lora={rank: 4}"], "holds no adapters"),
    ],
)
def test_a_checkpoint_whose_shapes_are_others_is_refused(tmp_path, checkpoint, overrides, said):
    message = refused(tmp_path, checkpoint, *overrides)
    assert said in message
    assert f"model.path={checkpoint / 'hf'}" in message


def test_both_numbers_of_ranks_are_said(tmp_path, owner):
    checkpoint = written(owner, recipe(name="first"), ranks=3)
    said = refused(tmp_path, checkpoint, "learner.ranks=2")
    assert "learner.ranks was 3" in said and "is 2 now" in said and "set learner.ranks=3" in said


def test_a_checkpoint_in_bfloat16_is_known_by_its_files(tmp_path, owner):
    of = recipe("model.dtype=bfloat16", name="first")
    checkpoint = written(owner, of, prefix="bf16_")
    assert "was saved in bfloat16" in refused(tmp_path, checkpoint, "model.dtype=float32")
    assert fork(tmp_path, checkpoint, "model.dtype=bfloat16")[0] == checkpoint


def test_adapters_have_the_rank_and_the_targets_that_they_were_trained_with(tmp_path, owner):
    small = "learner.lora={rank: 4, targets: [q_proj, v_proj]}"
    checkpoint = written(owner, recipe(small, name="first"))
    assert "holds adapters, and the recipe has no" in refused(tmp_path, checkpoint)
    said = refused(tmp_path, checkpoint, "learner.lora={rank: 8, targets: [q_proj]}")
    assert "rank 4 on q_proj, v_proj" in said and "rank 8 on q_proj" in said
    turned = "learner.lora={rank: 4, targets: [v_proj, q_proj], alpha: 1}"
    assert "learner.lora.alpha: was" in fork(tmp_path, checkpoint, turned)[1]


# --- damaged, foreign ---


def test_a_shard_that_is_cut_short_is_named(tmp_path, checkpoint):
    shard = checkpoint / "zero" / "zero" / "zero_pp_rank_0_mp_rank_00_optim_states.pt"
    shard.write_bytes(shard.read_bytes()[:-20])
    assert f"{shard} is damaged or cut short" in refused(tmp_path, checkpoint)


def test_a_checkpoint_without_its_learner_is_refused(tmp_path, owner):
    checkpoint = written(owner, recipe(name="first"), ranks=2)
    (checkpoint / "zero" / "zero" / "zero_pp_rank_0_mp_rank_00_optim_states.pt").unlink()
    said = refused(tmp_path, checkpoint, "learner.ranks=1")
    assert "lacks the state of learner ranks" in said


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ("{", "cannot be read"),
        ('{"step": 3}', "should hold exactly"),
        (
            json.dumps(
                {"step": 1, "policy_version": 1, "cursor": {}, "tokens_seen": 0, "extra": {}}
            ),
            "has no epoch, fingerprint, num_rows, position, returned, serial, optimizer_steps",
        ),
    ],
)
def test_a_state_of_something_else_is_refused(tmp_path, checkpoint, state, said):
    (checkpoint / "state.json").write_text(state)
    assert said in refused(tmp_path, checkpoint)


def test_a_config_that_is_no_json_is_refused(tmp_path, checkpoint):
    (checkpoint / "hf" / "config.json").write_text("{")
    assert "config.json cannot be read" in refused(tmp_path, checkpoint)


def test_a_folder_beside_a_checkpoint_is_told_from_it(tmp_path, owner, checkpoint):
    assert f"such as {checkpoint}" in refused(tmp_path, owner.path)
    assert f"did you mean {checkpoint}?" in refused(tmp_path, checkpoint / "hf")
    assert "no state.json in it" in refused(tmp_path, tmp_path / "nowhere")


def test_the_command_ends_with_2_before_anything_starts(tmp_path, checkpoint):
    told = ["train", "tiny_cpu", "name=fork", f"output={tmp_path}", "learner.ranks=2"]
    result = CliRunner().invoke(app, [*told, "--resume", str(checkpoint)])
    assert result.exit_code == 2, result.output
    assert "learner.ranks was 1" in result.output


# --- what a state brings along ---


def test_the_options_of_an_optimizer_are_the_recipes_after_a_state_was_loaded():
    """torch hands back those that the state was saved with."""

    def optimizer(**options: Any) -> torch.optim.Optimizer:
        return torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))], **options)

    config = recipe("learner.weight_decay=0.5", "learner.betas=[0.5, 0.75]").learner
    forked = optimizer(weight_decay=0.5, betas=(0.5, 0.75))
    forked.load_state_dict(optimizer(weight_decay=0.1).state_dict())
    assert forked.param_groups[0]["weight_decay"] == 0.1
    set_options(forked.param_groups, config)
    (group,) = forked.param_groups
    assert (group["weight_decay"], group["betas"], group["eps"]) == (0.5, (0.5, 0.75), config.eps)


# --- the files that ranks write now ---


@pytest.fixture
def of_two(owner: RunFolder, checkpoint: Path) -> Path:
    """The same checkpoint, as two ranks write it: one parameter of three elements."""
    shutil.rmtree(checkpoint / "zero" / "zero")
    for rank in range(2):
        header = Header(rank, 2, "AdamW", (MASTER,), {}, {"weight": (3,)}, {})
        write(checkpoint / "zero", header, lambda kind, name, n=2 - rank: torch.zeros(n))
    return checkpoint


def test_any_number_of_ranks_goes_on_from_it(tmp_path, of_two):
    found, said = fork(tmp_path, of_two, "learner.ranks=3")
    assert found == of_two and "whose recipe computes the same" in said


def test_the_file_of_a_rank_that_is_missing_or_cut_short_is_named(tmp_path, of_two):
    second = of_two / "zero" / "rank_00001_of_00002.safetensors"
    second.write_bytes(second.read_bytes()[:-2])
    assert f"{second} is damaged or cut short" in refused(tmp_path, of_two)
    second.unlink()
    assert f"{second} is missing: 2 ranks wrote this checkpoint" in refused(tmp_path, of_two)


def test_a_checkpoint_without_any_of_them_is_refused(tmp_path, of_two):
    shutil.rmtree(of_two / "zero")
    assert "it is no checkpoint" in refused(tmp_path, of_two)


# --- the same command once more, as a scheduler gives it ---


def again(tmp_path: Path, resume: str) -> tuple[Path | None, str]:
    out = StringIO()
    folder = RunFolder(tmp_path / "fork")
    return starting_point(recipe(), folder, Screen(out, out), resume), " ".join(
        out.getvalue().split()
    )


def test_the_same_resume_goes_back_once_and_then_goes_on(tmp_path, checkpoint):
    fork(tmp_path, checkpoint)
    reached = written(RunFolder(tmp_path / "fork"), recipe(), step=8)
    found, noted = again(tmp_path, str(checkpoint))
    assert found == reached and not (tmp_path / "fork" / "set_aside").exists()
    assert f"gone on from {checkpoint} before" in noted
    (tmp_path / "fork" / "resumed_from.json").unlink()
    assert again(tmp_path, str(checkpoint))[0] == checkpoint, "as the note says"


def test_it_goes_on_although_the_checkpoint_is_gone_since(tmp_path, checkpoint):
    fork(tmp_path, checkpoint)
    reached = written(RunFolder(tmp_path / "fork"), recipe(), step=8)
    checkpoint.rename(tmp_path / "elsewhere")
    assert again(tmp_path, str(checkpoint))[0] == reached


def test_another_checkpoint_is_gone_back_to(tmp_path, owner, checkpoint):
    fork(tmp_path, checkpoint)
    written(RunFolder(tmp_path / "fork"), recipe(), step=8)
    other = written(owner, recipe(name="first"), step=6)
    assert again(tmp_path, str(other))[0] == other
    assert again(tmp_path, str(other))[0] == other, "nothing was reached since"


def test_a_link_is_the_same_command_whatever_it_points_to_by_now(tmp_path, owner, checkpoint):
    latest = owner.checkpoints / "latest"
    assert again(tmp_path, str(latest))[0] == checkpoint
    reached = written(RunFolder(tmp_path / "fork"), recipe(), step=8)
    written(owner, recipe(name="first"), step=7)
    assert again(tmp_path, str(latest))[0] == reached


def test_a_run_that_went_back_below_the_named_checkpoint_goes_on_from_there(owner, checkpoint):
    """A rollback has set the named one aside."""
    screen, mine = Screen(StringIO(), StringIO()), recipe(name="first")
    named = written(owner, mine, step=10)
    assert starting_point(mine, owner, screen, str(named)) == named
    owner.rewind(5)
    assert starting_point(mine, owner, screen, str(named)) == checkpoint


def test_a_folder_that_was_moved_is_still_its_own_run(tmp_path, owner, checkpoint):
    screen, mine = Screen(StringIO(), StringIO()), recipe(name="first")
    starting_point(mine, owner, screen, str(checkpoint))
    moved = RunFolder(owner.path.rename(tmp_path / "moved"))
    assert starting_point(mine, moved, screen, "auto") == moved.checkpoints / checkpoint.name


def test_a_fork_that_goes_back_within_itself_is_still_a_fork(tmp_path, checkpoint):
    """Its step 8 is damaged: what is before that is the other run's step 5, not its own step 3."""
    folder = RunFolder(tmp_path / "fork")
    written(folder, recipe(), step=3)
    fork(tmp_path, checkpoint)
    own = written(folder, recipe(), step=8)
    assert again(tmp_path, str(own))[0] == own
    (own / "state.json").write_text("")
    found, noted = again(tmp_path, "auto")
    assert found == checkpoint
    assert f"{own} is damaged" in noted


def test_a_run_that_begins_anew_is_no_fork_any_more(tmp_path, checkpoint):
    fork(tmp_path, checkpoint)
    (tmp_path / "fork" / "recipe.yaml").unlink()
    assert again(tmp_path, "never")[0] is None
    assert again(tmp_path, "auto")[0] is None


def test_a_fork_whose_origin_is_gone_says_so(tmp_path, checkpoint):
    fork(tmp_path, checkpoint)
    checkpoint.rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"was begun from .*step_000005 \(step 5\), which is gone"):
        again(tmp_path, "auto")


def test_what_a_crash_left_of_a_later_checkpoint_is_no_place_to_go_on_from(tmp_path, checkpoint):
    """Between the two renames that replace a checkpoint its old form has another name."""
    folder = RunFolder(tmp_path / "fork")
    left = written(folder, recipe(), step=8)
    left.rename(left.with_name(".replaced_step_000008"))
    fork(tmp_path, checkpoint)
    assert again(tmp_path, "auto")[0] == checkpoint


def test_a_run_that_was_begun_from_another_ones_checkpoint_begins_there_again(tmp_path, checkpoint):
    """Without --resume, killed before it had a checkpoint of its own."""
    fork(tmp_path, checkpoint)
    assert again(tmp_path, "auto")[0] == checkpoint
    reached = written(RunFolder(tmp_path / "fork"), recipe(), step=8)
    assert again(tmp_path, "auto")[0] == reached


def test_what_the_folder_had_before_is_no_place_to_go_on_from(tmp_path, checkpoint):
    """Step 3 of its own did not lead to what it goes on from, step 5 of another run."""
    written(RunFolder(tmp_path / "fork"), recipe(), step=3)
    fork(tmp_path, checkpoint)
    assert again(tmp_path, "auto")[0] == checkpoint


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"checkpoint": "x", "step": "y"}'])
def test_a_damaged_note_of_where_a_run_was_begun_is_named(tmp_path, checkpoint, content: str):
    fork(tmp_path, checkpoint)
    (tmp_path / "fork" / "resumed_from.json").write_text(content)
    with pytest.raises(UserError, match=r"resumed_from\.json cannot be read"):
        again(tmp_path, "auto")
