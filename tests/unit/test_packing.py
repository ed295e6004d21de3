"""Packing: nothing is lost, budgets hold, and no cut changes the loss or the gradient (I26)."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from grpo.algo.aggregate import AGGREGATORS
from grpo.batch.cut import QUADRATIC_LENGTH, cut, imbalance
from grpo.types import Batch, MicroBatch, ScoredGroup
from tests.examples import examples
from tests.unit.made_batches import (
    batch_of,
    by_sequence,
    naive,
    response,
    scored,
    step_batches,
    step_groups,
    tables,
    weighted,
)

few = examples(50)
ranks = st.integers(1, 4)
budgets = st.integers(1, 200)


def gradients(loss: Tensor, parameters: tuple[Tensor, Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(loss, parameters))


def rows(ranks: list[list[MicroBatch]]) -> list[list[list[int]]]:
    return [[micro.rows_N.tolist() for micro in one_rank] for one_rank in ranks]


def random_step(groups: int, siblings: int, prompt: int, longest: int) -> Batch:
    rng = np.random.default_rng(0)
    made = [
        scored(
            [1] * prompt,
            [response([1] * int(n)) for n in rng.integers(1, longest, siblings)],
            [1, 0] * (siblings // 2),
        )
        for _ in range(groups)
    ]
    return batch_of(made)


def test_a_micro_batch_by_hand():
    groups = [scored([5, 6], [response([1], [-0.5]), response([2, 3, 4])], [1, 0])]
    ((micro,),) = cut(batch_of(groups), 1, 100)
    assert micro.rows_N.tolist() == [0, 1]
    assert micro.input_ids_S.tolist() == [5, 6, 1, 5, 6, 2, 3, 4]
    assert micro.position_ids_S.tolist() == [0, 1, 2, 0, 1, 2, 3, 4]
    assert micro.cu_seqlens.tolist() == [0, 3, 8]
    assert micro.predict_T.tolist() == [1, 4, 5, 6]
    assert micro.targets_T.tolist() == [1, 2, 3, 4]
    assert micro.row_T.tolist() == [0, 1, 1, 1]
    assert micro.advantages_N.tolist() == [1, -1]
    assert micro.weights_N.tolist() == pytest.approx([1 / 2, 1 / 6])
    assert micro.sampler_logprobs_T.tolist() == [-0.5, -1, -1, -1]
    assert (micro.cu_seqlens.dtype, micro.weights_N.dtype) == (torch.int32, torch.float32)


def test_siblings_behind_one_prompt_by_hand():
    """The prompt's last token, at 1, predicts the first token of both answers, 1 and 2; the next
    group's only answer that is not masked follows its prompt at once."""
    groups = [
        scored([5, 6], [response([1]), response([2, 3, 4])], [1, 0]),
        scored([7, 8, 9], [response([1, 2])], [1]),
    ]
    ((micro,),) = cut(batch_of(groups), 1, 100, shared_prefix=True)
    assert micro.rows_N.tolist() == [0, 1, 2]
    assert micro.input_ids_S.tolist() == [5, 6, 1, 2, 3, 4, 7, 8, 9, 1, 2]
    assert micro.position_ids_S.tolist() == [0, 1, 2, 2, 3, 4, 0, 1, 2, 3, 4]
    assert micro.cu_seqlens.tolist() == [0, 2, 3, 6, 11]
    assert micro.predict_T.tolist() == [1, 1, 3, 4, 8, 9]
    assert micro.targets_T.tolist() == [1, 2, 3, 4, 1, 2]
    assert micro.row_T.tolist() == [0, 1, 1, 1, 2, 2]


@few
@given(step_batches, ranks, budgets, st.booleans())
def test_every_cut_keeps_every_sequence_once_within_the_budget(
    batch: Batch, num_ranks: int, token_budget: int, shared_prefix: bool
):
    micro_batches = cut(batch, num_ranks, token_budget, shared_prefix=shared_prefix)
    assert len(micro_batches) == num_ranks
    assert len({len(one_rank) for one_rank in micro_batches}) == 1
    everything = [micro for one_rank in micro_batches for micro in one_rank]
    kept = [row for micro in everything for row in micro.rows_N.tolist()]
    assert sorted(row for row in kept if row >= 0) == list(range(len(batch.weights_N)))
    for micro in everything:
        assert len(micro.input_ids_S) <= token_budget or len(micro.rows_N) == 1
        assert micro.cu_seqlens[-1] == len(micro.input_ids_S)
        if -1 in micro.rows_N:
            assert micro.weights_N.tolist() == [0] and len(micro.input_ids_S) == 2


