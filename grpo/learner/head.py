"""The language-model head that gives logprobs of chosen tokens and never holds [T, V] logits."""

import torch
from torch import nn

from grpo.learner.head_kernels import tiled


class LogprobHead(nn.Linear):
    """Takes the place of `lm_head`: same weight, but called with the tokens to score.

    It stays a module so that ZeRO-3's hooks gather the weight before its forward and before its
    backward, tied to the embedding or not.
    """

    @classmethod
    def replacing(cls, linear: nn.Linear) -> "LogprobHead":
        """Makes this layer such a head."""
        assert linear.bias is None, "language-model heads with a bias are not supported"
        linear.__class__ = cls
        assert isinstance(linear, LogprobHead)
        return linear

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        hidden_TH: torch.Tensor,
        targets_T: torch.Tensor,
        temperature: float,
        entropy: bool = True,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """[T] logprobs of the targets and [T] entropies in nats (None unless asked for), both
        float32 (float64 where the weight is). An entropy costs forward a sum and backward nothing
        where no loss uses it."""
        return tiled(hidden_TH, self.weight, targets_T, temperature, entropy)
