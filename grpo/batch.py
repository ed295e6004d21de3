"""The only place that packs, masks and attaches weights.

N = responses of one optimizer step, n of them in a micro-batch, S packed tokens, T response
tokens among them.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from grpo.types import Batch, MicroBatch, ScoredGroup

# Attention costs as much as the rest of a layer at about 12 hidden sizes; 16384 tokens suits
# models of one to three thousand. Only the balance between ranks hangs on it.
QUADRATIC_LENGTH = 16384


def with_advantages(
    groups: Sequence[ScoredGroup], advantage: Callable[[Tensor], Tensor]
) -> list[ScoredGroup]:
    """The groups with `advantage` of their rewards filled in."""
    filled: list[ScoredGroup] = []
    for group in groups:
        rewards_G = torch.tensor(group.rewards, dtype=torch.float64)
        advantages_G = advantage(rewards_G)
        assert advantages_G.shape == rewards_G.shape, f"{advantages_G.shape} for {rewards_G.shape}"
        filled.append(replace(group, advantages=tuple(advantages_G.tolist())))
    return filled


def split_minibatches(groups: Sequence[ScoredGroup], count: int) -> list[list[ScoredGroup]]:
    """Whole groups in order, in `count` parts whose sizes differ by at most one group; fewer parts
    where there are fewer groups, so that none is empty."""
    assert count >= 1, f"{count} mini-batches"
    count = min(count, len(groups))
    edges = [len(groups) * part // max(1, count) for part in range(count + 1)]
    return [list(groups[start:end]) for start, end in itertools.pairwise(edges)]


def make_batch(
    groups: Sequence[ScoredGroup], aggregate: Callable[..., Tensor], *, max_tokens: int
) -> Batch:
    """The groups of one optimizer step, flat and in order, with the weights that `aggregate`
    (an aggregator with its options bound) gives them.

    Every group has its advantages and no response is empty: dropping aborted ones is for the
    caller, who knows whether to sample again.
    """
    assert groups, "a step without groups"
    tokens: list[np.ndarray] = []
    sampler_logprobs: list[np.ndarray] = []
    prompt_lengths: list[int] = []
    response_lengths: list[int] = []
    for scored in groups:
        prompt, responses = scored.group.prompt, scored.group.responses
        assert len(scored.advantages) == len(responses), f"prompt {prompt.serial}: no advantages"
        assert prompt.token_ids, f"prompt {prompt.serial} has no tokens"
        prompt_ids = np.asarray(prompt.token_ids, dtype=np.int64)
        for response in responses:
            num_tokens = len(response.token_ids)
            assert num_tokens > 0, f"prompt {prompt.serial}: an empty response"
            assert len(response.sampler_logprobs) == num_tokens, f"prompt {prompt.serial}: logprobs"
            tokens += [prompt_ids, response.token_ids.astype(np.int64)]
            sampler_logprobs.append(response.sampler_logprobs.astype(np.float32))
            prompt_lengths.append(len(prompt_ids))
            response_lengths.append(num_tokens)
    advantages_N = torch.tensor([a for g in groups for a in g.advantages], dtype=torch.float64)
    group_sizes = torch.tensor([len(scored.advantages) for scored in groups])
    groups_N = torch.repeat_interleave(torch.arange(len(groups)), group_sizes)
    lengths_N = torch.tensor(response_lengths)
    weights_N = aggregate(lengths_N, advantages_N, groups_N, max_tokens=max_tokens)
    assert weights_N.shape == lengths_N.shape, f"{weights_N.shape} weights for {lengths_N.shape}"
    assert bool(torch.isfinite(weights_N).all()), f"weights {weights_N.tolist()}"
    return Batch(
        token_ids_S=torch.from_numpy(np.concatenate(tokens)),
        prompt_lengths_N=torch.tensor(prompt_lengths),
        response_lengths_N=lengths_N,
        advantages_N=advantages_N,
        weights_N=weights_N.double(),
        sampler_logprobs_T=torch.from_numpy(np.concatenate(sampler_logprobs)),
    )


def cut(batch: Batch, num_ranks: int, token_budget: int) -> list[list[MicroBatch]]:
    """One list of micro-batches per rank, all of one length, each sequence in exactly one of them.

    None holds more than `token_budget` packed tokens unless it is a single longer sequence.
    Ranks get about the same work; a rank's longest sequences come first, so that memory runs out
    at once or never, and so that ranks in step are at similar lengths. ZeRO-3 is collective in
    every forward and backward: a rank short of sequences gets fillers of weight 0.
    """
    assert num_ranks >= 1 and token_budget >= 1, f"{num_ranks} ranks, {token_budget} tokens"
    lengths: list[int] = (batch.prompt_lengths_N + batch.response_lengths_N).tolist()
    ranks = [_pack(rows, lengths, token_budget) for rows in _spread(lengths, num_ranks)]
    count = max(len(packs) for packs in ranks)
    micro_batches: list[list[MicroBatch]] = []
    for packs in ranks:
        packs = _split_to(packs, lengths, count)
        fillers = [_filler() for _ in range(count - len(packs))]
        micro_batches.append([_micro_batch(batch, rows) for rows in packs] + fillers)
    return micro_batches


def _spread(lengths: list[int], num_ranks: int) -> list[list[int]]:
    """Rows for each rank, longest first: the next longest always goes to the least loaded rank."""
    ranks: list[list[int]] = [[] for _ in range(num_ranks)]
    loads = [0.0] * num_ranks
    for row in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        rank = loads.index(min(loads))
        ranks[rank].append(row)
        loads[rank] += lengths[row] * (1 + lengths[row] / QUADRATIC_LENGTH)
    return ranks


def _pack(rows: list[int], lengths: list[int], token_budget: int) -> list[list[int]]:
    """Neighbours together for as long as they fit; a sequence over the budget stays alone."""
    packs: list[list[int]] = []
    room = 0
    for row in rows:
        if not packs or lengths[row] > room:
            packs.append([])
            room = token_budget
        packs[-1].append(row)
        room -= lengths[row]
    return packs


def _split_to(packs: list[list[int]], lengths: list[int], count: int) -> list[list[int]]:
    """Halves the pack of most tokens until there are `count`, or until all are single sequences."""
    packs = list(packs)
    while len(packs) < count:
        sizes = [sum(lengths[row] for row in rows) if len(rows) > 1 else 0 for rows in packs]
        if not any(sizes):
            break
        largest = sizes.index(max(sizes))
        rows = packs[largest]
        middle = len(rows) // 2
        packs[largest : largest + 1] = [rows[:middle], rows[middle:]]
    return packs


def _starts(lengths_N: np.ndarray) -> np.ndarray:
    """[N] where each of these lengths starts when they are laid end to end."""
    return np.cumsum(lengths_N) - lengths_N


def _ranges(starts_N: np.ndarray, lengths_N: np.ndarray) -> np.ndarray:
    """start, start + 1, ... of each length, one after the other."""
    shifts_T = np.repeat(starts_N - _starts(lengths_N), lengths_N)
    return shifts_T + np.arange(len(shifts_T))


def _micro_batch(batch: Batch, rows: list[int]) -> MicroBatch:
    """These rows of the batch, packed in the order given.

    In numpy: torch starts a thread pool for each of these small copies, which on a busy machine
    takes many times as long as the copies.
    """
    batch_prompts_N = batch.prompt_lengths_N.numpy()
    batch_responses_N = batch.response_lengths_N.numpy()
    batch_starts_N = _starts(batch_prompts_N + batch_responses_N)[rows]
    logprob_starts_N = _starts(batch_responses_N)[rows]
    prompts_N, responses_N = batch_prompts_N[rows], batch_responses_N[rows]
    lengths_N = prompts_N + responses_N
    starts_N = _starts(lengths_N)
    input_ids_S = batch.token_ids_S.numpy()[_ranges(batch_starts_N, lengths_N)]
    predict_T = _ranges(starts_N + prompts_N - 1, responses_N)
    logprobs_T = batch.sampler_logprobs_T.numpy()[_ranges(logprob_starts_N, responses_N)]
    return MicroBatch(
        input_ids_S=torch.from_numpy(input_ids_S),
        position_ids_S=torch.from_numpy(_ranges(np.zeros_like(lengths_N), lengths_N)),
        cu_seqlens=torch.tensor([*starts_N, lengths_N.sum()], dtype=torch.int32),
        predict_T=torch.from_numpy(predict_T),
        targets_T=torch.from_numpy(input_ids_S[predict_T + 1]),
        row_T=torch.from_numpy(np.repeat(np.arange(len(rows)), responses_N)),
        advantages_N=batch.advantages_N[rows].float(),
        weights_N=batch.weights_N[rows].float(),
        sampler_logprobs_T=torch.from_numpy(logprobs_T),
        rows_N=torch.tensor(rows),
    )


def _filler() -> MicroBatch:
    """One prompt and one response token of weight 0: a forward and a backward that add nothing."""
    return MicroBatch(
        input_ids_S=torch.tensor([0, 0]),
        position_ids_S=torch.tensor([0, 1]),
        cu_seqlens=torch.tensor([0, 2], dtype=torch.int32),
        predict_T=torch.tensor([0]),
        targets_T=torch.tensor([0]),
        row_T=torch.tensor([0]),
        advantages_N=torch.zeros(1),
        weights_N=torch.zeros(1),
        sampler_logprobs_T=torch.zeros(1),
        rows_N=torch.tensor([-1]),
    )
