"""ZeRO-3 parameters under their Hugging Face names, a bucket of bounded size at a time."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
import torch.distributed as dist

from grpo.sync.buckets import (
    Bucket,
    WeightMeta,
    plan_buckets,
    shard_range,
    torch_dtype,
    unflatten,
)
from grpo.sync.copying import copy_all


class ZeroSource:
    """Parameters of a ZeRO-3 module by name in layer order, in the dtype that vLLM serves.

    `dtype`: its name, such as "bfloat16". `fill` and `write_shard` read DeepSpeed's own shards and
    write each byte once wherever they can, without gathering into separate memory first.
    """

    def __init__(self, parameters: Mapping[str, Any], dtype: str, limit_bytes: int):
        self._parameters = dict(parameters)
        # ZeRO-3 leaves p.shape == (0,); the full shape is ds_shape.
        self.metas = [
            WeightMeta(name, dtype, tuple(p.ds_shape)) for name, p in self._parameters.items()
        ]
        self.limit_bytes = limit_bytes
        # Where the shards belong; later they may rest in host memory.
        self.device = next((p.ds_tensor.device for p in self._parameters.values()), None)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Around every `fill` and `write_shard` of one update. Collective: all ranks enter it
        together, under weights that do not change before they leave it."""
        yield

    def fill(self, bucket: Bucket, flat: torch.Tensor) -> None:
        """See `grpo.sync.transport.WeightSource`. Every rank calls it with its own `flat`."""
        waits: list[Any] = []
        copies: list[tuple[torch.Tensor, torch.Tensor]] = []
        for name, flat_view in unflatten(flat, bucket):
            parameter, out = self._parameters[name], flat_view.view(-1)
            ranks, shard = parameter.ds_zero_partition_world_size, parameter.ds_tensor
            if ranks == 1:
                copies.append((out, shard[: out.numel()]))
                continue
            shard = shard.to(self.device)  # the ranks' group on GPUs gathers from there alone
            # The last shard may be padded, and the padding would overwrite the next parameter.
            fits = out.numel() == ranks * shard.numel()
            if fits and (out.dtype, out.device) == (shard.dtype, shard.device):
                waits.append(_gather(out, shard, parameter))
            else:
                whole = shard.new_empty(ranks * shard.numel())
                _gather(whole, shard, parameter).wait()
                out.copy_(whole[: out.numel()])
        for wait in waits:
            wait.wait()
        copy_all(copies)

    def write_shard(self, bucket: Bucket, flat: torch.Tensor) -> None:
        """See `grpo.sync.transport.WeightSource`. Not collective."""
        copies: list[tuple[torch.Tensor, torch.Tensor]] = []
        for name, out in unflatten(flat, bucket):
            start, end = self.shard(name)
            shard = self._parameters[name].ds_tensor[: end - start]
            copies.append((out.view(-1)[start:end], shard))
        copy_all(copies)

    def shard(self, name: str) -> tuple[int, int]:
        """The elements [start, end) of the flat parameter that this rank holds."""
        parameter = self._parameters[name]
        ranks = parameter.ds_zero_partition_world_size
        return shard_range(parameter.ds_zero_partition_rank, ranks, prod(parameter.ds_shape))

    def named_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Full tensors by name, each valid until the next is requested. Collective."""
        import deepspeed  # takes seconds; only a learner needs it

        for bucket in plan_buckets(self.metas, self.limit_bytes):
            parameters = [self._parameters[meta.name] for meta in bucket]
            with deepspeed.zero.GatheredParameters(parameters):
                for meta, parameter in zip(bucket, parameters, strict=True):
                    yield meta.name, parameter.data.to(torch_dtype(meta.dtype))

    def whole(self, keep: bool) -> dict[str, torch.Tensor]:
        """All tensors in host memory, {} where they are not kept. Collective: who keeps nothing
        takes part all the same."""
        found: dict[str, torch.Tensor] = {}
        for name, tensor in self.named_tensors():
            if keep:
                found[name] = tensor.cpu().clone()
        return found


def _gather(out: torch.Tensor, shard: torch.Tensor, parameter: Any) -> Any:
    group = parameter.ds_process_group
    return dist.all_gather_into_tensor(out, shard, group=group, async_op=True)
