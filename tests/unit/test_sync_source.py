"""Shards of plain tensors, cut as DeepSpeed cuts them, come together in the bucket's memory."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from grpo.sync import copying
from grpo.sync import source as module
from grpo.sync.buckets import Bucket, plan_buckets, total_bytes, unflatten
from grpo.sync.source import ZeroSource
from tests.examples import examples

SHAPES = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 7)), min_size=1, max_size=6)


def shards_of(whole: torch.Tensor, ranks: int) -> list[torch.Tensor]:
    """Equal parts of the flat tensor; NaN where DeepSpeed's padding would be."""
    flat = whole.flatten()
    return list(torch.nn.functional.pad(flat, (0, -flat.numel() % ranks), value=torch.nan).split(
        -(-flat.numel() // ranks)
    ))  # fmt: skip


def sources(weights: dict[str, torch.Tensor], ranks: int, wire: str) -> list[ZeroSource]:
    """One per rank. A parameter knows every rank's shard, for `gathered` to put together."""
    made: list[ZeroSource] = []
    for rank in range(ranks):
        parameters = {
            name: SimpleNamespace(
                ds_shape=whole.shape,
                ds_tensor=shards_of(whole, ranks)[rank],
                ds_zero_partition_rank=rank,
                ds_zero_partition_world_size=ranks,
                all_shards=shards_of(whole, ranks),
            )
            for name, whole in weights.items()
        }
        made.append(ZeroSource(parameters, wire, 100))
    return made


def gathered(out: torch.Tensor, shard: torch.Tensor, parameter: Any) -> Any:
    """What an all-gather over the ranks does, done at once."""
    out.copy_(torch.cat(parameter.all_shards))
    return SimpleNamespace(wait=lambda: None)


def agrees(bucket: Bucket, flat: torch.Tensor, weights: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(out, weights[n].to(out.dtype)) for n, out in unflatten(flat, bucket))


@examples(50)
@given(SHAPES, st.integers(1, 4), st.sampled_from(["float32", "bfloat16"]))
def test_what_the_ranks_write_and_what_one_gathers_are_the_whole_parameters(shapes, ranks, wire):
    weights = {f"w{i}": torch.randn(shape) for i, shape in enumerate(shapes)}
    held = sources(weights, ranks, wire)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_gather", gathered)
        for bucket in plan_buckets(held[0].metas, held[0].limit_bytes):
            written = torch.zeros(total_bytes(bucket), dtype=torch.uint8)
            for rank in held:
                rank.write_shard(bucket, written)
                filled = torch.zeros(total_bytes(bucket), dtype=torch.uint8)
                rank.fill(bucket, filled)
                assert agrees(bucket, filled, weights)
            assert agrees(bucket, written, weights)


def test_a_rank_writes_nothing_outside_its_shard():
    """Seven elements over three ranks: 3, 3 and 1."""
    held = sources({"w": torch.arange(1.0, 8.0)}, 3, "float32")
    for rank, expected in enumerate([[1, 2, 3, 0, 0, 0, 0], [0, 0, 0, 4, 5, 6, 0], [0] * 6 + [7]]):
        flat = torch.zeros(28, dtype=torch.uint8)
        held[rank].write_shard(held[rank].metas, flat)
        assert flat.view(torch.float32).tolist() == expected


@examples(50)
@given(SHAPES, st.integers(1, 40), st.integers(1, 3), st.sampled_from(["float32", "bfloat16"]))
def test_every_byte_is_copied_whatever_the_pieces_and_the_threads(shapes, piece, threads, dtype):
    """Bfloat16 from float32 is rounded on the way, as `copy_` does."""
    sources = [torch.randn(shape) for shape in shapes]
    targets = [torch.zeros(shape, dtype=getattr(torch, dtype)) for shape in shapes]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(copying, "_PIECE_BYTES", piece)
        patch.setattr(torch, "get_num_threads", lambda: threads)
        copying.copy_all(list(zip(targets, sources, strict=True)))
    for target, source in zip(targets, sources, strict=True):
        assert torch.equal(target, source.to(target.dtype))


@pytest.mark.parametrize("keep", [True, False])
def test_all_ranks_take_part_in_an_export_and_one_keeps_it(keep: bool):
    read: list[str] = []

    class Source(ZeroSource):
        def named_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
            for name, value in (("a", 1.0), ("b", 2.0)):
                read.append(name)
                yield name, torch.tensor([value])

    found = Source({}, "float32", 100).whole(keep)
    assert read == ["a", "b"]
    assert {name: tensor.tolist() for name, tensor in found.items()} == (
        {"a": [1.0], "b": [2.0]} if keep else {}
    )
