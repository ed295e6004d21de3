"""By parameter from flat buffers of one layout into those of another."""

from collections import defaultdict
from math import prod
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo.errors import UserError
from grpo.learner import zero_state
from grpo.learner.shards import opened

SHAPES = {"embed": (5, 3), "norm": (4,), "up": (2, 7), "head": (1,)}


class AdamW:
    """Stands for the optimizer: a state by flat master."""

    def __init__(self) -> None:
        self.state: defaultdict[torch.Tensor, dict[str, Any]] = defaultdict(dict)


class Parameter:
    """What DeepSpeed adds to one; its shard is `ds_tensor`."""

    def __init__(self, number: int, shape: tuple[int, ...], rank: int, ranks: int):
        self.ds_id, self.ds_shape, self.ds_numel = number, shape, prod(shape)
        self.ds_zero_partition_rank, self.ds_zero_partition_world_size = rank, ranks

    def partition_numel(self) -> int:
        return -(-self.ds_numel // self.ds_zero_partition_world_size)


def whole(kind: str, name: str) -> torch.Tensor:
    start = 1000 * list(SHAPES).index(name) + 100 * ["master", "exp_avg", "exp_avg_sq"].index(kind)
    return torch.arange(prod(SHAPES[name]), dtype=torch.float32) + start


def engine(
    rank: int, ranks: int, sizes: list[int], dtype: torch.dtype
) -> tuple[Any, dict[str, Parameter]]:
    """A rank whose sub-groups have `sizes` parameters each. Everything in it is nan at first, as
    uninitialised padding may be."""
    named = {n: Parameter(i, s, rank, ranks) for i, (n, s) in enumerate(SHAPES.items())}
    left = list(named.values())
    groups = [[left.pop(0) for _ in range(size)] for size in sizes]
    lengths = [sum(p.partition_numel() for p in group) for group in groups]
    weights = [torch.full((length,), torch.nan, dtype=dtype) for length in lengths]
    masters = [w if dtype == torch.float32 else w.float() for w in weights]
    zero = SimpleNamespace(
        fp16_groups=groups,
        fp16_partitioned_groups_flat=weights,
        fp32_partitioned_groups_flat=masters,
        optimizer=AdamW(),
        checkpoint_event_prologue=lambda: None,
    )
    return SimpleNamespace(optimizer=zero), named


def filled(rank: int, ranks: int, sizes: list[int], moments: bool) -> tuple[Any, dict[str, Any]]:
    """With the part of `whole` that ZeRO-3 gives this rank: cut into equal shards, the last padded,
    and these end to end."""
    made, named = engine(rank, ranks, sizes, torch.float32)
    zero, names = made.optimizer, {p.ds_id: name for name, p in named.items()}
    for group, master in zip(zero.fp16_groups, zero.fp32_partitioned_groups_flat, strict=True):
        kinds = ["exp_avg", "exp_avg_sq"] if moments else []
        state = {kind: torch.full_like(master, torch.nan) for kind in kinds}
        for kind, flat in {"master": master, **state}.items():
            at = 0
            for parameter in group:
                share = parameter.partition_numel()
                part = whole(kind, names[parameter.ds_id])[rank * share : (rank + 1) * share]
                flat[at : at + len(part)] = part
                at += share
        if moments:
            zero.optimizer.state[master] = {"step": torch.tensor(3.0), "count": 7, **state}
    return made, named


def gathered(ranks: list[tuple[Any, dict[str, Any]]], kind: str, name: str) -> torch.Tensor:
    """As DeepSpeed would: the shards of all ranks one after the other, without what pads them."""
    parts = []
    for made, named in ranks:
        zero = made.optimizer
        for group, master in zip(zero.fp16_groups, zero.fp32_partitioned_groups_flat, strict=True):
            flat = master if kind == "master" else zero.optimizer.state[master][kind]
            pieces = flat.split([parameter.partition_numel() for parameter in group])
            for parameter, piece in zip(group, pieces, strict=True):
                if parameter.ds_id == named[name].ds_id:
                    parts.append(piece)
    return torch.cat(parts)


CUTS = st.sampled_from([[4], [1, 3], [2, 2], [1, 1, 1, 1], [3, 1]])


@settings(deadline=None)
@given(st.integers(1, 4), CUTS, st.integers(1, 4), CUTS, st.booleans())
def test_masters_and_moments_are_the_same_bits_in_any_other_layout(
    tmp_path_factory, then: int, sizes: list[int], now: int, others: list[int], moments: bool
):
    folder = tmp_path_factory.mktemp("state")
    for rank in range(then):
        zero_state.write(*filled(rank, then, sizes, moments), {}, folder)
    ranks = [engine(rank, now, others, torch.bfloat16) for rank in range(now)]
    with opened(folder) as stored:
        for made, named in ranks:
            zero_state.read(made, named, stored)
    for kind in ["master", "exp_avg", "exp_avg_sq"] if moments else ["master"]:
        for name, shape in SHAPES.items():
            found = gathered(ranks, kind, name)
            assert torch.equal(found[: prod(shape)], whole(kind, name))
            assert not found[prod(shape) :].any(), "padding is 0"
    for made, _ in ranks:
        zero = made.optimizer
        pairs = (zero.fp16_partitioned_groups_flat, zero.fp32_partitioned_groups_flat)
        for weights, master in zip(*pairs, strict=True):
            assert torch.equal(weights, master.bfloat16())
            state = zero.optimizer.state.get(master, {})
            assert bool(state) == moments
            if moments:
                step, count = state["step"], state["count"]
                assert isinstance(step, torch.Tensor) and step.shape == () and step == 3
                assert count == 7 and isinstance(count, int)


def test_a_state_from_before_the_first_step_takes_the_moments_away(tmp_path: Path):
    """Else the next step would go on from those of a later one."""
    zero_state.write(*filled(0, 1, [4], moments=False), {}, tmp_path)
    made, named = filled(0, 1, [4], moments=True)
    with opened(tmp_path) as stored:
        zero_state.read(made, named, stored)
    assert not made.optimizer.optimizer.state


def test_a_checkpoint_of_other_parameters_or_of_another_optimizer_is_refused(tmp_path: Path):
    zero_state.write(*filled(0, 1, [4], moments=True), {}, tmp_path)
    made, named = engine(0, 1, [4], torch.float32)
    with opened(tmp_path) as stored:
        zero_state.check(made, named, stored)
        named["norm"].ds_shape = (2, 2)
        with pytest.raises(UserError, match=r"norm is of shape \[4\]"):
            zero_state.check(made, named, stored)
        named["norm"].ds_shape = (4,)
        made.optimizer.optimizer = SimpleNamespace(state={})
        with pytest.raises(UserError, match="optimizer was AdamW, and this run's is SimpleName"):
            zero_state.check(made, named, stored)