@few
@given(step_batches, ranks, budgets)
def test_fillers_come_only_where_there_are_too_few_sequences(
    batch: Batch, num_ranks: int, token_budget: int
):
    everything = [micro for one_rank in cut(batch, num_ranks, token_budget) for micro in one_rank]
    if any(-1 in micro.rows_N for micro in everything):
        assert all(len(micro.rows_N) == 1 for micro in everything)


@few
@given(step_batches, ranks, budgets)
def test_the_largest_micro_batch_is_among_the_first(
    batch: Batch, num_ranks: int, token_budget: int
):
    sizes = [[len(m.input_ids_S) for m in one] for one in cut(batch, num_ranks, token_budget)]
    side_by_side = [max(sizes) for sizes in zip(*sizes, strict=True)]
    assert side_by_side == sorted(side_by_side, reverse=True)


@few
@given(step_batches, ranks, budgets)
def test_siblings_of_one_micro_batch_share_one_prompt(
    batch: Batch, num_ranks: int, token_budget: int
):
    for one_rank in cut(batch, num_ranks, token_budget, shared_prefix=True):
        for micro in one_rank:
            if -1 in micro.rows_N:
                continue
            groups = batch.groups_N[micro.rows_N].tolist()
            prompts = dict(zip(groups, batch.prompt_lengths_N[micro.rows_N].tolist(), strict=True))
            responses = int(batch.response_lengths_N[micro.rows_N].sum())
            assert len(micro.input_ids_S) == sum(prompts.values()) + responses


def test_ranks_get_about_the_same_work():
    batch = random_step(groups=16, siblings=8, prompt=1, longest=400)
    micro_batches = cut(batch, 4, 1000)
    loads = [sum(len(micro.input_ids_S) for micro in one_rank) for one_rank in micro_batches]
    assert max(loads) / min(loads) < 1.02
    assert imbalance(micro_batches) < 0.01
    assert len(micro_batches[0]) <= sum(loads) / 4000 + 1, "micro-batches are nearly full"


def test_imbalance_by_hand():
    """Rank 1 waits while rank 0 works on 4 tokens more, then rank 0 while rank 1 does 1 more."""
    batch = batch_of([scored([1], [response([1] * n) for n in (9, 5, 2, 3)], [1, 0, 1, 0])])
    first, second, third, last = (cut_alone(batch, row) for row in range(4))
    cost = [n + n * n / QUADRATIC_LENGTH for n in (10, 6, 3, 4)]
    expected = 1 - sum(cost) / (2 * (cost[0] + cost[3]))
    assert imbalance([[first, third], [second, last]]) == pytest.approx(expected)
    assert imbalance([[first, third]]) == 0


def cut_alone(batch: Batch, row: int) -> MicroBatch:
    (micros,) = cut(batch, 1, 1)
    (found,) = (micro for micro in micros if micro.rows_N.tolist() == [row])
    return found


def test_attention_behind_a_shared_prompt_is_part_of_the_cost():
    """A prompt of 2 tokens, answers of 1 and 3: 6 tokens; 4 + (1 + 4) + (9 + 12) squared ones."""
    groups = [scored([5, 6], [response([1]), response([2, 3, 4])], [1, 0])]
    ((shared,),) = cut(batch_of(groups), 1, 100, shared_prefix=True)
    groups = [scored([5], [response([1])], [1])]
    ((alone,),) = cut(batch_of(groups), 1, 100)
    cost, least = 6 + 30 / QUADRATIC_LENGTH, 2 + 4 / QUADRATIC_LENGTH
    assert imbalance([[shared], [alone]]) == pytest.approx(1 - (cost + least) / (2 * cost))


def test_the_budget_is_filled_to_the_last_token_and_not_beyond():
    groups = [scored([1], [response([1] * n) for n in (9, 4, 4, 2)], [1, 0, 1, 0])]
    # packed lengths 10, 5, 5, 3
    assert rows(cut(batch_of(groups), 1, 13)) == [[[1, 2, 3], [0]]]
    for token_budget in (12, 10, 9):  # the last is below the longest, which stays alone
        assert rows(cut(batch_of(groups), 1, token_budget)) == [[[0], [2, 3], [1]]]


