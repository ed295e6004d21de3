"""What low-rank adapters come to on a given model, before anything is started."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from grpo.config.lora import LoraConfig
from grpo.config.recipe import ModelConfig
from grpo.errors import UserError
from grpo.learner.base_model import looks_local
from grpo.learner.build import build_tokenizer, model_config
from grpo.learner.model_files import read_config, without_memory
from grpo.registry import nearest

# Its logprobs are made tile by tile from its weight alone, see `grpo.learner.head`.
_HEAD = "lm_head"


def check_lora(lora: LoraConfig, model: ModelConfig) -> str:
    """What trains, in words. Raises UserError for targets or a rank that do not fit the model. One
    on the hub is looked at once it is here, by `describe`."""
    if model.path is None:
        assert model.build is not None
        config = model_config(model.build, build_tokenizer(model.build))
        return _describe(lora, without_memory(config))
    if not looks_local(model.path):
        return f"{_settings(lora)}; targets are looked for once the model is here"
    return describe(lora, str(Path(model.path).expanduser()), model.trust_remote_code)


def describe(lora: LoraConfig, folder: str, trust: bool = False) -> str:
    """The same for the model in a folder. `trust`: its own code may be run."""
    return _describe(lora, without_memory(read_config(folder, trust), trust))


def _describe(lora: LoraConfig, model: Any) -> str:
    layers = {
        name: part
        for name, part in model.named_modules()
        if isinstance(part, nn.Linear) and name != _HEAD
    }
    trained = sum(
        lora.rank * (layer.in_features + layer.out_features)
        for target in lora.targets
        for layer in _adapted(target, layers, lora)
    )
    whole = trained + sum(parameter.numel() for parameter in model.parameters())
    return f"{_millions(trained)} of {_millions(whole)} parameters train ({_settings(lora)})"


def _millions(count: int) -> str:
    return f"{count / 1e6:,.0f} M" if count >= 1e9 else f"{count / 1e6:.3g} M"


def _settings(lora: LoraConfig) -> str:
    return f"rank {lora.rank}, alpha {lora.alpha:g}"


def _adapted(target: str, layers: Mapping[str, nn.Linear], lora: LoraConfig) -> Iterator[nn.Linear]:
    """The layers that peft finds for a target: those whose own name it is, whatever they are in."""
    names = [name for name in layers if name.rsplit(".", 1)[-1] == target]
    if target == _HEAD:
        raise UserError(f"learner.lora.targets: {_HEAD} cannot have an adapter: leave it out")
    if not names:
        known = list(dict.fromkeys(name.rsplit(".", 1)[-1] for name in layers))
        raise UserError(
            f"learner.lora.targets: the model has no linear layer {target!r}"
            f"{nearest(target, known)} It has {', '.join(known)}"
        )
    for name in names:
        layer = layers[name]
        most = min(layer.in_features, layer.out_features)
        if lora.rank > most:
            raise UserError(
                f"learner.lora.rank is {lora.rank}, but {name} is {layer.out_features} x "
                f"{layer.in_features}, and no update of it has a rank above {most}: lower the "
                f"rank, or leave {target} out of learner.lora.targets"
            )
        yield layer
