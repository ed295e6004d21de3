"""Made-up weights, where a sender reads them, the model that takes them, and the comparison."""

import random
import zlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch

from grpo.sync.buckets import Bucket, WeightMeta, torch_dtype, unflatten
from tests.contract.gpu import ContractError, here

_LAYER = [(64,), (64, 64), (32, 64), (32, 64), (64, 64), (64,), (96, 64), (96, 64), (64, 96)]
Weights = dict[str, torch.Tensor]


def parameters(which: str, dtype: str) -> list[WeightMeta]:
    """A list by its name; "random N" is drawn with seed N."""
    kind, _, seed = which.partition(" ")
    dice = random.Random(seed)
    shapes: Sequence[tuple[int, ...]] = {
        "model": lambda: [(151, 64), *_LAYER, *_LAYER, (64,), (151, 64)],
        # No dimension, no element, one element; several in one chunk and at both ends.
        "odd": lambda: [(), (0, 7), (1,), (3, 5), (), (700,), (0,), (1, 1, 1), (33,), (5, 0)],
        # Larger than half a bucket and than a whole one, beside small ones.
        "large": lambda: [(5,), (3000,), (7,), (9000,), (9000,), (1,), (2049,), (4096,), (3,)],
        "random": lambda: [
            (dice.choice([1, 3, 17, 200, 999, 2500]),) for _ in range(dice.randint(2, 25))
        ],
    }[kind]()
    return [WeightMeta(f"p{i}.weight", dtype, shape) for i, shape in enumerate(shapes)]


def drawn(metas: Sequence[WeightMeta], update: int) -> Weights:
    """Any bytes, so also every nan. The first and the last parameter of one shape are tied."""
    dice = torch.Generator().manual_seed(zlib.crc32(f"{metas} {update}".encode()))
    weights = {
        meta.name: torch.randint(0, 256, (meta.num_bytes,), dtype=torch.uint8, generator=dice)
        .view(torch_dtype(meta.dtype))
        .view(meta.shape)
        for meta in metas
    }
    first, last = metas[0], metas[-1]
    if (first.shape, first.dtype) == (last.shape, last.dtype):
        weights[last.name] = weights[first.name]
    return weights


class Source:
    """See `grpo.sync.transport.WeightSource`.

    A source may write on the current stream, or on another that does not wait for it. So this one
    writes either at once or, if `late`, when the current stream is waited for.
    """

    def __init__(self, metas: list[WeightMeta], limit_bytes: int):
        self.metas, self.limit_bytes = metas, limit_bytes
        self.weights: Weights = {}
        self.late = False

    def take(self, update: int) -> None:
        """What the learner holds in this update. The first is written early, the next late, ..."""
        self.weights = drawn(self.metas, update)
        self.late = update % 2 == 1

    def fill(self, bucket: Bucket, flat: torch.Tensor) -> None:
        weights = self.weights

        def copy() -> None:
            for name, out in unflatten(flat, bucket):
                out.copy_(weights[name])

        if self.late:
            here().current.add(copy)
        else:
            copy()

    def write_shard(self, bucket: Bucket, flat: torch.Tensor) -> None:
        raise ContractError("GPU transports gather")


class Model(torch.nn.Module):
    """Loads on the current stream: what it was given is read when that stream is waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: Weights = {}

    def load_weights(self, weights: Any) -> None:
        for name, tensor in weights:
            if name in self.loaded:
                raise ContractError(f"{name} came twice")
            self.loaded[name] = torch.empty_like(tensor)
            here().current.add(partial(self.loaded[name].copy_, tensor))


def check_equal(expected: Mapping[str, torch.Tensor], got: Weights, where: str) -> None:
    """Raises ContractError with the first difference in names, dtypes, shapes or bytes."""
    if missing := expected.keys() - got.keys():
        raise ContractError(f"{where}: {', '.join(sorted(missing))} did not arrive")
    if strange := got.keys() - expected.keys():
        raise ContractError(f"{where}: {', '.join(sorted(strange))} was not asked for")
    for name, tensor in expected.items():
        ours, theirs = (f"{t.dtype} {tuple(t.shape)}" for t in (tensor, got[name]))
        if ours != theirs:
            raise ContractError(f"{where}: {name} is {theirs} instead of {ours}")
        differ = (_bytes(tensor) != _bytes(got[name])).nonzero()
        if len(differ):
            raise ContractError(
                f"{where}: {name} differs in {len(differ)} of {tensor.nbytes} bytes, first in byte "
                f"{int(differ[0])}"
            )


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)
