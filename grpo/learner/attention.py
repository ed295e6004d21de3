"""Attention over packed segments: what each costs is what its own length costs.

A segment begins at position 0, or at p > 0 where it goes on after the last one that began at 0: an
answer behind the prompt of p tokens that its siblings share. It attends to that prompt and to
itself. transformers would build an [S, S] mask over the packed row and attend across all of it.
"""

import importlib.util
import inspect
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.flash_attention import flash_attention_forward

from grpo.errors import UserError

PACKED = "grpo_packed"
# Short segments are attended to together under a mask, as long as they have no more tokens than
# this: a call costs more than the pairs that the mask hides. Of 32 to 160 the fastest on a CPU.
TOGETHER = 64
# What some models expect of attention and ours does not do.
_NOT_DONE = ("softcap", "s_aux")


@dataclass(frozen=True, slots=True, eq=False)
class Segments:
    """The M segments of a packed row of S tokens.

    lengths: of each; contexts: the segment that it goes on after, -1 where there is none
    cu_seqlens: [M + 1] int32, where each starts in S
    cu_seqlens_k: the same for the keys that they attend to, laid end to end
    key_index: which of the S tokens those keys are; None where they are the S tokens themselves
    """

    lengths: list[int]
    contexts: list[int]
    cu_seqlens: Tensor
    cu_seqlens_k: Tensor
    key_index: Tensor | None

    @property
    def firsts(self) -> list[int]:
        """The position at which each segment begins."""
        return [self.lengths[context] if context >= 0 else 0 for context in self.contexts]

    @property
    def longest(self) -> int:
        """The most keys that a token attends to."""
        return max(map(sum, zip(self.lengths, self.firsts, strict=True)))

    def to(self, device: torch.device) -> "Segments":
        """The same with every tensor on the device."""
        key_index = None if self.key_index is None else self.key_index.to(device)
        starts, keys = self.cu_seqlens.to(device), self.cu_seqlens_k.to(device)
        return Segments(self.lengths, self.contexts, starts, keys, key_index)


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """Neighbouring segments that torch attends to in one call.

    tokens: how many they have together; context: the call that is the prompt before them, -1
        where there is none
    mask: [tokens, context + tokens], 0 where they attend and -inf elsewhere; None for one segment,
        which is causal
    """

    tokens: int
    context: int
    mask: Tensor | None


def calls(where: Segments, dtype: torch.dtype) -> list[Call]:
    """All segments, in order: those behind one prompt together, and those without one, while they
    are short. The masks are of this dtype, as torch would make them so in every layer anew."""
    found: list[Call] = []
    call_of: dict[int, int] = {-1: -1}  # by prompt
    for part in _together(where):
        lengths, context = [where.lengths[n] for n in part], where.contexts[part[0]]
        shared = where.lengths[context] if context >= 0 else 0
        mask = _mask(lengths, shared) if len(part) > 1 else None
        mask = None if mask is None else mask.to(where.cu_seqlens.device, dtype)
        call_of[part[0]] = len(found)
        found.append(Call(sum(lengths), call_of[context], mask))
    return found


def _together(where: Segments) -> Iterator[list[int]]:
    """The numbers of the segments of each call. A prompt that others share has its own."""
    prompts, part = set(where.contexts), [0]
    for number in range(1, len(where.lengths)):
        alike = where.contexts[number] == where.contexts[part[0]] and number not in prompts
        short = sum(where.lengths[n] for n in (*part, number)) <= TOGETHER
        if not (alike and short) or part[0] in prompts:
            yield part
            part = []
        part.append(number)
    yield part


def _mask(lengths: Sequence[int], shared: int) -> Tensor:
    """Of segments of these lengths behind a prompt of so many tokens."""
    own = torch.block_diag(*(torch.ones(n, n).tril() for n in lengths))
    hidden = F.pad(own, (shared, 0), value=1.0) == 0
    return torch.zeros(hidden.shape).masked_fill(hidden, -torch.inf)


def segments(cu_seqlens: Tensor, position_ids_S: Tensor) -> Segments:
    """How the micro-batch with these fields lies; see `grpo.types.MicroBatch`. Takes
    tensors on the host: reading them from a device would mean waiting for it."""
    starts: list[int] = cu_seqlens.tolist()
    firsts: list[int] = position_ids_S[cu_seqlens[:-1].long()].tolist()
    lengths = [end - start for start, end in itertools.pairwise(starts)]
    contexts, last = [], -1
    for number, position in enumerate(firsts):
        last = number if position == 0 else last
        contexts.append(last if position else -1)
        assert position in (0, lengths[last]), f"segment {number} begins at position {position}"
    if not any(firsts):
        return Segments(lengths, contexts, cu_seqlens, cu_seqlens, None)
    index: list[Tensor] = []
    for number, context in enumerate(contexts):
        for part in (context, number) if context >= 0 else (number,):
            index.append(torch.arange(starts[part], starts[part + 1]))
    counts = torch.tensor([0, *(n + p for n, p in zip(lengths, firsts, strict=True))])
    cu_seqlens_k = counts.cumsum(0).to(cu_seqlens)
    return Segments(lengths, contexts, cu_seqlens, cu_seqlens_k, torch.cat(index))


