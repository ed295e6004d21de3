"""How a stream of parameters is cut into buckets; both ends of a transport cut alike."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch


@dataclass(frozen=True, slots=True)
class WeightMeta:
    """Name, wire dtype (as in `torch.bfloat16`'s name) and full shape of one parameter."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return prod(self.shape) * torch_dtype(self.dtype).itemsize


def torch_dtype(name: str) -> torch.dtype:
    return {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}[name]


def plan_buckets(metas: Sequence[WeightMeta], limit_bytes: int) -> list[list[WeightMeta]]:
    """Consecutive parameters whose bytes stay within the limit; one larger than it stands alone.

    Sender and receiver both call this on the same list, so they cut the stream alike.
    """
    buckets: list[list[WeightMeta]] = []
    filled = limit_bytes
    for meta in metas:
        if filled + meta.num_bytes > limit_bytes:
            buckets.append([])
            filled = 0
        buckets[-1].append(meta)
        filled += meta.num_bytes
    return buckets


def flatten(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """One contiguous row of bytes."""
    return torch.cat([t.contiguous().view(-1).view(torch.uint8) for t in tensors])


def unflatten(flat: torch.Tensor, metas: Sequence[WeightMeta]) -> list[tuple[str, torch.Tensor]]:
    """The named tensors of a bucket, as views of its bytes."""
    pieces = flat.split([meta.num_bytes for meta in metas])
    return [
        (meta.name, piece.view(torch_dtype(meta.dtype)).view(meta.shape))
        for meta, piece in zip(metas, pieces, strict=True)
    ]
