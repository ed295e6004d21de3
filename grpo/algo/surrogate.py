"""Logprobs become an objective per token, to be maximised.

N = responses of a micro-batch, T = their tokens; `row_T` maps a token to its response. Every part
is `(logprobs_T, old_logprobs_T, advantages_N, row_T, *, options) -> objective_T`, differentiable
in logprobs_T and of its dtype. A part about whole sequences repeats the sequence's objective on
each of its tokens, so that `seq_mean_token_mean` weights give back the mean over sequences.
"""

from collections.abc import Callable
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from grpo.registry import Registry

SURROGATES: Registry[Callable[..., Tensor]] = Registry("surrogate")

MAX_LOG_RATIO = 20.0


def _log_ratio(logprobs_T: Tensor, old_logprobs_T: Tensor) -> Tensor:
    """log(pi / pi_old), at most 20, as in verl: an infinite ratio would turn the zero gradient of
    a clipped token into 0 * inf = nan."""
    return (logprobs_T - old_logprobs_T.detach()).clamp(max=MAX_LOG_RATIO)


def _per_token(advantages_N: Tensor, logprobs_T: Tensor, row_T: Tensor) -> Tensor:
    return advantages_N.detach().to(logprobs_T.dtype)[row_T]


def _row_means(values_T: Tensor, row_T: Tensor, num_rows: int) -> Tensor:
    """[N] the mean over each response's tokens; 0 where it has none."""
    sums_N = values_T.new_zeros(num_rows).index_add(0, row_T, values_T)
    return sums_N / torch.bincount(row_T, minlength=num_rows).clamp(min=1)


def _clipped(ratio: Tensor, advantages: Tensor, low: float, high: float) -> Tensor:
    """min(ratio A, clip(ratio, 1 - low, 1 + high) A)."""
    return torch.minimum(ratio * advantages, ratio.clamp(1 - low, 1 + high) * advantages)


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
    advantages_T = _per_token(advantages_N, logprobs_T, row_T)
    ratio_T = _log_ratio(logprobs_T, old_logprobs_T).exp()
    objective_T = _clipped(ratio_T, advantages_T, clip_low, clip_high)
    if dual_clip is None:
        return objective_T
    floor_T = torch.maximum(objective_T, dual_clip * advantages_T)
    return torch.where(advantages_T < 0, floor_T, objective_T)


@SURROGATES.register("gspo")
def gspo(
    logprobs_T: Tensor,
    old_logprobs_T: Tensor,
    advantages_N: Tensor,
    row_T: Tensor,
    *,
    clip_low: Annotated[float, Field(ge=0, le=1)] = 3e-4,
    clip_high: Annotated[float, Field(ge=0)] = 4e-4,
) -> Tensor:
    """min(s A, clip(s) A) with s the geometric mean of a response's ratios, the same on each of
    its tokens, [T] (GSPO, arXiv 2507.18071, eq. 5 to 7). Use with seq_mean_token_mean; with
    `luspo` it is LUSPO (arXiv 2602.05261)."""
    log_ratio_T = _log_ratio(logprobs_T, old_logprobs_T)
    ratio_N = _row_means(log_ratio_T, row_T, len(advantages_N)).exp()
    advantages_N = advantages_N.detach().to(logprobs_T.dtype)
    return _clipped(ratio_N, advantages_N, clip_low, clip_high)[row_T]


@SURROGATES.register("gspo_token")
def gspo_token(
    logprobs_T: Tensor,
    old_logprobs_T: Tensor,
    advantages_N: Tensor,
    row_T: Tensor,
    *,
    clip_low: Annotated[float, Field(ge=0, le=1)] = 3e-4,
    clip_high: Annotated[float, Field(ge=0)] = 4e-4,
) -> Tensor:
    """GSPO's value with a gradient per token: s_t = sg[s] pi_t / sg[pi_t], [T] (GSPO-token, arXiv
    2507.18071, eq. 13 and 14). With one advantage per response its gradient is that of `gspo`."""
    log_ratio_T = _log_ratio(logprobs_T, old_logprobs_T).detach()
    ratio_N = _row_means(log_ratio_T, row_T, len(advantages_N)).exp()
    ratio_T = ratio_N[row_T] * (logprobs_T - logprobs_T.detach()).exp()
    advantages_T = _per_token(advantages_N, logprobs_T, row_T)
    return _clipped(ratio_T, advantages_T, clip_low, clip_high)


