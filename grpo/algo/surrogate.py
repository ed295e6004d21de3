"""Logprobs become an objective per token, to be maximised.

N = responses of a micro-batch, T = their tokens; `row_T` maps a token to its response. Every part
is `(logprobs_T, old_logprobs_T, advantages_N, row_T, *, options) -> objective_T`, differentiable
in logprobs_T and of its dtype.
"""

from collections.abc import Callable
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from grpo.registry import Registry

SURROGATES: Registry[Callable[..., Tensor]] = Registry("surrogate")

MAX_LOG_RATIO = 20.0


def _ratio(logprobs_T: Tensor, old_logprobs_T: Tensor) -> Tensor:
    """pi / pi_old. Bounded by e^20, as in verl: an infinite ratio would turn the zero gradient of
    a clipped token into 0 * inf = nan."""
    return (logprobs_T - old_logprobs_T.detach()).clamp(max=MAX_LOG_RATIO).exp()


@SURROGATES.register("ppo_clip")
def ppo_clip(
    logprobs_T: Tensor,
    old_logprobs_T: Tensor,
    advantages_N: Tensor,
    row_T: Tensor,
    *,
    clip_low: Annotated[float, Field(ge=0, le=1)] = 0.2,
    clip_high: Annotated[float, Field(ge=0)] = 0.28,
    dual_clip: Annotated[float, Field(gt=1)] | None = 10.0,
) -> Tensor:
    """min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A), and for A < 0 not below dual_clip * A,
    [T] (PPO, arXiv 1707.06347, eq. 7; bounds of DAPO, arXiv 2503.14476; dual clip, 1912.09729)."""
    advantages_T = advantages_N.detach().to(logprobs_T.dtype)[row_T]
    ratio_T = _ratio(logprobs_T, old_logprobs_T)
    clipped_T = ratio_T.clamp(1 - clip_low, 1 + clip_high)
    objective_T = torch.minimum(ratio_T * advantages_T, clipped_T * advantages_T)
    if dual_clip is None:
        return objective_T
    floor_T = torch.maximum(objective_T, dual_clip * advantages_T)
    return torch.where(advantages_T < 0, floor_T, objective_T)


@torch.no_grad()
def clip_fractions(
    logprobs_T: Tensor,
    old_logprobs_T: Tensor,
    advantages_N: Tensor,
    row_T: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
) -> tuple[Tensor, Tensor]:
    """Shares of the T tokens whose gradient the clip removed: (A < 0 below 1 - clip_low,
    A > 0 above 1 + clip_high), two detached scalars; 0 where there is no token.

    Over several micro-batches weigh them by T, or the result is a mean of means.
    """
    advantages_T = advantages_N[row_T]
    ratio_T = _ratio(logprobs_T, old_logprobs_T)
    num_tokens = max(1, len(row_T))
    low = ((advantages_T < 0) & (ratio_T < 1 - clip_low)).sum() / num_tokens
    high = ((advantages_T > 0) & (ratio_T > 1 + clip_high)).sum() / num_tokens
    return low, high
