"""How a stream of parameters is cut into buckets, in the same way at both ends of a transport."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class WeightMeta:
    """Name, dtype on the wire ("bfloat16", say) and full shape of one parameter."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return prod(self.shape) * torch_dtype(self.dtype).itemsize


Bucket = list[WeightMeta]


def torch_dtype(name: str) -> torch.dtype:
    return {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}[name]


def total_bytes(metas: Sequence[WeightMeta]) -> int:
    return sum(meta.num_bytes for meta in metas)


def plan_buckets(metas: Sequence[WeightMeta], limit_bytes: int) -> list[Bucket]:
    """Consecutive parameters that together stay within the limit; a larger one gets its own bucket.

    Sender and receiver call this with the same list, so they agree on the buckets.
    """
    buckets: list[Bucket] = []
    filled = limit_bytes
    for meta in metas:
        if filled + meta.num_bytes > limit_bytes:
            buckets.append([])
            filled = 0
        buckets[-1].append(meta)
        filled += meta.num_bytes
    return buckets


def largest_bytes(buckets: Sequence[Bucket]) -> int:
    """The size of a buffer that can hold any one of them."""
    return max(total_bytes(bucket) for bucket in buckets)


def packed_order(metas: Sequence[WeightMeta], limit_bytes: int) -> list[WeightMeta]:
    """Parameters above the limit first, then the others in their order.

    vLLM closes a packed chunk after the parameter that takes it over the limit. In this order each
    large parameter is a chunk of its own, and no chunk exceeds the largest parameter or twice the
    limit, whichever is more.
    """
    return sorted(metas, key=lambda meta: meta.num_bytes <= limit_bytes)


def plan_packed(metas: Sequence[WeightMeta], limit_bytes: int) -> list[Bucket]:
    """The chunks that vLLM's packed NCCL receiver cuts from this list: each ends with the parameter
    that takes it over the limit."""
    chunks: list[Bucket] = []
    filled = limit_bytes + 1
    for meta in metas:
        if filled > limit_bytes:
            chunks.append([])
            filled = 0
        chunks[-1].append(meta)
        filled += meta.num_bytes
    return chunks


def unflatten(flat: torch.Tensor, metas: Sequence[WeightMeta]) -> list[tuple[str, torch.Tensor]]:
    """The named tensors of a bucket, as views of its bytes (uint8, back to back)."""
    pieces = flat.split([meta.num_bytes for meta in metas])
    return [
        (meta.name, piece.view(torch_dtype(meta.dtype)).view(meta.shape))
        for meta, piece in zip(metas, pieces, strict=True)
    ]


def shard_range(rank: int, world_size: int, numel: int) -> tuple[int, int]:
    """The elements [start, end) of a flat parameter that a ZeRO-3 rank holds.

    DeepSpeed cuts it into equal shards and pads the last ones; the range leaves the padding out.
    """
    share = -(-numel // world_size)
    return min(rank * share, numel), min((rank + 1) * share, numel)


def wire_metas(metas: Sequence[WeightMeta]) -> list[dict[str, Any]]:
    """The metas as plain dictionaries, for vLLM's RPC."""
    return [asdict(meta) for meta in metas]
