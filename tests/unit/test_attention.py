"""Attention over packed segments against plain attention over one sequence at a time."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from grpo.errors import UserError
from grpo.learner import attention
from tests.examples import examples

HEADS, KV_HEADS, DIM, SCALE = 4, 2, 8, 0.3
MODULE = torch.nn.Module()

# Of each row: the length of a prompt and of the answers behind it; no answer for a sequence alone.
Row = tuple[int, list[int]]
some_rows = st.lists(
    st.tuples(st.integers(1, 9), st.lists(st.integers(1, 9), max_size=3)), min_size=1, max_size=4
)


def lay(rows: list[Row]) -> tuple[Tensor, Tensor]:
    """(cu_seqlens, position_ids_S)."""
    lengths = [n for prompt, answers in rows for n in (prompt, *answers)]
    starts = [p for prompt, answers in rows for p in (0, *[prompt] * len(answers))]
    positions = [torch.arange(p, p + n) for p, n in zip(starts, lengths, strict=True)]
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    return cu_seqlens, torch.cat(positions)


def states(tokens: int, device: str = "cpu", dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Query, key and value as transformers gives them: [1, heads, S, D], transposed."""
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(1, tokens, heads, DIM, generator=generator, dtype=torch.float64)
        .to(device, dtype)
        .transpose(1, 2)
        .requires_grad_()
        for heads in (HEADS, KV_HEADS, KV_HEADS)
    ]


