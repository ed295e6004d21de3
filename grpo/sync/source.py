"""ZeRO-3 parameters, gathered in buckets of bounded size under their Hugging Face names."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import deepspeed
import torch

from grpo.sync.buckets import WeightMeta, plan_buckets, torch_dtype


class ZeroSource:
    """The parameters of a ZeRO-3 module in layer order, in the dtype that vLLM serves.

    Every rank iterates it in step: gathering is a collective. `dtype` is a name.
    """

    def __init__(self, module: torch.nn.Module, dtype: str, limit_bytes: int):
        self._parameters: dict[str, Any] = dict(module.named_parameters())
        self._dtype = torch_dtype(dtype)
        # ZeRO-3 leaves p.shape == (0,); the full shape is ds_shape.
        self.metas = [
            WeightMeta(name, dtype, tuple(p.ds_shape)) for name, p in self._parameters.items()
        ]
        self.limit_bytes = limit_bytes
        self.buckets = plan_buckets(self.metas, limit_bytes)

    def __iter__(self) -> Iterator[list[torch.Tensor]]:
        """Full tensors, a bucket at a time, valid until the next one is asked for."""
        for bucket in self.buckets:
            parameters = [self._parameters[meta.name] for meta in bucket]
            with deepspeed.zero.GatheredParameters(parameters):
                yield [p.data.to(self._dtype) for p in parameters]

    def named_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The same stream, a parameter at a time."""
        for bucket, tensors in zip(self.buckets, self, strict=True):
            yield from zip([meta.name for meta in bucket], tensors, strict=True)

    def wire_metas(self) -> list[dict[str, Any]]:
        """The metas as plain dictionaries, to travel through vLLM's RPC."""
        return [asdict(meta) for meta in self.metas]
