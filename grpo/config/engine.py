"""Arguments of vLLM's engine that have a key of their own, or that samples are read by."""

import math
from collections.abc import Mapping
from typing import Any

# In a recipe, and for `grpo eval`; an empty word: nothing sets it.
_KEYS: Mapping[str, tuple[str, str]] = {
    "model": ("model.path", "the model that is evaluated"),
    "dtype": ("model.dtype", "--dtype"),
    "tensor_parallel_size": ("rollout.tensor_parallel", "--tensor-parallel"),
    "trust_remote_code": ("model.trust_remote_code", "--trust-remote-code"),
    "max_model_len": ("rollout.max_model_len", ""),
    "seed": ("seed", ""),
    "logprobs_mode": ("", ""),
    "skip_tokenizer_init": ("", ""),
    "generation_config": ("", ""),
    "weight_transfer_config": ("sync.transport", ""),
}


def refused(engine: Mapping[str, Any], *, of_eval: bool = False) -> str | None:
    """Why these arguments cannot be passed on; None where they can. An evaluation may set the
    length of the context, which it has no other option for."""
    for key, value in engine.items():
        if _is_endless(value):
            return f"{key} (to {value!r}): use a number that is finite, or leave it out"
        if key not in _KEYS or (of_eval and key == "max_model_len"):
            continue
        instead = _KEYS[key][of_eval]
        how = f"set {instead} instead" if instead else "it cannot be changed, leave it out"
        return f"{key} (to {engine[key]!r}): {how}"
    return None


def _is_endless(value: Any) -> bool:
    """Whether it is, or has in it, an infinite number or NaN."""
    if isinstance(value, Mapping):
        return any(map(_is_endless, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_is_endless, value))
    return isinstance(value, float) and not math.isfinite(value)