def softmax_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """[L, heads, D] of the last L of the tokens whose keys and values are given, written out."""
    length, before = query.shape[1], key.shape[1] - query.shape[1]
    key, value = (x.repeat_interleave(HEADS // KV_HEADS, 0) for x in (key, value))
    scores = SCALE * query @ key.transpose(1, 2)
    later = torch.ones(length, before + length, dtype=torch.bool).triu(before + 1)
    return (scores.masked_fill(later, -torch.inf).softmax(-1) @ value).transpose(0, 1)


def one_by_one(rows: list[Row], query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """[S, heads, D], from the definition of a row: each answer behind a prompt of its own."""
    found, at = [], 0
    for prompt, answers in rows:
        head = list(range(at, at + prompt))
        at += prompt
        found.append(softmax_attention(query[0, :, head], key[0, :, head], value[0, :, head]))
        for answer in answers:
            own = list(range(at, at + answer))
            at += answer
            seen = head + own
            found.append(softmax_attention(query[0, :, own], key[0, :, seen], value[0, :, seen]))
    return torch.cat(found)


def with_gradients(out_SHD: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    weights = torch.arange(out_SHD.numel(), device=out_SHD.device).view(out_SHD.shape).sin()
    return [out_SHD, *torch.autograd.grad((out_SHD * weights).sum(), inputs)]


def packed(rows: list[Row], inputs: list[Tensor], **kwargs: Any) -> Tensor:
    where = attention.segments(*(x.to(inputs[0].device) for x in lay(rows)))
    extra = attention.arguments(attention.PACKED, where, inputs[0].dtype)
    q, k, v = inputs
    out, _ = attention.packed_attention(MODULE, q, k, v, None, **extra, scaling=SCALE, **kwargs)
    return out[0]


@examples(50)
@given(some_rows, st.sampled_from([0, 6, attention.TOGETHER]))
def test_segments_attend_to_themselves_and_to_their_prompt_alone(rows: list[Row], together: int):
    """Values and gradients in float64; answers longer and shorter than their prompts, each in a
    call of its own, some of them or all in one."""
    inputs = states(sum(prompt + sum(answers) for prompt, answers in rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "TOGETHER", together)
        ours = with_gradients(packed(rows, inputs), inputs)
    theirs = with_gradients(one_by_one(rows, *inputs), inputs)
    for left, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)


def flash_varlen(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: None, **kwargs: Any
) -> tuple[Tensor, None]:
    """What flash attention's varlen interface promises: as many pieces of queries as of keys, the
    causal mask of each aligned to its last token."""
    assert mask is None and "key_index" not in kwargs
    lengths_q, lengths_k = (kwargs[f"cu_seq_lens_{x}"].diff().tolist() for x in "qk")
    assert (kwargs["max_length_q"], kwargs["max_length_k"]) == (max(lengths_q), max(lengths_k))
    pieces = zip(
        query[0].split(lengths_q, 1),
        key[0].split(lengths_k, 1),
        value[0].split(lengths_k, 1),
        strict=True,
    )
    return torch.cat([softmax_attention(*piece) for piece in pieces])[None], None


@examples(25)
@given(some_rows)
def test_flash_attention_is_given_the_same_segments(rows: list[Row]):
    inputs = states(sum(prompt + sum(answers) for prompt, answers in rows))
    where = attention.segments(*lay(rows))
    extra = attention.arguments("flash_attention_2", where, torch.bfloat16)
    out, _ = attention.with_contexts(flash_varlen)(MODULE, *inputs, None, **extra)
    ours = with_gradients(out[0], inputs)
    theirs = with_gradients(one_by_one(rows, *inputs), inputs)
    for left, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)


def test_segments_by_hand():
    """A prompt of 2 with answers of 1 and 3, then a sequence of 4."""
    where = attention.segments(*lay([(2, [1, 3]), (4, [])]))
    assert (where.lengths, where.contexts) == ([2, 1, 3, 4], [-1, 0, 0, -1])
    assert where.cu_seqlens_k.tolist() == [0, 2, 5, 10, 14]
    assert where.key_index is not None
    assert where.key_index.tolist() == [0, 1, 0, 1, 2, 0, 1, 3, 4, 5, 6, 7, 8, 9]
    assert where.longest == 5
    assert attention.segments(*lay([(2, []), (4, [])])).key_index is None


def test_a_position_that_no_prompt_explains_is_refused():
    cu_seqlens = torch.tensor([0, 2, 4], dtype=torch.int32)
    with pytest.raises(AssertionError, match="segment 1 begins at position 3"):
        attention.segments(cu_seqlens, torch.tensor([0, 1, 3, 4]))


@pytest.mark.parametrize(
    ("asked", "message"), [({"sliding_window": 4}, "sliding_window"), ({"softcap": 1.0}, "softcap")]
)
def test_attention_that_ours_does_not_do_is_refused(asked: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        packed([(2, [3])], states(5), **asked)


def test_a_window_that_no_segment_reaches_changes_nothing():
    rows, inputs = [(2, [3])], states(5)
    assert torch.equal(packed(rows, inputs, sliding_window=5), packed(rows, inputs))


def test_no_segment_costs_what_another_is_long(monkeypatch: pytest.MonkeyPatch):
    """Scores computed, counted in what torch is asked for: nothing is padded to the longest."""
    asked: list[int] = []
    plain = F.scaled_dot_product_attention

    def counting(query: Tensor, key: Tensor, value: Tensor, **kwargs: Any) -> Tensor:
        asked.append(query.shape[2] * key.shape[2])
        return plain(query, key, value, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counting)
    monkeypatch.setattr(attention, "TOGETHER", 0)
    packed([(9, []), (1, []), (3, [2, 5])], states(20))
    # alone: length squared; behind 3: 2 x 5 with a mask, or 8 x 8 with the prompt's rows again
    assert asked == [81, 1, 9, 10, 64]


def test_short_neighbours_are_attended_to_in_one_call():
    """At most 64 tokens in one: 30 and 34 are, 1 more is not; answers of one prompt are, those of
    two are not, and never with what has no prompt."""
    where = attention.segments(*lay([(30, []), (34, []), (1, [2, 3, 60]), (5, [4])]))
    found = attention.calls(where, torch.float64)
    assert [call.tokens for call in found] == [64, 1, 5, 60, 5, 4]
    assert [call.context for call in found] == [-1, -1, 1, 1, -1, 4]
    assert [call.mask is None for call in found] == [False, True, False, True, True, True]
    # Behind one token of the prompt: two of the first answer, then three of the second.
    mask = found[2].mask
    assert mask is not None
    assert mask.exp().int().tolist() == [
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 0, 0, 1, 0, 0],
        [1, 0, 0, 1, 1, 0],
        [1, 0, 0, 1, 1, 1],
    ]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_on_a_gpu_it_is_the_same(dtype: torch.dtype):
    rows = [(9, [3, 20]), (40, []), (5, [1, 1, 7])]
    count = sum(prompt + sum(answers) for prompt, answers in rows)
    found = with_gradients(packed(rows, (inputs := states(count, "cuda", dtype))), inputs)
    exact = with_gradients(one_by_one(rows, *(plain := states(count))), plain)
    tolerance = 0.1 if dtype == torch.bfloat16 else 1e-4
    for left, right in zip(found, exact, strict=True):
        assert np.allclose(left.detach().cpu().double(), right.detach(), atol=tolerance)