def arguments(implementation: str, where: Segments, dtype: torch.dtype) -> dict[str, Any]:
    """What a model of this dtype must be given besides the tokens."""
    if implementation == PACKED:
        by_call = not goes_to_varlen(where.cu_seqlens.device, dtype)
        return {"segments": where, "calls": calls(where, dtype) if by_call else []}
    return {
        "cu_seq_lens_q": where.cu_seqlens,
        "cu_seq_lens_k": where.cu_seqlens_k,
        "max_length_q": max(where.lengths),
        "max_length_k": where.longest,
        "key_index": where.key_index,
    }


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """query [1, heads, S, D], key and value [1, kv_heads, S, D] -> [1, S, heads, D]."""
    where: Segments = kwargs["segments"]
    _check(kwargs, where)
    if not kwargs["calls"]:
        return _varlen(query, key, value, where, kwargs["scaling"]), None
    # Split, as the gradient of a slice would be as large as what it was cut from.
    sizes = [call.tokens for call in kwargs["calls"]]
    keys, values = key.split(sizes, 2), value.split(sizes, 2)
    parts = []
    for call, q, k, v in zip(kwargs["calls"], query.split(sizes, 2), keys, values, strict=True):
        if call.context >= 0:
            k, v = torch.cat([keys[call.context], k], 2), torch.cat([values[call.context], v], 2)
        parts.append(_attend(q, k, v, call.mask, kwargs["scaling"]).transpose(1, 2))
    return torch.cat(parts, 1), None


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """query [1, heads, L, D] are the last L of the tokens of key and value [1, kv_heads, P + L, D];
    causal without a mask.

    torch knows no causal mask aligned to the last token, so behind a prompt either the mask is
    written out, or P queries that nobody reads go before the others: whichever computes less.
    """
    length, before = query.shape[2], key.shape[2] - query.shape[2]
    shape = {"scale": scale, "enable_gqa": query.shape[1] != key.shape[1]}
    if mask is None and 0 < length <= before:
        mask = torch.ones(length, key.shape[2], dtype=torch.bool, device=query.device).tril(before)
    if mask is not None:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, **shape)
    query = F.pad(query, (0, 0, before, 0)) if before else query
    out = F.scaled_dot_product_attention(query, key, value, is_causal=True, **shape)
    return out[:, :, before:]


def goes_to_varlen(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether ours is torch's `varlen_attn` there, or torch's attention sequence by sequence."""
    return device.type == "cuda" and dtype in (torch.bfloat16, torch.float16) and _has_varlen()


@cache
def _has_varlen() -> bool:
    """Not before torch 2.12: `varlen_attn` itself is older, its `enable_gqa` is not."""
    if importlib.util.find_spec("torch.nn.attention.varlen") is None:
        return False
    from torch.nn.attention.varlen import varlen_attn

    return {"window_size", "enable_gqa"} <= inspect.signature(varlen_attn).parameters.keys()


def _varlen(query: Tensor, key: Tensor, value: Tensor, where: Segments, scale: float) -> Tensor:
    """torch's own flash attention, whose causal mask is aligned to the last token."""
    from torch.nn.attention.varlen import varlen_attn

    if where.key_index is not None:
        key, value = key.index_select(2, where.key_index), value.index_select(2, where.key_index)
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    out = varlen_attn(
        q,
        k,
        v,
        where.cu_seqlens,
        where.cu_seqlens_k,
        max(where.lengths),
        where.longest,
        scale=scale,
        window_size=(-1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(out, Tensor)
    return out[None]


def _check(kwargs: dict[str, Any], where: Segments) -> None:
    asked = [name for name in _NOT_DONE if kwargs.get(name) is not None]
    window = kwargs.get("sliding_window")
    if window is not None and window < where.longest:
        asked.append(f"sliding_window ({window})")
    if asked:
        raise UserError(
            f"this model's attention has {' and '.join(asked)}, which only flash attention does "
            "here: install flash-attn on a CUDA machine, or use a model without it"
        )


def with_contexts(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """A flash attention of transformers, given the keys of a shared prompt for each answer."""

    def attend(
        module: torch.nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: None,
        **kwargs: Any,
    ) -> Any:
        key_index = kwargs.pop("key_index", None)
        if key_index is not None:
            key, value = key.index_select(2, key_index), value.index_select(2, key_index)
        return kernel(module, query, key, value, attention_mask, **kwargs)

    return attend


def register(implementation: str) -> None:
    """Makes transformers attend as described above under this name."""
    if implementation == PACKED:
        AttentionInterface.register(PACKED, packed_attention)
        AttentionMaskInterface.register(PACKED, lambda *args, **kwargs: None)
    else:
        AttentionInterface.register(implementation, with_contexts(flash_attention_forward))
