"""Batches of made-up answers, and a model of two tables that tells where a token lies."""

from functools import partial

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from grpo.algo.advantage import ADVANTAGES
from grpo.algo.aggregate import AGGREGATORS
from grpo.algo.surrogate import ppo_clip
from grpo.batch.build import make_batch, with_advantages
from grpo.types import Batch, Group, MicroBatch, Prompt, Response, Row, ScoredGroup, Verdict

VOCABULARY = 11
CONTEXT = 64
MAX_TOKENS = 40


def response(token_ids: list[int], logprobs: list[float] | None = None) -> Response:
    return Response(
        token_ids=np.array(token_ids, dtype=np.int32),
        sampler_logprobs=np.array(logprobs or [-1.0] * len(token_ids), dtype=np.float32),
        finish_reason="stop",
        versions=(),
        text="",
    )


def scored(prompt_ids: list[int], answers: list[Response], rewards: list[float]) -> ScoredGroup:
    group = Group(Prompt(0, Row("row", "problem", "answer"), tuple(prompt_ids)), tuple(answers))
    return ScoredGroup(group, tuple(Verdict(reward, "", "") for reward in rewards))


def batch_of(groups: list[ScoredGroup], rule: str = "balanced") -> Batch:
    filled = with_advantages(groups, ADVANTAGES["group_norm"])
    return make_batch(filled, AGGREGATORS.bind(rule, {}), max_tokens=MAX_TOKENS)


@st.composite
def step_groups(draw: st.DrawFn) -> list[ScoredGroup]:
    """One to four groups of up to four answers with random tokens, logprobs and rewards."""
    size = draw(st.integers(2, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    groups: list[ScoredGroup] = []
    for _ in range(draw(st.integers(1, 4))):
        prompt_ids = rng.integers(0, VOCABULARY, draw(st.integers(1, 10))).tolist()
        lengths = draw(st.lists(st.integers(1, MAX_TOKENS), min_size=size, max_size=size))
        answers = [
            response(rng.integers(0, VOCABULARY, n).tolist(), (-3 * rng.random(n)).tolist())
            for n in lengths
        ]
        groups.append(scored(prompt_ids, answers, rng.integers(0, 3, size).tolist()))
    return groups


step_batches = step_groups().map(batch_of)


# A model whose logits depend on the token before and on its position, so that a wrong
# predict_T, target, position or row shows in the loss.
def tables() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    make = partial(torch.randn, generator=generator, dtype=torch.float64, requires_grad=True)
    return make(VOCABULARY, VOCABULARY), make(CONTEXT, VOCABULARY)


def token_objective(micro: MicroBatch, bigrams: Tensor, positions: Tensor) -> Tensor:
    hidden_S = bigrams[micro.input_ids_S] + positions[micro.position_ids_S]
    all_logprobs_T = hidden_S[micro.predict_T].log_softmax(-1)
    logprobs_T = all_logprobs_T.gather(1, micro.targets_T[:, None])[:, 0]
    return ppo_clip(logprobs_T, micro.sampler_logprobs_T, micro.advantages_N, micro.row_T)


def weighted(micro: MicroBatch, bigrams: Tensor, positions: Tensor) -> Tensor:
    weights_T = micro.weights_N.double()[micro.row_T]
    return -(weights_T * token_objective(micro, bigrams, positions)).sum()


def naive(micro: MicroBatch, bigrams: Tensor, positions: Tensor) -> Tensor:
    """What many trainers do: each micro-batch takes its own token mean."""
    return -token_objective(micro, bigrams, positions).mean()


def by_sequence(batch: Batch, bigrams: Tensor, positions: Tensor) -> Tensor:
    """The loss straight from the Batch, one sequence at a time, sharing no code with `cut`."""
    total = torch.zeros((), dtype=torch.float64)
    start_S = start_T = 0
    for row, (p, n) in enumerate(
        zip(batch.prompt_lengths_N.tolist(), batch.response_lengths_N.tolist(), strict=True)
    ):
        ids = batch.token_ids_S[start_S : start_S + p + n].tolist()
        for j in range(n):
            at = p + j - 1
            logprob = (bigrams[ids[at]] + positions[at]).log_softmax(-1)[ids[at + 1]]
            sampled = batch.sampler_logprobs_T[start_T + j]
            advantage = batch.advantages_N[row : row + 1].float()
            zero = torch.zeros(1, dtype=torch.int64)
            value = ppo_clip(logprob.view(1), sampled.view(1), advantage, zero)
            total = total - batch.weights_N[row].float().double() * value.sum()
        start_S, start_T = start_S + p + n, start_T + n
    return total
