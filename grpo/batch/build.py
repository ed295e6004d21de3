"""The only place that masks and attaches weights; `grpo.batch.cut` packs what comes out of it.

N = responses of one optimizer step, S their tokens end to end, T the response tokens among them.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from grpo.algo.advantage import StepRewards
from grpo.algo.aggregate import token_mean
from grpo.registry import call
from grpo.types import Batch, ScoredGroup


def with_advantages(
    groups: Sequence[ScoredGroup], advantage: Callable[..., Tensor]
) -> list[ScoredGroup]:
    """The groups with `advantage` of their rewards filled in. It sees the counted responses alone;
    the others get 0."""
    step = StepRewards(
        [torch.tensor(group.rewards, dtype=torch.float64) for group in groups],
        [torch.tensor(_lengths(group)) for group in groups],
    )
    filled: list[ScoredGroup] = []
    for group, rewards_G in zip(groups, step.rewards, strict=True):
        advantages_G = call(advantage, rewards_G, step=step)
        assert advantages_G.shape == rewards_G.shape, f"{advantages_G.shape} for {rewards_G.shape}"
        filled.append(_with_advantages_of_counted(group, advantages_G))
    return filled


def counted_advantages(group: ScoredGroup) -> Tensor:
    """[G] float64, of the counted responses alone."""
    counted = itertools.compress(group.advantages, group.counted)
    return torch.tensor(list(counted), dtype=torch.float64)


def with_factors(group: ScoredGroup, factors_G: Tensor) -> ScoredGroup:
    """The group with the advantage of each counted response multiplied by its factor."""
    return _with_advantages_of_counted(group, counted_advantages(group) * factors_G)


def _with_advantages_of_counted(group: ScoredGroup, advantages_G: Tensor) -> ScoredGroup:
    left = iter(advantages_G.tolist())
    return replace(group, advantages=tuple(next(left) if c else 0.0 for c in group.counted))


def split_minibatches(groups: Sequence[ScoredGroup], count: int) -> list[list[ScoredGroup]]:
    """Whole groups in order, in `count` parts whose sizes differ by at most one group; fewer parts
    where there are fewer groups, so that none is empty."""
    assert count >= 1, f"{count} mini-batches"
    count = min(count, len(groups))
    edges = [len(groups) * part // max(1, count) for part in range(count + 1)]
    return [list(groups[start:end]) for start, end in itertools.pairwise(edges)]


def _lengths(scored: ScoredGroup) -> list[int]:
    """Tokens of each counted response that are learned from; none of a masked one are."""
    lengths = [len(response.token_ids) for response in scored.group.responses]
    learned = [n if kept else 0 for n, kept in zip(lengths, scored.learned_from, strict=True)]
    return list(itertools.compress(learned, scored.counted))


def rollout_lengths(groups: Sequence[ScoredGroup]) -> Tensor:
    """[N] the lengths of a whole rollout step, for rules that normalise over it."""
    return torch.tensor([length for group in groups for length in _lengths(group)])


def _unmasked(scored: ScoredGroup) -> list[int]:
    """The siblings that teach."""
    return [index for index, is_learned_from in enumerate(scored.learned_from) if is_learned_from]


def answers_of(groups: Sequence[ScoredGroup]) -> list[tuple[ScoredGroup, int]]:
    """The N sequences of `make_batch`, in its order: each one's group, and which sibling it is."""
    return [(group, index) for group in groups for index in _unmasked(group)]


def make_batch(
    groups: Sequence[ScoredGroup],
    aggregate: Callable[..., Tensor],
    *,
    max_tokens: int,
    regularize: Callable[..., Tensor] = token_mean,
    rollout_lengths_N: Tensor | None = None,
) -> Batch:
    """The groups of one optimizer step, flat and in order, without what is masked or left out of
    them, with the weights that `aggregate` and `regularize` (aggregators, options bound) give them.

    Every group has its advantages, no response is empty and one at least is left: dropping
    aborted ones is for the caller, who knows whether to sample again.
    """
    assert groups, "a step without groups"
    tokens: list[np.ndarray] = []
    sampler_logprobs: list[np.ndarray] = []
    prompt_lengths: list[int] = []
    response_lengths: list[int] = []
    advantages: list[float] = []
    numbers: list[int] = []
    for number, scored in enumerate(groups):
        prompt, responses = scored.group.prompt, scored.group.responses
        assert len(scored.advantages) == len(responses), f"prompt {prompt.serial}: no advantages"
        assert prompt.token_ids, f"prompt {prompt.serial} has no tokens"
        prompt_ids = np.asarray(prompt.token_ids, dtype=np.int64)
        for index in _unmasked(scored):
            response = responses[index]
            num_tokens = len(response.token_ids)
            assert num_tokens > 0, f"prompt {prompt.serial}: an empty response"
            assert len(response.sampler_logprobs) == num_tokens, f"prompt {prompt.serial}: logprobs"
            tokens += [prompt_ids, response.token_ids.astype(np.int64)]
            sampler_logprobs.append(response.sampler_logprobs.astype(np.float32))
            prompt_lengths.append(len(prompt_ids))
            response_lengths.append(num_tokens)
            advantages.append(scored.advantages[index])
            numbers.append(number)
    assert response_lengths, "a step whose responses are all masked"
    advantages_N = torch.tensor(advantages, dtype=torch.float64)
    groups_N = torch.tensor(numbers)
    lengths_N = torch.tensor(response_lengths)

    def weights(rule: Callable[..., Tensor]) -> Tensor:
        facts = {"max_tokens": max_tokens, "rollout_lengths_N": rollout_lengths_N}
        weights_N = call(rule, lengths_N, advantages_N, groups_N, **facts)
        assert weights_N.shape == lengths_N.shape, f"{weights_N.shape}, not {lengths_N.shape}"
        assert bool(torch.isfinite(weights_N).all()), f"weights {weights_N.tolist()}"
        return weights_N.double()

    return Batch(
        token_ids_S=torch.from_numpy(np.concatenate(tokens)),
        prompt_lengths_N=torch.tensor(prompt_lengths),
        response_lengths_N=lengths_N,
        groups_N=groups_N,
        advantages_N=advantages_N,
        weights_N=weights(aggregate),
        regular_weights_N=weights(regularize),
        sampler_logprobs_T=torch.from_numpy(np.concatenate(sampler_logprobs)),
    )
