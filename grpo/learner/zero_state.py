"""Masters and optimizer state in DeepSpeed's ZeRO-3 buffers, by parameter.

`DeepSpeedZeroOptimizer_Stage3` puts the parameters that train into sub-groups (`fp16_groups`). Of a
sub-group a rank holds one flat master (`fp32_partitioned_groups_flat`) and one flat weight in the
model's dtype (`fp16_partitioned_groups_flat`, of which each `ds_tensor` is a view; in float32 it
may be the master itself). In both the rank's shards of its parameters lie end to end, each as long
as on every other rank: what pads the last ones counts. The optimizer steps on the flat masters, so
its state is as flat as they are. Parameters that DeepSpeed keeps gathered (below
`stage3_param_persistence_threshold`) are cut like all others.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch

from grpo.learner import shards
from grpo.sync.buckets import shard_range


class Shard(NamedTuple):
    """A rank's part of one parameter: the elements [start, end) of all of it lie from `at` on in
    the flat buffers of its sub-group, and what pads them to `padded` elements behind."""

    name: str
    group: int
    at: int
    start: int
    end: int
    padded: int


def trained(model: torch.nn.Module) -> dict[str, Any]:
    """What trains, by its name in the model."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def write(engine: Any, named: Mapping[str, Any], base: Mapping[str, int], folder: Any) -> None:
    """This rank's file in `folder`. Not collective: it waits for no other rank, and a write that
    fails is an OSError on this rank alone. States may rest in host memory."""
    zero = engine.optimizer
    found = {shard.name: shard for shard in _layout(zero, named)}
    states = [_state_of(zero, group) for group in range(len(zero.fp32_partitioned_groups_flat))]
    flats, numbers = zip(*states, strict=True)
    assert all(flat.keys() == flats[0].keys() for flat in flats), "sub-groups step together"
    assert all(counted == numbers[0] for counted in numbers), "sub-groups step together"
    one: Any = next(iter(named.values()))
    header = shards.Header(
        rank=one.ds_zero_partition_rank,
        ranks=one.ds_zero_partition_world_size,
        optimizer=type(zero.optimizer).__name__,
        kinds=tuple(flats[0]),
        numbers=numbers[0],
        shapes={name: tuple(parameter.ds_shape) for name, parameter in named.items()},
        base=base,
    )

    def tensor(kind: str, name: str) -> torch.Tensor:
        shard = found[name]
        return flats[shard.group][kind][shard.at : shard.at + shard.end - shard.start]

    shards.write(folder, header, tensor)


def num_not_finite(engine: Any, named: Mapping[str, Any]) -> int:
    """Elements of this rank's masters that are nan or infinite. What pads them is anything."""
    zero = engine.optimizer
    count = 0
    for shard in _layout(zero, named):
        master = zero.fp32_partitioned_groups_flat[shard.group]
        values = master[shard.at : shard.at + shard.end - shard.start]
        count += int((~torch.isfinite(values)).sum())
    return count


def check(engine: Any, named: Mapping[str, Any], stored: shards.Shards) -> None:
    """Raises UserError where a checkpoint is that of other parameters or another optimizer."""
    shapes = {name: tuple(parameter.ds_shape) for name, parameter in named.items()}
    stored.check(shapes, type(engine.optimizer.optimizer).__name__)


@torch.no_grad()
def read(engine: Any, named: Mapping[str, Any], stored: shards.Shards) -> None:
    """Masters, optimizer state and the model's own weights become those of a checkpoint, which any
    number of ranks wrote and which `check` has let pass. Not collective. States must not rest."""
    zero = engine.optimizer
    zero.checkpoint_event_prologue()  # gathered copies go; the next pass gathers the new weights
    flats = [_fresh_state(zero, group, stored) for group in range(len(zero.fp16_groups))]
    for shard in _layout(zero, named):
        for kind, flat in flats[shard.group].items():
            length = shard.end - shard.start
            stored.read_into(flat[shard.at : shard.at + length], kind, shard.name, shard.start)
            flat[shard.at + length : shard.at + shard.padded].fill_(0)
    pairs = zip(zero.fp16_partitioned_groups_flat, zero.fp32_partitioned_groups_flat, strict=True)
    for weights, master in pairs:
        weights.data.copy_(master.data)


def _layout(zero: Any, named: Mapping[str, Any]) -> Iterator[Shard]:
    names = {parameter.ds_id: name for name, parameter in named.items()}
    for group, parameters in enumerate(zero.fp16_groups):
        at = 0
        for parameter in parameters:
            ranks, padded = parameter.ds_zero_partition_world_size, parameter.partition_numel()
            start, end = shard_range(parameter.ds_zero_partition_rank, ranks, parameter.ds_numel)
            assert padded == shard_range(0, ranks, parameter.ds_numel)[1], "another padding"
            yield Shard(names[parameter.ds_id], group, at, start, end, padded)
            at += padded
        assert at == zero.fp32_partitioned_groups_flat[group].numel(), "another layout"


def _state_of(zero: Any, group: int) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """The flat tensors of a sub-group, the master first, and the numbers that the optimizer keeps
    of it: what is float there is a tensor in the optimizer, and what is int is none."""
    master = zero.fp32_partitioned_groups_flat[group]
    flats, numbers = {shards.MASTER: master}, {}
    for key, value in zero.optimizer.state.get(master, {}).items():
        if isinstance(value, torch.Tensor) and value.shape == master.shape:
            flats[key] = value
        elif isinstance(value, torch.Tensor):
            numbers[key] = float(value)
        elif value is not None:
            numbers[key] = int(value)
    return flats, numbers


def _fresh_state(zero: Any, group: int, stored: shards.Shards) -> dict[str, torch.Tensor]:
    """The flat tensors of a sub-group that a checkpoint fills, made where the optimizer has not
    stepped yet; its numbers are set, and what the checkpoint does not have is gone."""
    master = zero.fp32_partitioned_groups_flat[group]
    flats = {shards.MASTER: master}
    before: Mapping[str, Any] = zero.optimizer.state.pop(master, {})
    state: dict[str, Any] = {}
    for key, number in stored.numbers.items():
        state[key] = torch.tensor(number) if isinstance(number, float) else number
    for kind in stored.kinds[1:]:
        made = before.get(kind)
        state[kind] = flats[kind] = torch.zeros_like(master) if made is None else made
    if state:
        zero.optimizer.state[master] = state
    return flats
