"""A checkpoint that --resume names: whether a run can go on from it, and what is different there.

A run may go on from another run's checkpoint with another learning rate, data or estimator. What is
stored as the shape of something (the model, adapters, the optimizer) must be the same.
"""

import json
import re
import zipfile
from pathlib import Path
from typing import Any

from grpo.config.load import resolved
from grpo.config.recipe import Recipe
from grpo.console import Screen
from grpo.errors import UserError
from grpo.learner.base_model import at_hand
from grpo.learner.build import build_tokenizer, model_config
from grpo.learner.model_files import read_config
from grpo.learner.shards import num_deepspeed_ranks, opened
from grpo.store.checkpoint import STATE_FILE, RunFolder, TrainState

_SHARD = re.compile(r"(bf16_)?zero_pp_rank_(\d+)_mp_rank_00_optim_states\.pt")
_CURSOR = {"epoch", "position", "serial", "returned", "num_rows", "fingerprint"}
# Of config.json: what weights have their shapes from, and the head.
_SHAPES = (
    *("model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "head_dim", "tie_word_embeddings"),
)
_OTHER = "Resume from another checkpoint with --resume DIR"


def named_checkpoint(name: str, recipe: Recipe, folder: RunFolder, screen: Screen) -> Path:
    """The checkpoint, which the run of `folder` can go on from. Raises UserError for another
    folder, for one that is damaged, and for one whose shapes are others."""
    path = Path(name).expanduser()
    if not (path / STATE_FILE).is_file():
        raise UserError(
            f"--resume {name}: not a checkpoint folder (no {STATE_FILE} in it){_near(path)}"
        )
    path = path.resolve()
    _check_state(path)
    _check_shards(path, recipe)
    _check_model(path, recipe)
    _check_adapters(path, recipe)
    owner = _owner(path)
    if owner is None:
        screen.note(f"{path} lies in no run's folder, so that its recipe is not known")
    elif owner.path.resolve() != folder.path.resolve():
        _compare(path, owner, recipe, screen)
    return path


def _near(path: Path) -> str:
    """What was meant, perhaps."""
    inside = RunFolder(path).latest_checkpoint()
    if inside is not None:
        return f": it is a run's folder, name one of its checkpoints, such as {inside}"
    if (path.parent / STATE_FILE).is_file():
        return f": did you mean {path.parent}?"
    return ""


def _check_state(path: Path) -> None:
    state = TrainState.load(path)
    lacking = sorted(_CURSOR - state.cursor.keys())
    if type(state.extra.get("optimizer_steps")) is not int:
        lacking.append("optimizer_steps")
    if lacking:
        raise UserError(
            f"{path / STATE_FILE} has no {', '.join(lacking)}, which a run writes. {_OTHER}"
        )


def _check_shards(path: Path, recipe: Recipe) -> None:
    """The learner's part has a file of each rank that wrote it, all of them whole."""
    if num_deepspeed_ranks(path / "zero"):
        _check_deepspeed(path, recipe)
        return
    with opened(path / "zero"):
        pass


def _check_deepspeed(path: Path, recipe: Recipe) -> None:
    """The older form, of which each rank reads its own file, in the recipe's precision."""
    folder = path / "zero" / "zero"
    found = {f: m for f in sorted(folder.glob("*.pt")) if (m := _SHARD.fullmatch(f.name))}
    ranks = {int(match[2]) for match in found.values()}
    if not ranks or ranks != set(range(len(ranks))):
        raise UserError(
            f"{folder} lacks the state of learner ranks (it has {len(ranks)}). {_OTHER}"
        )
    for file in folder.glob("*.pt"):
        if not zipfile.is_zipfile(file):  # as torch writes them; the end says what is inside
            raise UserError(f"{file} is damaged or cut short. {_OTHER}")
    afresh = f"or start a new run from its weights, model.path={path / 'hf'}"
    if len(ranks) != recipe.learner.ranks:
        raise UserError(
            f"learner.ranks was {len(ranks)} when {path} was saved, where each rank has its shard, "
            f"and is {recipe.learner.ranks} now: set learner.ranks={len(ranks)}, {afresh}"
        )
    dtype = "bfloat16" if any(match[1] for match in found.values()) else "float32"
    if dtype != recipe.model.dtype:
        raise UserError(
            f"{path} was saved in {dtype}, and model.dtype is {recipe.model.dtype}: set "
            f"model.dtype={dtype}, {afresh}"
        )


def _check_model(path: Path, recipe: Recipe) -> None:
    saved = _json(path / "hf" / "config.json")
    wanted = _model_of(recipe)
    if wanted is None:
        return
    differing = [
        f"{key}: {saved[key]} there, {wanted[key]} here"
        for key in _SHAPES
        if key in saved and key in wanted and saved[key] != wanted[key]
    ]
    if differing:
        raise UserError(
            f"{path} is of another model than the recipe's:\n  " + "\n  ".join(differing) + "\nSet "
            "model back to what that run began with, or start a new run from its weights, "
            f"model.path={path / 'hf'}"
        )


def _model_of(recipe: Recipe) -> dict[str, Any] | None:
    """The configuration of the recipe's model; None for one that is not here yet."""
    path, build = recipe.model.path, recipe.model.build
    if path is None:
        assert build is not None
        return model_config(build, build_tokenizer(build)).to_dict()
    folder = at_hand(path)
    if folder is None:
        return None
    return read_config(str(folder), recipe.model.trust_remote_code).to_dict()


def _check_adapters(path: Path, recipe: Recipe) -> None:
    lora, described = recipe.learner.lora, path / "adapter" / "adapter_config.json"
    if lora is None:
        if described.exists():
            raise UserError(
                f"{path} holds adapters, and the recipe has no learner.lora: give it the settings "
                f"that they were trained with, or start a new run with model.path={path / 'hf'}"
            )
        return
    if not described.exists():
        raise UserError(
            f"{path} holds no adapters, and the recipe trains some (learner.lora): leave it out, "
            f"or start a new run with model.path={path / 'hf'}"
        )
    saved = _json(described)
    then = (saved.get("r"), sorted(saved.get("target_modules") or ()))
    now = (lora.rank, sorted(lora.targets))
    if then != now:
        raise UserError(
            f"{path} holds adapters of rank {then[0]} on {', '.join(then[1])}, and learner.lora "
            f"says rank {now[0]} on {', '.join(now[1])}: set rank and targets to those"
        )


def _json(file: Path) -> dict[str, Any]:
    try:
        said: Any = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({error}). {_OTHER}") from None
    if not isinstance(said, dict):
        raise UserError(f"{file} holds no JSON object. {_OTHER}")
    return said


def _owner(path: Path) -> RunFolder | None:
    """The run that wrote a checkpoint: RUN/checkpoints/step_N, or below RUN/set_aside/TIME."""
    for above in list(path.parents)[1:4]:
        if (above / "recipe.yaml").is_file():
            return RunFolder(above)
    return None


def _compare(path: Path, owner: RunFolder, recipe: Recipe, screen: Screen) -> None:
    conflicts = [
        line for line in owner.recipe_conflicts(resolved(recipe)) if not line.startswith("name:")
    ]
    if optimizer := [line for line in conflicts if line.startswith("learner.optimizer:")]:
        raise UserError(
            f"{path} holds the state of another optimizer ({optimizer[0]}): set it back, or start "
            f"a new run from its weights, model.path={path / 'hf'}"
        )
    if conflicts:
        screen.note(
            f"{path} is of the run {owner.path}; from here on another recipe holds:\n  "
            + "\n  ".join(conflicts)
        )
    else:
        screen.note(f"{path} is of the run {owner.path}, whose recipe computes the same")
