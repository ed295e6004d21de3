"""What shadow metrics say of a batch, against numbers by hand and the identity I17."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from grpo.algo import shadow
from grpo.algo.advantage import group_norm
from grpo.algo.aggregate import AGGREGATORS, token_mean
from grpo.algo.shadow import shadow_metrics, sign_length_coupling, weight_facts
from grpo.registry import Registry
from grpo.types import Batch
from tests.examples import examples

few = examples(50)
FACTS = {"positive_share", "longest_share", "effective_responses", "predicted_cv"}


def batch(
    lengths: list[int],
    advantages: list[float],
    groups: list[int] | None = None,
    weights: list[float] | None = None,
) -> Batch:
    """One prompt token before every response; weights of 1 where none are given."""
    size = len(lengths)
    return Batch(
        token_ids_S=torch.zeros(size + sum(lengths), dtype=torch.int64),
        prompt_lengths_N=torch.ones(size, dtype=torch.int64),
        response_lengths_N=torch.tensor(lengths),
        groups_N=torch.tensor(groups or [0] * size),
        advantages_N=torch.tensor(advantages, dtype=torch.float64),
        weights_N=torch.tensor(weights or [1.0] * size, dtype=torch.float64),
        regular_weights_N=torch.ones(size, dtype=torch.float64),
        sampler_logprobs_T=torch.zeros(sum(lengths)),
    )


def facts(weights: list[float], lengths: list[int], advantages: list[float], longest: list[bool]):
    return weight_facts(
        torch.tensor(weights, dtype=torch.float64),
        torch.tensor(lengths),
        torch.tensor(advantages, dtype=torch.float64),
        torch.tensor(longest),
    )


def test_facts_by_hand():
    """Masses 0.1, 0.8, 1.2, 0.8 of 2.9; sum w 1, sum w^2 0.3, sum L w^2 0.67."""
    spread = facts([0.1, 0.2, 0.3, 0.4], [1, 4, 2, 2], [1, -1, 2, -1], [False, True, False, False])
    assert spread == pytest.approx(
        {
            "positive_share": 1.3 / 2.9,
            "longest_share": 0.8 / 2.9,
            "effective_responses": 1 / 0.3,
            "predicted_cv": math.sqrt(0.67),
        }
    )


def test_where_there_is_nothing_to_spread_facts_are_zero():
    assert facts([0, 0], [2, 3], [1, -1], [True, False]) == dict.fromkeys(FACTS, 0.0)
    flat = facts([0.5, 0.5], [2, 3], [0, 0], [True, False])
    assert (flat["positive_share"], flat["longest_share"]) == (0, 0)
    assert flat["effective_responses"] == 2  # equal weights, whatever the advantages


@few
@given(
    rows=st.lists(
        st.tuples(st.floats(0.01, 5), st.integers(1, 50), st.floats(-3, 3), st.booleans()),
        min_size=1,
        max_size=8,
    ),
    scale=st.floats(0.01, 100),
)
def test_facts_are_shares_and_know_no_scale(
    rows: list[tuple[float, int, float, bool]], scale: float
):
    weights, lengths, advantages, longest = (list(column) for column in zip(*rows, strict=True))
    spread = facts(weights, lengths, advantages, longest)
    assert facts([scale * w for w in weights], lengths, advantages, longest) == pytest.approx(
        spread, rel=1e-9
    )
    assert 0 <= spread["positive_share"] <= 1 + 1e-9
    assert 0 <= spread["longest_share"] <= 1 + 1e-9
    assert 1 - 1e-9 <= spread["effective_responses"] <= len(rows) * (1 + 1e-9)
    # The least noise that any weights can have is 1 / sqrt(sum 1/L), with weights of 1/L (I29).
    assert spread["predicted_cv"] >= sum(1 / n for n in lengths) ** -0.5 * (1 - 1e-9)


def test_coupling_by_hand():
    """sqrt(3)/4 * (3 - 1) / 1.5, then 1/2 * (1 - 3) / 2; the flat group is left out, and in the
    fourth a response without advantage counts in p (1/3) and in L (3) alone."""
    lengths = [3, 1, 1, 1, 1, 3, 1, 1, 9, 9, 2, 3, 4]
    advantages = [1.7, -0.6, -0.6, -0.6, 1, -1, 1, -1, 0, 0, 1, -1, 0]
    groups = [5, 5, 5, 5, 2, 2, 8, 8, 9, 9, 1, 1, 1]
    four = [math.sqrt(3) / 4 * 2 / 1.5, -0.5, 0.0, math.sqrt(2 / 9) * (2 - 3) / 3]
    coupling = sign_length_coupling(batch(lengths, advantages, groups))
    assert coupling == pytest.approx(sum(four) / 4)


@pytest.mark.parametrize("advantages", [[0, 0], [1, 1], [-1, -0.5]])
def test_without_two_signs_there_is_no_coupling(advantages: list[float]):
    assert sign_length_coupling(batch([1, 9], advantages)) == 0


def test_a_response_on_the_mean_is_on_no_side_of_the_coupling():
    """group_norm leaves -3e-16 for the middle reward: rounding, no wrong answer."""
    advantages_N = group_norm(torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64))
    assert sign_length_coupling(batch([1, 10, 1], advantages_N.tolist())) == 0


@st.composite
def binary_batches(draw: st.DrawFn) -> Batch:
    """Groups of one size, each with right and wrong answers, advantages by group_norm."""
    size, num_groups = draw(st.integers(2, 6)), draw(st.integers(1, 3))
    advantages: list[float] = []
    for _ in range(num_groups):
        num_right = draw(st.integers(1, size - 1))
        rewards = draw(st.permutations([1.0] * num_right + [0.0] * (size - num_right)))
        advantages += group_norm(torch.tensor(rewards)).tolist()
    total = size * num_groups
    lengths = draw(st.lists(st.integers(1, 60), min_size=total, max_size=total))
    return batch(lengths, advantages, [index // size for index in range(total)])


@few
@given(binary_batches())
def test_the_coupling_is_the_token_means_objective_at_ratio_one(drawn: Batch):
    """I17."""
    lengths_N, advantages_N = drawn.response_lengths_N, drawn.advantages_N
    weights_N = token_mean(lengths_N, advantages_N, drawn.groups_N, max_tokens=60, scope="group")
    objective = float((weights_N * advantages_N * lengths_N).sum())
    assert sign_length_coupling(drawn) == pytest.approx(objective, rel=1e-9, abs=1e-12)


@few
@given(binary_batches())
def test_rules_that_balance_the_signs_give_each_half_of_the_mass(drawn: Batch):
    """I17, I20: the sides cancel, so each has a half."""
    metrics = shadow_metrics(drawn, "token_mean", max_tokens=60)
    assert metrics["shadow/balanced/positive_share"] == pytest.approx(0.5)
    assert metrics["shadow/seq_mean_token_mean/positive_share"] == pytest.approx(0.5)


MIXED = batch([1, 4, 2, 2], [1, -1, 2, -1], [0, 0, 1, 1], [0.1, 0.2, 0.3, 0.4])


@pytest.mark.parametrize("chosen", list(AGGREGATORS))
def test_every_rule_has_its_figures_and_the_chosen_one_those_of_the_batch(chosen: str):
    metrics = shadow_metrics(MIXED, chosen, max_tokens=10)
    keys = {f"shadow/{name}/{fact}" for name in AGGREGATORS for fact in FACTS}
    assert set(metrics) == keys | {"shadow/sign_length_coupling"}
    assert metrics["shadow/sign_length_coupling"] == sign_length_coupling(MIXED)
    # The weights of the batch, 0.1 to 0.4, are those of no rule.
    for name in AGGREGATORS:
        effective = metrics[f"shadow/{name}/effective_responses"]
        assert (effective == pytest.approx(1 / 0.3)) == (name == chosen)
    assert metrics[f"shadow/{chosen}/positive_share"] == pytest.approx(1.3 / 2.9)
    assert metrics[f"shadow/{chosen}/longest_share"] == pytest.approx(0.8 / 2.9)
    assert metrics[f"shadow/{chosen}/predicted_cv"] == pytest.approx(math.sqrt(0.67))


def test_the_other_rules_figures_come_from_their_own_weights():
    """token_mean: equal weights, masses 1, 4, 4, 2 of 11. seq_mean_token_mean: weights 1, 1/4,
    1/2, 1/2 but for a factor, masses 1, 1, 2, 1 of 5, sum w 9/4, sum w^2 25/16, sum L w^2 9/4."""
    metrics = shadow_metrics(MIXED, "balanced", max_tokens=10)
    expected = {
        "token_mean": [5 / 11, 4 / 11, 4, math.sqrt(9) / 4],
        "seq_mean_token_mean": [3 / 5, 1 / 5, (81 / 16) / (25 / 16), math.sqrt(9 / 4) / (9 / 4)],
    }
    for name, values in expected.items():
        found = [
            metrics[f"shadow/{name}/{fact}"]
            for fact in ("positive_share", "longest_share", "effective_responses", "predicted_cv")
        ]
        assert found == pytest.approx(values)


@pytest.mark.parametrize(
    ("lengths", "share"),
    [
        ([5, 5, 5, 5], 0.1),  # a tie: the first
        ([5, 5, 5, 9], 0.4 * 9 / (0.6 * 5 + 0.4 * 9)),
        ([1], 1.0),
        ([7, 2, 9, 2, 9], (0.3 * 9 + 0.5 * 9) / (0.7 + 0.4 + 2.7 + 0.8 + 4.5)),  # two of five
        ([9, 7, 9, 2, 2], (0.1 * 9 + 0.3 * 9) / (0.9 + 1.4 + 2.7 + 0.8 + 1.0)),
    ],
)
def test_the_longest_quartile_is_rounded_up(lengths: list[int], share: float):
    """Weights 0.1, 0.2, ... and advantages of 1 in size."""
    weights = [0.1 * (index + 1) for index in range(len(lengths))]
    advantages = [1.0, -1.0, 1.0, -1.0, 1.0][: len(lengths)]
    metrics = shadow_metrics(batch(lengths, advantages, weights=weights), "balanced", max_tokens=9)
    assert metrics["shadow/balanced/longest_share"] == pytest.approx(share)


def test_a_rule_of_ones_own_gets_the_facts_and_one_that_needs_options_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
):
    rules: Registry[Callable[..., Tensor]] = Registry(
        "aggregator", supplied=("max_tokens", "rollout_lengths_N")
    )

    @rules.register("asks")
    def asks(
        lengths_N: Tensor, advantages_N: Tensor, groups_N: Tensor, *, max_tokens: int,
        rollout_lengths_N: Tensor,
    ) -> Tensor:  # fmt: skip
        return torch.tensor([max_tokens, len(rollout_lengths_N)])

    @rules.register("needs")
    def needs(
        lengths_N: Tensor, advantages_N: Tensor, groups_N: Tensor, *, max_tokens: int, power: float
    ) -> Tensor:
        return lengths_N.double() ** power

    monkeypatch.setattr(shadow, "AGGREGATORS", rules)
    two = batch([1, 1], [1, -1], weights=[1.0, 2.0])
    rollout_lengths_N = torch.ones(4, dtype=torch.int64)
    metrics = shadow_metrics(two, "none", max_tokens=3, rollout_lengths_N=rollout_lengths_N)
    assert {key.split("/")[1] for key in metrics} == {"sign_length_coupling", "asks"}
    # weights 3 and 4: 7^2 / (9 + 16)
    assert metrics["shadow/asks/effective_responses"] == pytest.approx(49 / 25)

    # Chosen, its options are known to be set: its figures are the batch's, 3^2 / (1 + 4).
    chosen = shadow_metrics(two, "needs", max_tokens=3, rollout_lengths_N=rollout_lengths_N)
    assert chosen["shadow/needs/effective_responses"] == pytest.approx(9 / 5)
