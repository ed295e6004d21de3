"""The records that travel through a step, one per stage, all frozen.

    Row -> Prompt -> Group -> ScoredGroup -> Batch (one optimizer step) -> MicroBatch (one forward)

Shape letters: N responses of one optimizer step over all ranks, G siblings of one prompt,
S packed tokens (prompts and responses), T response tokens among them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import compress
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:  # a verifier's process needs verdicts, not three seconds of torch
    import torch

FinishReason = Literal["stop", "length", "abort"]

# Of a reward, either way. Squares of larger ones leave float64, and beside them no other counts.
MOST_REWARD = 1e6


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a chat, as it stands in the source."""

    role: Literal["system", "user", "assistant"]
    text: str


@dataclass(frozen=True, slots=True)
class Row:
    """One problem with its reference answer; `solution` is worked out, or empty. `extra` is what
    the source says of it in other columns, those that somebody asked for.

    Of a row that is a chat `problem` is the last user message, which is compared and stored;
    `earlier` are the turns before it, a system turn first.
    """

    id: str
    problem: str
    answer: str
    solution: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)
    earlier: tuple[Turn, ...] = ()

    @property
    def asked(self) -> str:
        """All that was said before the response; a formula of an earlier turn is no answer,
        either."""
        return "\n\n".join([*(turn.text for turn in self.earlier), self.problem])


@dataclass(frozen=True, slots=True)
class Prompt:
    """One question, tokenised.

    `serial` is its place in the epoch-spanning order of the run: two prompts of one run never
    share it, even where they show the same row in different epochs. `thinking`: it ends within
    thinking that it has opened itself, so that its responses have no opening tag.
    """

    serial: int
    row: Row
    token_ids: tuple[int, ...]
    thinking: bool = False


@dataclass(frozen=True, slots=True)
class VersionSpan:
    """Tokens start..end (end excluded) were sampled by this version of the policy."""

    version: int
    start: int
    end: int


@dataclass(frozen=True, slots=True, eq=False)
class Response:
    """One sampled answer. `token_ids` [L] int32 and `sampler_logprobs` [L] float32 come from the
    sampler as they are: nothing is ever re-tokenised. The end token is part of it."""

    token_ids: np.ndarray
    sampler_logprobs: np.ndarray
    finish_reason: FinishReason
    versions: tuple[VersionSpan, ...]
    text: str


@dataclass(frozen=True, slots=True)
class Group:
    """The G siblings of one prompt."""

    prompt: Prompt
    responses: tuple[Response, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a verifier says of one answer. `reason` tells why the reward is what it is:
    "correct", "wrong", "no answer", "timeout", "verifier crashed", "gold does not parse"; of
    programs also "runtime error", "time limit", "memory limit", "output limit", "sandbox lost"."""

    reward: float
    parsed: str
    reason: str
    seconds: float = 0.0

    @property
    def was_stopped(self) -> bool:
        """The verifier came to no end, so that nothing is known of the answer."""
        return self.reason.startswith(("timeout", "verifier crashed"))


@dataclass(frozen=True, slots=True)
class ScoredGroup:
    """A group with one verdict and, once the estimator has run, one advantage per response.

    penalties: what shaping took from the verdicts' rewards (0 or below); () where it did not run
    masked: which responses take part in the group's statistics but teach nothing; () for none
    left_out: which responses take part in nothing: no verifier came to an end with them, or with
        too few of their siblings; () for none. Their advantage is 0 and means nothing
    shadows: what shadow verifiers say of each response, by their names; () where there are none
    """

    group: Group
    verdicts: tuple[Verdict, ...]
    advantages: tuple[float, ...] = ()
    penalties: tuple[float, ...] = ()
    masked: tuple[bool, ...] = ()
    shadows: tuple[Mapping[str, Verdict], ...] = ()
    left_out: tuple[bool, ...] = ()

    @property
    def counted(self) -> tuple[bool, ...]:
        """Which responses take part in the group's statistics."""
        return tuple(not out for out in self.left_out) or (True,) * len(self.verdicts)

    @property
    def learned_from(self) -> tuple[bool, ...]:
        """Which responses the learner gets, where it gets the group."""
        masked = self.masked or (False,) * len(self.verdicts)
        return tuple(c and not m for c, m in zip(self.counted, masked, strict=True))

    @property
    def accuracies(self) -> list[float]:
        """The verdicts' own rewards, before shaping; of the counted responses alone."""
        return list(compress([verdict.reward for verdict in self.verdicts], self.counted))

    @property
    def rewards(self) -> list[float]:
        """What advantages are made of; of the counted responses alone."""
        if not self.penalties:
            return self.accuracies
        taken = compress(self.penalties, self.counted)
        return [r + p for r, p in zip(self.accuracies, taken, strict=True)]


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """The N sequences of one optimizer step, concatenated in order.

    token_ids_S: prompt and response of sequence 0, then of sequence 1, ... (int64)
    prompt_lengths_N, response_lengths_N: int64, all >= 1
    groups_N: int64, the same number for siblings
    advantages_N, weights_N: float64; loss = - sum_i weights_N[i] * sum_t objective_T[t in i]
    regular_weights_N: float64, the same for KL and entropy, which know no sign
    sampler_logprobs_T: float32, the sampler's own, response tokens in order
    """

    token_ids_S: torch.Tensor
    prompt_lengths_N: torch.Tensor
    response_lengths_N: torch.Tensor
    groups_N: torch.Tensor
    advantages_N: torch.Tensor
    weights_N: torch.Tensor
    regular_weights_N: torch.Tensor
    sampler_logprobs_T: torch.Tensor


@dataclass(frozen=True, slots=True, eq=False)
class MicroBatch:
    """What one rank puts through the model at once: n of the N sequences, packed without padding.

    It lies in M segments: whole sequences, which begin at position 0; or a prompt and then the
    responses of siblings that share it, each of which goes on at the prompt's length. A segment
    that does not begin at 0 belongs to the last one before it that does.

    input_ids_S, position_ids_S: the packed row
    cu_seqlens: [M + 1] int32, where each segment starts in S, and S
    predict_T: index into S of the hidden state that predicts response token t; the last one of a
        shared prompt predicts the first token of every sibling
    targets_T: the response tokens themselves
    row_T: which of the n sequences token t belongs to
    advantages_N, weights_N, regular_weights_N: [n] float32; a filler, which only keeps ranks in
        step, weighs 0
    rows_N: [n] index of each sequence in the Batch; -1 for a filler
    """

    input_ids_S: torch.Tensor
    position_ids_S: torch.Tensor
    cu_seqlens: torch.Tensor
    predict_T: torch.Tensor
    targets_T: torch.Tensor
    row_T: torch.Tensor
    advantages_N: torch.Tensor
    weights_N: torch.Tensor
    regular_weights_N: torch.Tensor
    sampler_logprobs_T: torch.Tensor
    rows_N: torch.Tensor
