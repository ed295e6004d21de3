"""ZeRO-3 parameters under their Hugging Face names, a bucket of bounded size at a time."""

from collections.abc import Iterator
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
    """The parameters of a ZeRO-3 module in layer order, in the dtype that vLLM serves.

    `dtype`: its name, such as "bfloat16". `fill` and `write_shard` read DeepSpeed's own shards and
    write each byte once wherever they can, without gathering into separate memory first.
    """

    def __init__(self, module: torch.nn.Module, dtype: str, limit_bytes: int):
        self._parameters: dict[str, Any] = dict(module.named_parameters())
        # ZeRO-3 leaves p.shape == (0,); the full shape is ds_shape.
        self.metas = [
            WeightMeta(name, dtype, tuple(p.ds_shape)) for name, p in self._parameters.items()
        ]
        self.limit_bytes = limit_bytes

    def fill(self, bucket: Bucket, flat: torch.Tensor) -> None:
        """See `grpo.sync.transport.WeightSource`. Every rank calls it with its own `flat`."""
        waits: list[Any] = []
        copies: list[tuple[torch.Tensor, torch.Tensor]] = []
        for parameter, out in self._with_places(bucket, flat):
            ranks, shard = parameter.ds_zero_partition_world_size, parameter.ds_tensor
            if ranks == 1:
                copies.append((out, shard[: out.numel()]))
                continue
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
        for parameter, out in self._with_places(bucket, flat):
            rank, ranks = parameter.ds_zero_partition_rank, parameter.ds_zero_partition_world_size
            start, end = shard_range(rank, ranks, out.numel())
            copies.append((out[start:end], parameter.ds_tensor[: end - start]))
        copy_all(copies)

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

    def _with_places(
        self, bucket: Bucket, flat: torch.Tensor
    ) -> Iterator[tuple[Any, torch.Tensor]]:
        for name, out in unflatten(flat, bucket):
            yield self._parameters[name], out.view(-1)


def _gather(out: torch.Tensor, shard: torch.Tensor, parameter: Any) -> Any:
    group = parameter.ds_process_group
    return dist.all_gather_into_tensor(out, shard, group=group, async_op=True)
