"""Cutting an optimizer step into micro-batches: balanced over ranks, packed without padding.

N = responses of the step, n of them in a micro-batch, S packed tokens, T response tokens among
them, M segments: whole sequences, or prompts and the answers of siblings that share them.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from grpo.batch.partition import best_fit, differencing, split_to
from grpo.types import Batch, MicroBatch

# Attention costs as much as the rest of a layer at about 12 hidden sizes; 16384 tokens suits
# models of one to three thousand. Only the balance between ranks depends on it.
QUADRATIC_LENGTH = 16384
# What every micro-batch costs besides its tokens, as a share of the budget: with a large share,
# fewer and fuller micro-batches are preferred to prompts that are computed less often.
FIXED_SHARE = 1 / 16


@dataclass(frozen=True, slots=True)
class _Piece:
    """What the cut keeps together: one sequence, or siblings behind one copy of their prompt."""

    rows: list[int]
    tokens: int
    cost: float


def cut(
    batch: Batch, num_ranks: int, token_budget: int, *, shared_prefix: bool = False
) -> list[list[MicroBatch]]:
    """One list of micro-batches per rank, all of one length, each sequence in exactly one of them.

    None holds more than `token_budget` packed tokens unless it is a single longer sequence. The
    micro-batches that ranks run side by side cost about the same, and so do the ranks in all. The
    largest comes first, so that memory runs out at once or never. ZeRO-3 is collective in every
    forward and backward: where there are fewer sequences than micro-batches, fillers of weight 0
    take their place. With `shared_prefix` siblings are kept together where that is cheaper, and
    those in one micro-batch share one copy of their prompt.
    """
    assert num_ranks >= 1 and token_budget >= 1, f"{num_ranks} ranks, {token_budget} tokens"
    kinds = [_siblings(batch, token_budget // n) for n in (1, 2, 4, 8)] if shared_prefix else []
    cuts = [_cut(pieces, num_ranks, token_budget) for pieces in [*kinds, _sequences(batch)]]
    chosen = min(cuts, key=lambda ranks: _duration(ranks, token_budget))  # the first of equals
    return [
        [
            _micro_batch(batch, sorted(row for piece in pack for row in piece.rows), shared_prefix)
            if pack
            else _filler()
            for pack in packs
        ]
        for packs in chosen
    ]


def imbalance(ranks: Sequence[Sequence[MicroBatch]]) -> float:
    """Share of the ranks' time that is spent waiting for the slowest, by the cost of what each
    runs side by side with the others. 0: perfect; 0.5: half of the time."""
    costs = [[_micro_cost(micro) for micro in one_rank] for one_rank in ranks]
    slowest = sum(max(side_by_side) for side_by_side in zip(*costs, strict=True))
    return 1 - sum(map(sum, costs)) / (slowest * len(costs))


def _micro_cost(micro: MicroBatch) -> float:
    ends_M = micro.cu_seqlens.numpy().astype(np.int64)
    contexts_M = micro.position_ids_S.numpy()[ends_M[:-1]]
    return float(sum(map(_cost, np.diff(ends_M).tolist(), contexts_M.tolist())))


def _cost(tokens: int, context: int = 0) -> float:
    """Of `tokens` tokens behind `context` others that they attend to, in tokens."""
    return tokens + (tokens * tokens + 2 * tokens * context) / QUADRATIC_LENGTH


# --- which sequences go where ---


def _sequences(batch: Batch) -> list[_Piece]:
    lengths: list[int] = (batch.prompt_lengths_N + batch.response_lengths_N).tolist()
    return [_Piece([row], length, _cost(length)) for row, length in enumerate(lengths)]


def _siblings(batch: Batch, limit: int) -> list[_Piece]:
    """Siblings together, a group in as few pieces of at most `limit` tokens as may be, or of one
    response each."""
    responses: list[int] = batch.response_lengths_N.tolist()
    groups_N, prompts_N = batch.groups_N.numpy(), batch.prompt_lengths_N.numpy()
    pieces: list[_Piece] = []
    for group in np.unique(groups_N):
        rows: list[int] = np.flatnonzero(groups_N == group).tolist()
        prompt = int(prompts_N[rows[0]])
        alone = [
            _Piece([row], responses[row], _cost(responses[row], context=prompt)) for row in rows
        ]
        for together in _parts(alone, limit - prompt, 1):
            pieces.append(
                _Piece(
                    [row for piece in together for row in piece.rows],
                    prompt + sum(piece.tokens for piece in together),
                    _cost(prompt) + sum(piece.cost for piece in together),
                )
            )
    return pieces


def _parts(pieces: list[_Piece], token_budget: int, multiple: int) -> list[list[_Piece]]:
    """The pieces in parts of at most `token_budget` tokens, or of one piece each; the number of
    parts is a multiple of `multiple`, as small as best fit finds it. Some are empty only where
    there are too few pieces.

    Of equal cost where the budget allows, else of equal tokens; else filled as best fit did.
    """
    tokens = [piece.tokens for piece in pieces]
    fitting = best_fit(tokens, token_budget)
    count = -(-len(fitting) // multiple) * multiple
    over = [i for i, size in enumerate(tokens) if size > token_budget]
    rest = [i for i, size in enumerate(tokens) if size <= token_budget]
    parts = split_to(fitting, tokens, count)
    if rest:
        for sizes in ([pieces[i].cost for i in rest], [float(tokens[i]) for i in rest]):
            even = differencing(sizes, count - len(over))
            if all(sum(tokens[rest[i]] for i in part) <= token_budget for part in even):
                parts = [[i] for i in over] + [[rest[i] for i in part] for part in even]
                break
    parts += [[] for _ in range(count - len(parts))]
    return [[pieces[i] for i in part] for part in parts]


def _cut(pieces: list[_Piece], num_ranks: int, token_budget: int) -> list[list[list[_Piece]]]:
    """For each rank its packs of pieces. Those that are run side by side are neighbours in cost,
    the costliest of them given to the rank with the least so far."""
    packs = sorted(_parts(pieces, token_budget, num_ranks), key=_pack_cost, reverse=True)
    rounds = [packs[start : start + num_ranks] for start in range(0, len(packs), num_ranks)]
    rounds.sort(key=lambda packs: -max(sum(piece.tokens for piece in pack) for pack in packs))
    ranks: list[list[list[_Piece]]] = [[] for _ in range(num_ranks)]
    loads = [0.0] * num_ranks
    for side_by_side in rounds:
        least_first = sorted(range(num_ranks), key=lambda rank: loads[rank])
        for rank, pack in zip(least_first, side_by_side, strict=True):
            ranks[rank].append(pack)
            loads[rank] += _pack_cost(pack)
    return ranks


def _pack_cost(pack: Iterable[_Piece]) -> float:
    return sum(piece.cost for piece in pack)


def _duration(ranks: list[list[list[_Piece]]], token_budget: int) -> float:
    """The cost of the slowest rank in every round, and of the rounds themselves."""
    slowest = sum(max(map(_pack_cost, packs)) for packs in zip(*ranks, strict=True))
    return slowest + len(ranks[0]) * FIXED_SHARE * token_budget


# --- how they lie there ---


def _starts(lengths_N: np.ndarray) -> np.ndarray:
    """[N] where each of these lengths starts when they are laid end to end."""
    return np.cumsum(lengths_N) - lengths_N


def _ranges(starts_N: np.ndarray, lengths_N: np.ndarray) -> np.ndarray:
    """start, start + 1, ... of each length, one after the other."""
    shifts_T = np.repeat(starts_N - _starts(lengths_N), lengths_N)
    return shifts_T + np.arange(len(shifts_T))


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where n sequences lie in a packed row.

    segments: (sequence, position in it where the segment starts, length), M of them
    prompt_ends: where the last token of each sequence's prompt lies in S
    response_starts: where its first response token lies in S
    """

    segments: list[tuple[int, int, int]]
    prompt_ends: list[int]
    response_starts: list[int]


