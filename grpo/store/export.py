"""The model of a checkpoint alone, checked and copied."""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo.errors import UserError
from grpo.store.checkpoint import RunFolder, TrainState
from grpo.store.disk import as_disk_full
from grpo.store.files import fsync_path

_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_NEEDED = ("config.json", "tokenizer_config.json")
_MEND = "Take another checkpoint"


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written, of which checkpoint."""

    checkpoint: Path
    step: int
    num_tensors: int
    num_bytes: int


def export_model(target: Path, out: Path) -> Exported:
    """Copies the Hugging Face folder of a checkpoint, or of a run's newest one, to `out`, which is
    whole or not there. Raises UserError where it is not complete or holds weights that are not
    finite, and where `out` holds something already."""
    checkpoint = _checkpoint(target)
    step, model = TrainState.load(checkpoint).step, checkpoint / "hf"
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out} is there already: name a folder that is new or empty")
    names = _checked(model)
    writing = out.resolve().with_name(f".{out.resolve().name}.writing")
    try:
        shutil.rmtree(writing, ignore_errors=True)  # of an export that was killed
        num_bytes = _copy(model, writing)
        if _checked(writing) != names:
            raise UserError(f"{writing} does not have the tensors of {model}: export it again")
        os.rename(writing, out.resolve())
        fsync_path(out.resolve().parent)
    except OSError as error:
        full = as_disk_full(f"export to {out}", error)
        raise full or UserError(f"{out} cannot be written: {error}") from error
    finally:
        shutil.rmtree(writing, ignore_errors=True)
    return Exported(checkpoint, step, len(names), num_bytes)


def _checkpoint(target: Path) -> Path:
    """The folder of a checkpoint: a run's newest one where a run is given."""
    if (target / "recipe.yaml").is_file():
        newest = RunFolder(target).latest_checkpoint()
        if newest is None:
            raise UserError(f"run {target} has no checkpoint yet")
        return newest
    if not (target / "state.json").is_file():
        raise UserError(
            f"{target} is neither a checkpoint (no state.json) nor a run (no recipe.yaml): name "
            "one such as runs/NAME/checkpoints/step_000050, or runs/NAME for its newest"
        )
    return target.resolve()


def _copy(source: Path, to: Path) -> int:
    """Copies the files of a folder and puts them on the disk; their bytes."""
    to.mkdir(parents=True)
    copies = [shutil.copyfile(path, to / path.name) for path in source.iterdir() if path.is_file()]
    for copy in copies:
        fsync_path(copy)
    fsync_path(to)
    return sum(copy.stat().st_size for copy in copies)


def _checked(model: Path) -> list[str]:
    """The names of all tensors. Raises UserError where a file is missing or damaged, or a weight is
    not finite."""
    if not model.is_dir():
        raise UserError(f"{model} is missing: the checkpoint holds no model. {_MEND}")
    for name in _NEEDED:
        _json(model / name)
    names: list[str] = []
    for file, wanted in _weights(model).items():
        found = _finite_tensors(model / file)
        if wanted is not None and (differ := sorted(set(found) ^ set(wanted))):
            raise UserError(
                f"{model / file} and {model / _INDEX} name different tensors, such as {differ[0]}. "
                f"{_MEND}"
            )
        names += found
    return sorted(names)


def _weights(model: Path) -> dict[str, list[str] | None]:
    """The files of weights, with the tensors that the index says are in each; None without one."""
    if not (model / _INDEX).is_file():
        return {_WEIGHTS: None}
    index = _json(model / _INDEX).get("weight_map")
    if not isinstance(index, dict) or not index:
        raise UserError(f"{model / _INDEX} has no weight_map. {_MEND}")
    return {
        file: [n for n, f in index.items() if f == file] for file in sorted(set(index.values()))
    }


def _finite_tensors(path: Path) -> list[str]:
    import torch  # takes a second, which a mistake in the arguments should not cost
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise UserError(f"{path} is missing. {_MEND}")
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            for name in names:
                bad = int((~torch.isfinite(file.get_tensor(name))).sum())
                if bad:
                    raise UserError(f"{path}: {name} has {bad} values that are not finite. {_MEND}")
    except SafetensorError as error:
        raise UserError(f"{path} is damaged or cut short ({error}). {_MEND}") from None
    if not names:
        raise UserError(f"{path} holds no tensor. {_MEND}")
    return names


def _json(path: Path) -> dict[str, Any]:
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing. {_MEND}") from None
    except ValueError as error:
        raise UserError(f"{path} is no JSON ({error}). {_MEND}") from None
    if not isinstance(said, dict):
        raise UserError(f"{path} should hold an object. {_MEND}")
    return said
