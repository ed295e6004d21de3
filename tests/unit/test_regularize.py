"""KL estimates by hand and in expectation, and the entropy that the head gives to the loss."""

import math
from typing import Any, Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from grpo.algo.regularize import kl_estimate
from grpo.learner.head import LogprobHead
from tests.examples import examples

few = examples(50)
Estimator = Literal["k1", "k2", "k3"]
ESTIMATORS: list[Estimator] = ["k1", "k2", "k3"]
every_estimator = pytest.mark.parametrize("estimator", ESTIMATORS)
logits = st.lists(st.floats(-2, 2), min_size=3, max_size=3)


def estimate(
    estimator: Estimator, log_ratio: float, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    """Value and gradient in log pi, with log pi_ref - log pi as given."""
    logprobs_T = torch.tensor([-1.0], dtype=dtype, requires_grad=True)
    kl_T = kl_estimate(logprobs_T, logprobs_T.detach() + log_ratio, estimator)
    kl_T.sum().backward()
    assert logprobs_T.grad is not None
    return kl_T.detach(), logprobs_T.grad


@pytest.mark.parametrize(
    ("estimator", "x", "value", "gradient"),
    [
        ("k1", math.log(2), -math.log(2), 1),
        ("k1", -math.log(2), math.log(2), 1),
        ("k2", math.log(2), math.log(2) ** 2 / 2, -math.log(2)),
        ("k2", -math.log(2), math.log(2) ** 2 / 2, math.log(2)),
        ("k3", math.log(2), 1 - math.log(2), -1),  # 2 - 1 - log 2
        ("k3", -math.log(2), math.log(2) - 0.5, 0.5),  # 1/2 - 1 + log 2
    ],
)
def test_estimates_by_hand(estimator: Estimator, x: float, value: float, gradient: float):
    kl_T, gradient_T = estimate(estimator, x)
    assert kl_T.tolist() == pytest.approx([value], rel=1e-9)
    assert gradient_T.tolist() == pytest.approx([gradient], rel=1e-9)


@pytest.mark.parametrize(("estimator", "slope"), [("k1", 1), ("k2", 0), ("k3", 0)])
def test_at_the_reference_the_estimate_is_zero(estimator: Estimator, slope: float):
    kl_T, gradient_T = estimate(estimator, 0.0)
    assert (kl_T.tolist(), gradient_T.tolist()) == ([0], [slope])


@pytest.mark.parametrize("estimator", ["k2", "k3"])
@given(x=st.floats(-30, 30))
@few
def test_the_squared_and_the_exponential_estimate_are_never_negative(
    estimator: Estimator, x: float
):
    assert float(estimate(estimator, x)[0]) >= 0


def test_a_small_k3_keeps_its_digits():
    """Near 0 it is x^2 / 2. In float32, exp(2^-13) - 1 is off by more than the 2^-27 looked for."""
    kl_T, _ = estimate("k3", 2**-13, torch.float32)
    assert float(kl_T) == pytest.approx(2**-27, rel=1e-2)


@every_estimator
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("x", [1000.0, -1000.0, math.inf, -math.inf])
def test_any_distance_stays_finite_and_the_dtype_stays(
    estimator: Estimator, dtype: torch.dtype, x: float
):
    kl_T, gradient_T = estimate(estimator, x, dtype)
    assert bool(torch.isfinite(kl_T).all()) and bool(torch.isfinite(gradient_T).all())
    assert kl_T.dtype == gradient_T.dtype == dtype


@every_estimator
def test_no_gradient_reaches_the_reference(estimator: Estimator):
    reference_T = torch.zeros(1, requires_grad=True)
    logprobs_T = torch.ones(1, requires_grad=True)
    kl_estimate(logprobs_T, reference_T, estimator).sum().backward()
    assert reference_T.grad is None and logprobs_T.grad is not None


def gradient(value: Tensor, logits_V: Tensor) -> list[float]:
    (gradient_V,) = torch.autograd.grad(value, logits_V, retain_graph=True)
    return gradient_V.tolist()


@few
@given(logits, logits)
def test_expectations_are_those_of_the_kl(policy: list[float], reference: list[float]):
    """Over a vocabulary of three, summed exactly: k1 and k3 have the value of KL(pi || ref). As
    losses on sampled tokens, k1 teaches nothing, k2 has the gradient of KL(pi || ref) and k3 that
    of KL(ref || pi)."""
    logits_V = torch.tensor(policy, dtype=torch.float64, requires_grad=True)
    logprobs_V = logits_V.log_softmax(-1)
    reference_V = torch.tensor(reference, dtype=torch.float64).log_softmax(-1)
    sampled_V = logprobs_V.detach().exp()
    kl = (logprobs_V.exp() * (logprobs_V - reference_V)).sum()
    reverse = (reference_V.exp() * (reference_V - logprobs_V)).sum()
    losses = {
        one: (sampled_V * kl_estimate(logprobs_V, reference_V, one)).sum() for one in ESTIMATORS
    }
    assert losses["k1"].item() == pytest.approx(kl.item(), rel=1e-9, abs=1e-12)
    assert losses["k3"].item() == pytest.approx(kl.item(), rel=1e-9, abs=1e-12)
    near: dict[str, Any] = {"rel": 1e-9, "abs": 1e-12}
    assert gradient(losses["k1"], logits_V) == pytest.approx([0, 0, 0], abs=1e-12)
    assert gradient(losses["k2"], logits_V) == pytest.approx(gradient(kl, logits_V), **near)
    assert gradient(losses["k3"], logits_V) == pytest.approx(gradient(reverse, logits_V), **near)


def entropy_of(weights: list[float], temperature: float) -> tuple[float, list[float]]:
    """Entropy at the logits weights / temperature, and its gradient in the weights."""
    weight_VH = torch.tensor(weights)[:, None]
    head = LogprobHead.replacing(torch.nn.Linear(1, len(weights), bias=False))
    head.weight = torch.nn.Parameter(weight_VH)
    _, entropy_T = head(torch.ones(1, 1), torch.tensor([0]), temperature)
    entropy_T.sum().backward()
    assert head.weight.grad is not None
    return entropy_T.item(), head.weight.grad[:, 0].tolist()


@pytest.mark.parametrize("temperature", [1.0, 2.0, 0.5])
def test_entropy_of_three_to_one_by_hand(temperature: float):
    """p = (3/4, 1/4): H = log 4 - 3/4 log 3, dH/dz = -p (log p + H) = (-3, 3) / 16 * log 3."""
    entropy, slopes = entropy_of([temperature * math.log(3), 0.0], temperature)
    assert entropy == pytest.approx(math.log(4) - 0.75 * math.log(3), rel=1e-6)
    slope = 3 / 16 * math.log(3) / temperature
    assert slopes == pytest.approx([-slope, slope], rel=1e-5)


@pytest.mark.parametrize("size", [1, 2, 7])
def test_uniform_tokens_have_the_most_entropy_and_no_slope(size: int):
    entropy, slopes = entropy_of([0.3] * size, 0.7)
    assert entropy == pytest.approx(math.log(size), rel=1e-6, abs=1e-6)
    assert slopes == pytest.approx([0] * size, abs=1e-6)


@pytest.mark.parametrize("level", [0.0, 30.0, 100.0])
def test_an_almost_certain_token_has_a_small_entropy_and_never_a_negative_one(level: float):
    """p = 1 - q with q = e^-14: H is about 15 q = 1.247e-5, wherever the logits lie."""
    entropy, _ = entropy_of([level, level - 14], 1.0)
    assert entropy >= 0
    assert entropy == pytest.approx(1.247e-5, abs=2e-6)


def test_a_certain_token_has_no_entropy_and_no_slope():
    entropy, slopes = entropy_of([10_000.0, 0.0, -10_000.0], 1.0)
    assert entropy == 0
    assert slopes == [0, 0, 0]
