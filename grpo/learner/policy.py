"""The policy as the learner sees it: packed tokens in, logprobs of the response tokens out."""

import importlib.util
from collections.abc import Callable
from dataclasses import astuple, dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.modeling_layers import GradientCheckpointingLayer

from grpo.learner import attention
from grpo.learner.head import LogprobHead
from grpo.types import MicroBatch


class Policy(nn.Module):
    """A causal language model whose head scores the targets instead of giving logits."""

    def __init__(self, model: Any, temperature: float):
        super().__init__()
        self.model = model
        self.model.lm_head = LogprobHead.replacing(model.lm_head)
        self._temperature = temperature
        self._attention = model.config._attn_implementation
        self._dtype = model.dtype

    def forward(
        self,
        input_ids_S: torch.Tensor,
        position_ids_S: torch.Tensor,
        where: attention.Segments,
        predict_T: torch.Tensor,
        targets_T: torch.Tensor,
        *,
        entropy: bool = True,
        temperature: float | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """[T] logprobs, and [T] entropies where they are asked for; see `grpo.types.MicroBatch`
        for the arguments. `temperature`: None for the one that responses are sampled at."""
        hidden = self.model.model(
            input_ids=input_ids_S[None],
            position_ids=position_ids_S[None],
            use_cache=False,
            **attention.arguments(self._attention, where, self._dtype),
        ).last_hidden_state[0]
        chosen_TH = hidden.index_select(0, predict_T)
        if temperature is None:
            temperature = self._temperature
        return self.model.lm_head(chosen_TH, targets_T, temperature, entropy)


@dataclass(frozen=True, slots=True, eq=False)
class Loaded:
    """A micro-batch on the device, and how it lies there, which was read before it moved."""

    micro: MicroBatch
    where: attention.Segments

    @classmethod
    def onto(cls, device: torch.device, micro: MicroBatch) -> "Loaded":
        where = attention.segments(micro.cu_seqlens, micro.position_ids_S)
        moved = MicroBatch(*(tensor.to(device) for tensor in astuple(micro)))
        return cls(moved, where.to(device))

    @property
    def inputs(self) -> tuple[Any, ...]:
        """What `Policy.forward` takes."""
        micro = self.micro
        return (
            micro.input_ids_S,
            micro.position_ids_S,
            self.where,
            micro.predict_T,
            micro.targets_T,
        )


def score(policy: Callable[..., Any], loaded: Loaded) -> torch.Tensor:
    """[T] logprobs of the response tokens, without the entropies that only a step needs. `policy`
    is a `Policy`, or the engine around one."""
    logprobs_T, _ = policy(*loaded.inputs, entropy=False)
    return logprobs_T


def attention_implementation() -> str:
    """The best varlen attention that is installed; ours where there is none."""
    if torch.cuda.is_available():
        hopper = torch.cuda.get_device_capability()[0] == 9
        if hopper and importlib.util.find_spec("flash_attn_interface"):
            return "flash_attention_3"
        if importlib.util.find_spec("flash_attn"):
            return "flash_attention_2"
    return attention.PACKED


def load_policy(
    path: str,
    dtype: torch.dtype,
    temperature: float,
    gradient_checkpointing: bool,
    checkpoint_every: int = 1,
    *,
    trust: bool = False,
) -> Policy:
    """Loads the model and puts it into training shape. Inside a live `HfDeepSpeedConfig` the
    weights are partitioned while they load. `trust`: the model's own code may be run."""
    implementation = attention_implementation()
    attention.register(implementation)
    model = AutoModelForCausalLM.from_pretrained(
        path, dtype=dtype, attn_implementation=implementation, trust_remote_code=trust
    )
    model.config.use_cache = False
    if gradient_checkpointing:
        checkpoint_layers(model, checkpoint_every)
    model.train()
    return Policy(model, temperature)


def checkpoint_layers(model: Any, every: int) -> None:
    """Layers 0, every, 2 every, ... are computed again in backward; the others keep what they
    need, which costs memory and saves their second forward."""
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    # Not by gradient_checkpointing_enable's own argument, which older transformers lack.
    layers = [part for part in model.modules() if isinstance(part, GradientCheckpointingLayer)]
    for number, layer in enumerate(layers):
        layer.gradient_checkpointing = number % every == 0
