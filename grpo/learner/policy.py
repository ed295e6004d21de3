"""The policy as the learner sees it: packed tokens in, logprobs of the response tokens out."""

import importlib.util
from dataclasses import astuple
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM

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
        self._packed = model.config._attn_implementation == attention.PACKED

    def forward(
        self,
        input_ids_S: torch.Tensor,
        position_ids_S: torch.Tensor,
        cu_seqlens: torch.Tensor,
        predict_T: torch.Tensor,
        targets_T: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """[T] logprobs and [T] entropies; see `grpo.types.MicroBatch` for the arguments."""
        extra: dict[str, Any]
        if self._packed:
            extra = {"packed_rows": attention.row_index(cu_seqlens)}
        else:
            longest = int(cu_seqlens.diff().max())
            extra = {
                "cu_seq_lens_q": cu_seqlens,
                "cu_seq_lens_k": cu_seqlens,
                "max_length_q": longest,
                "max_length_k": longest,
            }
        hidden = self.model.model(
            input_ids=input_ids_S[None],
            position_ids=position_ids_S[None],
            use_cache=False,
            **extra,
        ).last_hidden_state[0]
        return self.model.lm_head(hidden[predict_T], targets_T, self._temperature)


def attention_implementation() -> str:
    """The best varlen attention that is installed; our padded rows where there is none."""
    if torch.cuda.is_available():
        hopper = torch.cuda.get_device_capability()[0] == 9
        if hopper and importlib.util.find_spec("flash_attn_interface"):
            return "flash_attention_3"
        if importlib.util.find_spec("flash_attn"):
            return "flash_attention_2"
    attention.register()
    return attention.PACKED


def load_policy(
    path: str, dtype: torch.dtype, temperature: float, gradient_checkpointing: bool
) -> Policy:
    """Loads the model and puts it into training shape. Inside a live `HfDeepSpeedConfig` the
    weights are partitioned while they load."""
    model = AutoModelForCausalLM.from_pretrained(
        path, dtype=dtype, attn_implementation=attention_implementation()
    )
    model.config.use_cache = False
    if gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    return Policy(model, temperature)


def to_device(micro: MicroBatch, device: torch.device) -> MicroBatch:
    """The same micro-batch with every tensor on the device."""
    return MicroBatch(*(tensor.to(device) for tensor in astuple(micro)))
