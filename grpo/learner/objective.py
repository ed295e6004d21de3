"""From logprobs to a loss: surrogate, correction, KL and entropy, with the batch's weights."""

from dataclasses import dataclass

import torch
from torch import Tensor

from grpo.algo import CORRECTIONS, SURROGATES
from grpo.algo.regularize import kl_estimate
from grpo.algo.surrogate import clip_fractions
from grpo.config.recipe import Recipe
from grpo.types import MicroBatch


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """What the models say of a micro-batch's T response tokens.

    logprobs_T and entropy_T: the policy now, differentiable; old_T: the weights that sampled;
    reference_T: the model that the run began with, where KL is on.
    """

    logprobs_T: Tensor
    entropy_T: Tensor
    old_T: Tensor
    reference_T: Tensor | None = None


class Objective:
    """loss = - sum w f objective + kl sum v KL - entropy sum v H, over all tokens: w the weight of
    the response by the aggregator, v by the sign-blind rule, f the sampler's correction."""

    def __init__(self, recipe: Recipe):
        self._surrogate = SURROGATES.bind(recipe.surrogate.name, recipe.surrogate.options)
        self._correction = None
        if (name := recipe.correction_name()) != "none":
            self._correction = CORRECTIONS.bind(name, recipe.correction.options)
        self._terms = recipe.regularization

    def loss(self, micro: MicroBatch, scores: Scores) -> tuple[Tensor, dict[str, Tensor]]:
        """The micro-batch's part of the loss, and of the sums that are logged.

        Sums end in _sum: over the tokens of real sequences, or, for losses, over everything. They
        are float64 and stay on the device: to read one here would hold up every micro-batch.
        """
        objective_T = self._surrogate(
            scores.logprobs_T, scores.old_T, micro.advantages_N, micro.row_T
        )
        real_T = (micro.rows_N >= 0)[micro.row_T]
        sums = self._measures(micro, scores, real_T)
        if self._correction is not None:
            factor_T = self._correction(scores.old_T, micro.sampler_logprobs_T, micro.row_T)
            objective_T = objective_T * factor_T
            sums["correction_sum"] = (factor_T * real_T).sum().double()
        loss = -(micro.weights_N[micro.row_T] * objective_T).sum()
        sums["pg_loss_sum"] = loss.detach().double()
        loss = loss + self._regularization(micro, scores, real_T, sums)
        sums["loss_sum"] = loss.detach().double()
        return loss, sums

    def by_sequence(self, micro: MicroBatch, logprobs_T: Tensor, old_T: Tensor) -> Tensor:
        """[n] each sequence's part of the policy's loss; without KL and entropy."""
        with torch.no_grad():
            objective_T = self._surrogate(logprobs_T, old_T, micro.advantages_N, micro.row_T)
            if self._correction is not None:
                factor_T = self._correction(old_T, micro.sampler_logprobs_T, micro.row_T)
                objective_T = objective_T * factor_T
            parts_T = -micro.weights_N[micro.row_T] * objective_T
            zeros_N = parts_T.new_zeros(len(micro.rows_N))
            return zeros_N.index_add(0, micro.row_T, parts_T)

    def _regularization(
        self, micro: MicroBatch, scores: Scores, real_T: Tensor, sums: dict[str, Tensor]
    ) -> Tensor:
        weights_T = micro.regular_weights_N[micro.row_T]
        total = scores.logprobs_T.new_zeros(())
        if self._terms.kl:
            assert scores.reference_T is not None, "KL needs the reference's logprobs"
            kl_T = kl_estimate(scores.logprobs_T, scores.reference_T, self._terms.kl_estimator)
            total = total + self._terms.kl * (weights_T * kl_T).sum()
            sums["kl_reference_sum"] = (kl_T.detach() * real_T).sum().double()
        if self._terms.entropy:
            total = total - self._terms.entropy * (weights_T * scores.entropy_T).sum()
        return total

    def _measures(self, micro: MicroBatch, scores: Scores, real_T: Tensor) -> dict[str, Tensor]:
        logprobs_T, old_T = scores.logprobs_T.detach(), scores.old_T
        mismatch_T = (old_T - micro.sampler_logprobs_T) * real_T
        log_ratio_T = (logprobs_T - old_T) * real_T
        low, high = clip_fractions(
            self._surrogate, logprobs_T, old_T, micro.advantages_N, micro.row_T
        )
        tokens = real_T.sum().double()
        return {
            "tokens": tokens,
            "entropy_sum": (scores.entropy_T.detach() * real_T).sum().double(),
            "mismatch_sum": mismatch_T.abs().sum().double(),
            "mismatch_kl_sum": _k3(mismatch_T).sum().double(),
            "kl_sum": _k3(log_ratio_T).sum().double(),
            "clip_low_sum": low.double() * tokens,
            "clip_high_sum": high.double() * tokens,
        }


def _k3(log_ratio_T: Tensor) -> Tensor:
    """exp(x) - 1 - x, whose mean under the denominator of the ratio is its KL to the numerator."""
    return torch.expm1(log_ratio_T) - log_ratio_T
