"""The weights of a model with low-rank adapters as those of one without: merged on their way.

W' = W + (alpha / rank) B A (Hu et al. 2021, arXiv 2106.09685), under W's plain name, so that any
engine serves it and knows nothing of adapters. The learner's own W stays as it is.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from grpo.sync.buckets import Bucket, total_bytes, unflatten
from grpo.sync.source import ZeroSource

# The name of the one adapter, which peft makes a part of the names of its tensors.
ADAPTER = "default"
_DOWN, _UP = f".lora_A.{ADAPTER}.weight", f".lora_B.{ADAPTER}.weight"

# Elements of a product B A that exist at once: 64 MiB of float32.
_PIECE = 1 << 24


class Adapter(NamedTuple):
    """An update of rank R to a weight of O outputs and I inputs."""

    down_RI: torch.Tensor
    up_OR: torch.Tensor
    scale: float

    def add_to(self, out: torch.Tensor, start: int) -> None:
        """Adds the update to `out`, which are the elements from `start` on of the flat weight.

        The sum is made in float32 and rounded once, to the dtype of `out`.
        """
        width, end = self.down_RI.shape[1], start + len(out)
        down_RI = self.down_RI.float()
        last = -(-end // width)
        rows = max(1, _PIECE // width)
        for row in range(start // width, last, rows):
            up = self.up_OR[row : min(row + rows, last)].float()
            update = (self.scale * (up @ down_RI)).flatten()
            first = row * width
            here = slice(max(start - first, 0), min(end - first, len(update)))
            piece = out[first + here.start - start : first + here.stop - start]
            piece.copy_(update[here] + piece.to(update.device, torch.float32))


class MergedSource(ZeroSource):
    """See `ZeroSource`. `parameters`: those of a model whose target layers peft has wrapped, in
    `dtype`; `scale`: alpha / rank.

    A rank needs A and B in full even for its own shard of a merged weight. They are gathered for as
    long as `reading` lasts.
    """

    def __init__(
        self, parameters: Mapping[str, Any], dtype: str, limit_bytes: int, *, scale: float
    ):
        adapters = {n: p for n, p in parameters.items() if n.endswith((_DOWN, _UP))}
        plain = {n: p for n, p in parameters.items() if n not in adapters}
        super().__init__(
            {name.replace(".base_layer.", "."): p for name, p in plain.items()}, dtype, limit_bytes
        )
        self._adapters = ZeroSource(adapters, dtype, limit_bytes)
        self._scale = scale
        self._gathered: dict[str, Adapter] = {}

    @contextmanager
    def reading(self) -> Iterator[None]:
        metas = self._adapters.metas
        flat = torch.empty(total_bytes(metas), dtype=torch.uint8, device=self._adapters.device)
        self._adapters.fill(metas, flat)
        found = dict(unflatten(flat, metas))
        for name, down_RI in found.items():
            if name.endswith(_DOWN):
                layer = name.removesuffix(_DOWN)
                self._gathered[f"{layer}.weight"] = Adapter(
                    down_RI, found[layer + _UP], self._scale
                )
        try:
            yield
        finally:
            self._gathered = {}

    def fill(self, bucket: Bucket, flat: torch.Tensor) -> None:
        super().fill(bucket, flat)
        for name, out in unflatten(flat, bucket):
            self._merge(name, out.view(-1), 0)

    def write_shard(self, bucket: Bucket, flat: torch.Tensor) -> None:
        super().write_shard(bucket, flat)
        for name, out in unflatten(flat, bucket):
            start, end = self.shard(name)
            self._merge(name, out.view(-1)[start:end], start)

    def named_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        with self.reading():
            for name, tensor in super().named_tensors():
                if name not in self._gathered:
                    yield name, tensor
                    continue
                merged = tensor.clone()  # it may be the learner's own
                self._merge(name, merged.view(-1), 0)
                yield name, merged

    def adapters(self, keep: bool) -> dict[str, torch.Tensor]:
        """A and B of every layer in host memory by their names in the model; see `whole`."""
        return self._adapters.whole(keep)

    def _merge(self, name: str, out: torch.Tensor, start: int) -> None:
        assert self._gathered, "reading comes first"
        if name in self._gathered:
            self._gathered[name].add_to(out, start)
