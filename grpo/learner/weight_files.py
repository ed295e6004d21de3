"""What a model's safetensors files hold, looked at before anything loads them."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from grpo.errors import UserError

_INDEX = "model.safetensors.index.json"
_ONE = "model.safetensors"
_ROWS = 8192  # of a matrix, compared at a time
_AGAIN = "Fetch the file again"


def check_weights(folder: Path, tied: bool) -> str:
    """What was looked at, in words. Raises UserError for files that are cut short or missing, and
    for a head that transformers and vLLM would read differently. `tied`: the configuration says
    that the head is the embedding's matrix."""
    if not any(folder.glob("*.safetensors")) and not (folder / _INDEX).is_file():
        return "not looked at: no safetensors files here"
    places = tensor_files(folder)
    embedding = _only(places, "embed_tokens.weight")
    head = _only(places, "lm_head.weight")
    if embedding is None:
        return "whole; no embedding by a known name, so the head was not compared"
    if not tied and not any("lm_head." in name for name in places):
        raise UserError(
            f"{folder}: config.json says tie_word_embeddings false, and the weights hold no "
            "lm_head: it would be drawn at random. Set tie_word_embeddings to true if the head is "
            "the embedding's matrix, or fetch the model again"
        )
    if not tied or head is None:
        return "whole"
    if _differ(_opened(places[head], head), _opened(places[embedding], embedding)):
        raise UserError(
            f"{folder}: config.json says tie_word_embeddings true, but the weights hold a {head} "
            f"that differs from {embedding}. The learner would use the embedding for both and vLLM "
            "the head. If the head was trained by itself, set tie_word_embeddings to false in "
            f"config.json; if it is left over, remove {head} from the weights (load the model with "
            "transformers and save it again)"
        )
    return "whole; the head is the embedding"


def tensor_files(folder: Path) -> dict[str, Path]:
    """Tensor -> the file that it is in, of all the model's safetensors, each of which is opened.
    Raises UserError for one that is missing or cut short."""
    index = folder / _INDEX
    if not index.is_file():
        alone = folder / _ONE
        files = [alone] if alone.is_file() else sorted(folder.glob("*.safetensors"))
        return {name: file for file in files for name in _names(file)}
    listed = _listed(index)
    inside = {file: set(_names(folder / file)) for file in sorted(set(listed.values()))}
    for name, file in listed.items():
        if name not in inside[file]:
            raise UserError(f"{folder / file} has no {name}, which {index} says. {_AGAIN}")
    return {name: folder / file for name, file in listed.items()}


def listed_files(folder: Path) -> set[str]:
    """The files of weights that the index names; none where there is no index."""
    index = folder / _INDEX
    return set(_listed(index).values()) if index.is_file() else set()


def _listed(index: Path) -> dict[str, str]:
    """Tensor -> file, as the index says."""
    try:
        return dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{index} cannot be read ({type(error).__name__}: {error}). {_AGAIN}"
        ) from None


def _names(file: Path) -> list[str]:
    try:
        with safe_open(file, framework="pt") as opened:
            return list(opened.keys())
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"the weights {file} cannot be read ({type(error).__name__}: {error}). {_AGAIN}: it "
            "may be cut short"
        ) from None


def _only(names: dict[str, Path], ending: str) -> str | None:
    """The one tensor of that name, whatever it is inside of; None where there is not one alone."""
    found = [name for name in names if name == ending or name.endswith(f".{ending}")]
    return found[0] if len(found) == 1 else None


def _opened(file: Path, name: str) -> Any:
    """A tensor that is read row by row, not whole."""
    return safe_open(file, framework="pt").get_slice(name)


def _differ(one: Any, other: Any) -> bool:
    if one.get_shape() != other.get_shape():
        return True
    rows = one.get_shape()[0]
    return any(
        not torch.equal(one[at : at + _ROWS].float(), other[at : at + _ROWS].float())
        for at in range(0, rows, _ROWS)
    )