def test_a_rank_without_sequences_runs_fillers():
    groups = [scored([1], [response([1]), response([2])], [1, 0])]
    assert rows(cut(batch_of(groups), 3, 100)) == [[[0]], [[1]], [[-1]]]


def test_siblings_are_separated_where_ranks_would_wait_and_kept_where_prompts_are_long():
    """Two answers, two ranks: side by side they take as long as one of them."""
    short = batch_of([scored([1], [response([1] * 30), response([2] * 30)], [1, 0])])
    assert rows(cut(short, 2, 100, shared_prefix=True)) == [[[0]], [[1]]]
    assert rows(cut(short, 1, 100, shared_prefix=True)) == [[[0, 1]]]
    long = random_step(groups=8, siblings=4, prompt=50, longest=10)
    for one_rank in cut(long, 2, 100, shared_prefix=True):
        for micro in one_rank:
            assert len(micro.rows_N) == 4 and len(set(long.groups_N[micro.rows_N].tolist())) == 1


@pytest.mark.parametrize("shared_prefix", [False, True])
def test_the_same_batch_is_always_cut_the_same_way(shared_prefix: bool):
    batch = batch_of([scored([1], [response([1] * n) for n in (3, 3, 3, 3)], [1, 0, 1, 0])] * 3)
    first, second = (rows(cut(batch, 2, 9, shared_prefix=shared_prefix)) for _ in range(2))
    assert first == second


@examples(30)
@given(step_groups(), st.sampled_from(list(AGGREGATORS)), ranks, budgets, st.booleans())
def test_any_cut_gives_the_same_loss_and_gradient(
    groups: list[ScoredGroup], rule: str, num_ranks: int, token_budget: int, shared_prefix: bool
):
    """I26."""
    batch, parameters = batch_of(groups, rule), tables()
    ((whole,),) = cut(batch, 1, 10**6)
    micro_batches = cut(batch, num_ranks, token_budget, shared_prefix=shared_prefix)
    parts = [m for one_rank in micro_batches for m in one_rank]
    whole_loss = weighted(whole, *parameters)
    part_losses = [weighted(micro, *parameters) for micro in parts]
    torch.testing.assert_close(sum(part_losses), whole_loss, rtol=1e-12, atol=1e-12)
    part_gradients = [gradients(loss, parameters) for loss in part_losses]
    for index, gradient in enumerate(gradients(whole_loss, parameters)):
        summed = torch.stack([one[index] for one in part_gradients]).sum(0)
        torch.testing.assert_close(summed, gradient, rtol=1e-12, atol=1e-12)


@examples(10)
@given(step_batches, ranks, budgets, st.booleans())
def test_a_cut_gives_the_loss_of_the_batch_taken_sequence_by_sequence(
    batch: Batch, num_ranks: int, token_budget: int, shared_prefix: bool
):
    """I26 against a second way to compute it."""
    parameters = tables()
    micro_batches = cut(batch, num_ranks, token_budget, shared_prefix=shared_prefix)
    parts = [m for one_rank in micro_batches for m in one_rank]
    total = sum((weighted(micro, *parameters) for micro in parts), torch.zeros(()).double())
    torch.testing.assert_close(total, by_sequence(batch, *parameters), rtol=1e-12, atol=1e-12)


def test_a_token_mean_per_micro_batch_depends_on_the_cut():
    """I26, the negative control: the mistake that weights per response rule out."""
    answers = [response([1]), response([2] * 20), response([3] * 5), response([4] * 10)]
    batch = batch_of([scored([5, 6], answers, [1, 0, 0, 1])], "token_mean")
    parameters = tables()
    ((whole,),) = cut(batch, 1, 10**6)
    (parts,) = cut(batch, 1, 15)
    assert len(parts) > 1
    right = sum(weighted(micro, *parameters).item() for micro in parts)
    wrong = sum(naive(micro, *parameters).item() for micro in parts) / len(parts)
    whole_loss = weighted(whole, *parameters).item()
    assert right == pytest.approx(whole_loss, abs=1e-12)
    assert naive(whole, *parameters).item() == pytest.approx(whole_loss, abs=1e-6)
    assert abs(wrong - whole_loss) > 0.01
