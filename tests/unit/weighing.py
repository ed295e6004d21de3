"""A step to weigh: lengths, advantages, groups, and psi.

J is the sum over responses of weight * advantage * L * psi, psi a response's token mean of the
objective over the advantage, which is 1 at ratio 1.
"""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from grpo.algo.advantage import group_norm
from grpo.algo.aggregate import AGGREGATORS
from tests.examples import examples

few = examples(50)
fewer = examples(20)  # for tests that run once per rule
MAX_TOKENS = 100
RULES: list[tuple[str, dict[str, Any]]] = [
    ("token_mean", {}),
    ("token_mean", {"scope": "group"}),
    ("seq_mean_token_mean", {}),
    ("seq_mean_token_sum_norm", {}),
    ("seq_mean_token_sum_norm", {"norm": 50}),
    ("balanced", {}),
    ("balanced", {"scope": "batch"}),
    ("balanced", {"balance": "adv_mass"}),
    ("balanced", {"balance": "adv_mass", "scope": "batch"}),
    ("delta_l", {}),
    ("delta_l", {"alpha": 1.0, "scope": "batch"}),
    ("delta_l", {"alpha": 0.0, "norm": 7}),
    ("delta_l", {"scope": "minibatch"}),
    ("lambda_grpo", {}),
    ("lambda_grpo", {"exponent": -2.0, "spread": 0.5, "scope": "batch"}),
    ("luspo", {}),
]
SCOPED = ["token_mean", "balanced", "delta_l", "lambda_grpo"]
every_rule = pytest.mark.parametrize(("name", "options"), RULES)


@dataclass(frozen=True)
class Step:
    lengths_N: Tensor
    advantages_N: Tensor
    groups_N: Tensor
    psi_N: Tensor

    def weights(self, name: str, **options: Any) -> Tensor:
        weights_N = AGGREGATORS[name](
            self.lengths_N, self.advantages_N, self.groups_N, max_tokens=MAX_TOKENS, **options
        )
        assert weights_N.dtype == torch.float64
        return weights_N

    def value(self, name: str, **options: Any) -> float:
        weights_N = self.weights(name, **options)
        return float((weights_N * self.advantages_N * self.psi_N * self.lengths_N).sum())

    def rows(self, index: list[int] | Tensor) -> "Step":
        return Step(*(column[index] for column in self.columns))

    @property
    def columns(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.lengths_N, self.advantages_N, self.groups_N, self.psi_N


def step(lengths: list[int], advantages: list[float], groups: list[int] | None = None) -> Step:
    size = len(lengths)
    return Step(
        torch.tensor(lengths),
        torch.tensor(advantages, dtype=torch.float64),
        torch.tensor(groups or [0] * size),
        torch.ones(size, dtype=torch.float64),
    )


def close(left: Tensor | float, right: Tensor | float | list[float]) -> None:
    torch.testing.assert_close(
        torch.as_tensor(left, dtype=torch.float64),
        torch.as_tensor(right, dtype=torch.float64),
        rtol=1e-9,
        atol=1e-12,
    )


def mean_length(lengths_N: Tensor) -> float:
    return float(lengths_N.double().mean())


@st.composite
def steps(draw: st.DrawFn, groups: int = 3, binary: bool = False, psi_is_one: bool = False) -> Step:
    """Groups of one size with mixed rewards; token means psi of either size and sign."""
    size = draw(st.integers(2, 6))
    num_groups = draw(st.integers(1, groups))
    reward = st.integers(0, 1 if binary else 4)
    advantages: list[float] = []
    for _ in range(num_groups):
        rewards = draw(st.lists(reward, min_size=size, max_size=size))
        if len(set(rewards)) == 1:
            rewards[0] = 1 - rewards[0]
        advantages += group_norm(torch.tensor(rewards)).tolist()
    total = size * num_groups
    lengths = draw(st.lists(st.integers(1, 60), min_size=total, max_size=total))
    psi = draw(st.lists(st.floats(-2, 2), min_size=total, max_size=total))
    return Step(
        torch.tensor(lengths),
        torch.tensor(advantages, dtype=torch.float64),
        torch.arange(num_groups).repeat_interleave(size),
        torch.tensor([1.0] * total if psi_is_one else psi, dtype=torch.float64),
    )
