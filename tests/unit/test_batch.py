"""From scored groups to the batch of an optimizer step: advantages, masks and weights."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from grpo.algo.advantage import ADVANTAGES
from grpo.algo.aggregate import AGGREGATORS
from grpo.batch.build import (
    make_batch,
    rollout_lengths,
    split_minibatches,
    with_advantages,
    with_factors,
)
from grpo.types import Response
from tests.examples import examples
from tests.unit.made_batches import MAX_TOKENS, batch_of, response, scored

few = examples(50)


def test_advantages_are_filled_in_per_group():
    groups = [scored([1], [response([2])] * 2, [1, 0]), scored([1], [response([2])] * 2, [1, 1])]
    filled = with_advantages(groups, ADVANTAGES["group_norm"])
    assert [g.advantages for g in filled] == [(1, -1), (0, 0)]
    assert groups[0].advantages == ()


@few
@given(num_groups=st.integers(0, 20), count=st.integers(1, 8))
def test_minibatches_are_whole_groups_in_order_and_nearly_equal(num_groups: int, count: int):
    groups = [scored([i + 1], [], []) for i in range(num_groups)]
    parts = split_minibatches(groups, count)
    assert [group for part in parts for group in part] == groups
    assert len(parts) == min(count, num_groups)
    lengths = [len(part) for part in parts]
    assert all(lengths) and (not lengths or max(lengths) - min(lengths) <= 1)


def test_a_batch_by_hand():
    groups = [
        scored([5, 6], [response([1], [-0.5]), response([2, 3, 4, 4])], [1, 0]),
        scored([7], [response([1, 1]), response([9, 9])], [0, 1]),
    ]
    batch = batch_of(groups)
    assert batch.token_ids_S.tolist() == [5, 6, 1, 5, 6, 2, 3, 4, 4, 7, 1, 1, 7, 9, 9]
    assert batch.prompt_lengths_N.tolist() == [2, 2, 1, 1]
    assert batch.response_lengths_N.tolist() == [1, 4, 2, 2]
    assert batch.advantages_N.tolist() == [1, -1, -1, 1]
    assert batch.weights_N.tolist() == pytest.approx([1 / 4, 1 / 16, 1 / 8, 1 / 8])
    assert batch.sampler_logprobs_T.tolist() == [-0.5, *[-1.0] * 8]
    assert (batch.token_ids_S.dtype, batch.weights_N.dtype) == (torch.int64, torch.float64)


def test_masked_answers_count_in_the_group_and_teach_nothing():
    answers = [response([1]), response([2, 3]), response([4, 4, 4])]
    masked = replace(scored([5], answers, [1, 0, 0]), masked=(False, False, True))
    batch = batch_of([masked], "token_mean")
    # the group's mean is 1/3 with the masked answer, 1/2 without it
    assert batch.advantages_N.tolist() == pytest.approx([2**0.5, -(2**-0.5)])
    assert batch.token_ids_S.tolist() == [5, 1, 5, 2, 3]
    assert batch.weights_N.tolist() == pytest.approx([1 / 3, 1 / 3])
    assert rollout_lengths([masked]).tolist() == [1, 2, 0]


def test_regular_weights_know_no_sign():
    groups = with_advantages(
        [scored([5], [response([1]), response([2, 3, 4])], [1, 0])], ADVANTAGES["group_norm"]
    )
    rule = AGGREGATORS["balanced"]
    batch = make_batch(groups, rule, max_tokens=8, regularize=AGGREGATORS["seq_mean_token_mean"])
    assert batch.weights_N.tolist() == pytest.approx([1 / 2, 1 / 6])
    assert batch.regular_weights_N.tolist() == pytest.approx([1 / 2, 1 / 6])
    batch = make_batch(groups, rule, max_tokens=8)
    assert batch.regular_weights_N.tolist() == pytest.approx([1 / 4, 1 / 4])


def test_factors_multiply_advantages():
    (group,) = with_advantages(
        [scored([5], [response([1]), response([2])], [1, 0])], ADVANTAGES["group_norm"]
    )
    assert with_factors(group, torch.tensor([2.0, 0.5])).advantages == (2.0, -0.5)


def test_delta_l_over_the_rollout_step_knows_all_minibatches():
    """Two optimizer steps of one response each: over the rollout step weights add up to 1 / M on
    average, and the short answer weighs more than the long one."""
    groups = with_advantages(
        [scored([5], [response([1] * n), response([1] * n)], [1, 0]) for n in (1, 3)],
        ADVANTAGES["group_norm"],
    )
    lengths_N = rollout_lengths(groups)
    rule = AGGREGATORS.bind("delta_l", {"scope": "batch", "alpha": 1.0})
    short, long = (
        make_batch([group], rule, max_tokens=10, rollout_lengths_N=lengths_N) for group in groups
    )
    # 1 / L over sum 1 / L = 8 / 3 of four responses, times 4 / 2 responses of the step, over M
    assert short.weights_N.tolist() == pytest.approx([3 / 8 * 2 / 10] * 2)
    assert long.weights_N.tolist() == pytest.approx([1 / 8 * 2 / 10] * 2)
    assert float(short.weights_N.sum() + long.weights_N.sum()) / 2 == pytest.approx(1 / 10)


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([response([1]), response([])], "empty response"),
        ([response([1]), response([1, 2], [-1.0])], "logprobs"),
    ],
)
def test_a_broken_response_is_refused(answers: list[Response], message: str):
    with pytest.raises(AssertionError, match=message):
        batch_of([scored([1], answers, [1, 0])])


def test_a_group_without_advantages_is_refused():
    groups = [scored([1], [response([1]), response([2])], [1, 0])]
    with pytest.raises(AssertionError, match="no advantages"):
        make_batch(groups, AGGREGATORS["balanced"], max_tokens=MAX_TOKENS)