def _lay_out(groups: list[int], prompts: list[int], responses: list[int]) -> _Layout:
    """Siblings, which are neighbours, behind one copy of their prompt; a sequence without any in
    one segment."""
    layout = _Layout([], [], [])
    siblings = Counter(groups)
    at = prompt_end = 0
    for row, (group, prompt, response) in enumerate(zip(groups, prompts, responses, strict=True)):
        if siblings[group] == 1:
            layout.segments.append((row, 0, prompt + response))
            prompt_end = at + prompt - 1
            at += prompt
        else:
            if row == 0 or groups[row - 1] != group:
                layout.segments.append((row, 0, prompt))
                at += prompt
                prompt_end = at - 1
            layout.segments.append((row, prompt, response))
        layout.prompt_ends.append(prompt_end)
        layout.response_starts.append(at)
        at += response
    return layout


def _micro_batch(batch: Batch, rows: list[int], shared_prefix: bool) -> MicroBatch:
    """These rows of the batch, packed in the order given.

    In numpy: torch starts a thread pool for each of these small copies, which on a busy machine
    takes many times as long as the copies.
    """
    batch_prompts_N = batch.prompt_lengths_N.numpy()
    batch_responses_N = batch.response_lengths_N.numpy()
    token_ids_S = batch.token_ids_S.numpy()
    sources_N = _starts(batch_prompts_N + batch_responses_N)[rows]
    logprob_starts_N = _starts(batch_responses_N)[rows]
    prompts_N, responses_N = batch_prompts_N[rows], batch_responses_N[rows]
    groups = batch.groups_N.numpy()[rows].tolist() if shared_prefix else list(range(len(rows)))
    layout = _lay_out(groups, prompts_N.tolist(), responses_N.tolist())
    row_M, position_M, length_M = np.array(layout.segments).T
    input_ids_S = token_ids_S[_ranges(sources_N[row_M] + position_M, length_M)]
    predict_T = _ranges(np.array(layout.response_starts) - 1, responses_N)
    predict_T[_starts(responses_N)] = layout.prompt_ends
    logprobs_T = batch.sampler_logprobs_T.numpy()[_ranges(logprob_starts_N, responses_N)]
    return MicroBatch(
        input_ids_S=torch.from_numpy(input_ids_S),
        position_ids_S=torch.from_numpy(_ranges(position_M, length_M)),
        cu_seqlens=torch.tensor([*_starts(length_M), length_M.sum()], dtype=torch.int32),
        predict_T=torch.from_numpy(predict_T),
        targets_T=torch.from_numpy(token_ids_S[_ranges(sources_N + prompts_N, responses_N)]),
        row_T=torch.from_numpy(np.repeat(np.arange(len(rows)), responses_N)),
        advantages_N=batch.advantages_N[rows].float(),
        weights_N=batch.weights_N[rows].float(),
        regular_weights_N=batch.regular_weights_N[rows].float(),
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
        regular_weights_N=torch.zeros(1),
        sampler_logprobs_T=torch.zeros(1),
        rows_N=torch.tensor([-1]),
    )