@SURROGATES.register("gmpo")
def gmpo(
    logprobs_T: Tensor,
    old_logprobs_T: Tensor,
    advantages_N: Tensor,
    row_T: Tensor,
    *,
    clip_low: Annotated[float, Field(ge=0)] = 0.4,
    clip_high: Annotated[float, Field(ge=0)] = 0.4,
) -> Tensor:
    """A times the geometric mean of ratios that are clipped token by token to
    (e^-clip_low, e^clip_high) where A would push them further, the same on each token, [T]
    (GMPO, arXiv 2507.20673, eq. 4). Use with seq_mean_token_mean."""
    signs_T = _per_token(advantages_N, logprobs_T, row_T).sign()
    log_ratio_T = _log_ratio(logprobs_T, old_logprobs_T)
    clipped_T = log_ratio_T.clamp(-clip_low, clip_high)
    least_T = signs_T * torch.minimum(signs_T * log_ratio_T, signs_T * clipped_T)
    ratio_N = _row_means(least_T, row_T, len(advantages_N)).exp()
    return (advantages_N.detach().to(logprobs_T.dtype) * ratio_N)[row_T]


@SURROGATES.register("cispo")
def cispo(
    logprobs_T: Tensor,
    old_logprobs_T: Tensor,
    advantages_N: Tensor,
    row_T: Tensor,
    *,
    clip_low: Annotated[float, Field(ge=0, le=1)] = 1.0,
    clip_high: Annotated[float, Field(ge=0)] = 4.0,
) -> Tensor:
    """sg[clip(rho, 1 - clip_low, 1 + clip_high)] A log pi, [T] (CISPO, arXiv 2506.13585, eq. 4
    and 5): a clipped token keeps its gradient.

    The defaults leave the lower side open, as the paper does, and bound rho by 5, as ScaleRL does.
    TRL's `epsilon_high` is that bound itself (1 + clip_high), verl's is clip_high.
    """
    ratio_T = _log_ratio(logprobs_T, old_logprobs_T).exp().detach()
    factor_T = ratio_T.clamp(1 - clip_low, 1 + clip_high)
    return factor_T * _per_token(advantages_N, logprobs_T, row_T) * logprobs_T


@SURROGATES.register("sapo")
def sapo(
    logprobs_T: Tensor,
    old_logprobs_T: Tensor,
    advantages_N: Tensor,
    row_T: Tensor,
    *,
    tau_positive: Annotated[float, Field(gt=0)] = 1.0,
    tau_negative: Annotated[float, Field(gt=0)] = 1.05,
) -> Tensor:
    """A (4 / tau) sigmoid(tau (rho - 1)), tau by the sign of A, [T] (SAPO, arXiv 2511.20347): a
    soft gate of slope 1 at rho = 1 in the place of the clip. Use with seq_mean_token_mean."""
    advantages_T = _per_token(advantages_N, logprobs_T, row_T)
    ratio_T = _log_ratio(logprobs_T, old_logprobs_T).exp()
    tau_T = torch.where(advantages_T > 0, torch.full_like(ratio_T, tau_positive), tau_negative)
    return advantages_T * (4 / tau_T) * torch.sigmoid(tau_T * (ratio_T - 1))


def clip_fractions(
    surrogate: Callable[..., Tensor],
    logprobs_T: Tensor,
    old_logprobs_T: Tensor,
    advantages_N: Tensor,
    row_T: Tensor,
) -> tuple[Tensor, Tensor]:
    """Shares of the T tokens that got no gradient from this surrogate (its options bound):
    (A < 0, A > 0), two detached scalars; 0 where there is no token.

    Read off the gradient itself, so that it holds for any surrogate. Over several micro-batches
    weigh them by T, or the result is a mean of means.
    """
    with torch.enable_grad():
        leaf_T = logprobs_T.detach().requires_grad_()
        objective_T = surrogate(leaf_T, old_logprobs_T, advantages_N, row_T)
        (gradient_T,) = torch.autograd.grad(objective_T.sum(), leaf_T)
    advantages_T = advantages_N[row_T]
    num_tokens = max(1, len(row_T))
    low = ((advantages_T < 0) & (gradient_T == 0)).sum() / num_tokens
    high = ((advantages_T > 0) & (gradient_T == 0)).sum() / num_tokens
    return low, high
