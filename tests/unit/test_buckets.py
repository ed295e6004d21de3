"""Both ends cut alike, every byte once, and no buffer grows past its bound."""

import ast
import importlib.util
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from grpo.sync.buckets import (
    WeightMeta,
    largest_bytes,
    packed_order,
    plan_buckets,
    plan_packed,
    shard_range,
    total_bytes,
    unflatten,
)
from grpo.sync.ipc import chunk_info, plan_staging
from grpo.sync.transport import BACKENDS, Meeting, pick_transport
from tests.examples import examples

SIZES = st.lists(st.integers(1, 60), min_size=1, max_size=30)
LIMITS = st.integers(1, 400)
exhaustive = examples(50)


def metas_of(sizes: list[int], dtype: str = "float32") -> list[WeightMeta]:
    return [WeightMeta(f"w{i}", dtype, (size,)) for i, size in enumerate(sizes)]


def meeting(transport: str, bucket_bytes: int = 1 << 20) -> Meeting:
    return Meeting(transport, "10.0.0.1", 29500, 0, 3, bucket_bytes, 60.0)


def vllm_file(name: str) -> Path:
    spec = importlib.util.find_spec("vllm")  # found, not imported: that would take 10 s
    assert spec and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0], "distributed", "weight_transfer", name)


def vllm_packing() -> ModuleType:
    """vLLM's own packing, which needs torch alone."""
    spec = importlib.util.spec_from_file_location("packing", vllm_file("packed_tensor.py"))
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fields_of(file: str, name: str) -> set[str]:
    """The fields of a dataclass of vLLM, read from its source."""
    (found,) = [
        node
        for node in ast.parse(vllm_file(file).read_text()).body
        if isinstance(node, ast.ClassDef) and node.name == name
    ]
    return {line.target.id for line in found.body if isinstance(line, ast.AnnAssign)}


@exhaustive
@given(SIZES, LIMITS)
def test_buckets_hold_every_parameter_once_and_stay_within_the_limit(sizes: list[int], limit: int):
    metas = metas_of(sizes)
    buckets = plan_buckets(metas, limit)
    assert [meta for bucket in buckets for meta in bucket] == metas
    assert all(len(bucket) == 1 or total_bytes(bucket) <= limit for bucket in buckets)


@exhaustive
@given(SIZES, LIMITS)
def test_packed_chunks_are_those_that_vllm_forms(sizes: list[int], limit: int):
    metas = packed_order(metas_of(sizes), limit)
    stream = iter([(meta.name, torch.zeros(meta.shape)) for meta in metas])
    theirs: list[list[str]] = []
    while chunk := PACKING.pack_tensors(stream, lambda item: item[1], limit):
        theirs.append(chunk.names)
    assert [[meta.name for meta in chunk] for chunk in plan_packed(metas, limit)] == theirs


PACKING = vllm_packing()
# One warning for every tensor above the limit, and limits are small here.
pytestmark = pytest.mark.filterwarnings("ignore:Tensor 'w")


@exhaustive
@given(SIZES, LIMITS)
def test_no_packed_chunk_is_larger_than_a_bucket_or_the_largest_parameter(
    sizes: list[int], bucket: int
):
    metas = metas_of(sizes)
    limit = meeting("nccl", bucket).packed_bytes
    chunks = plan_packed(packed_order(metas, limit), limit)
    assert largest_bytes(chunks) <= max(bucket, *(meta.num_bytes for meta in metas))


@exhaustive
@given(SIZES, LIMITS)
def test_staging_and_the_engines_copy_of_a_chunk_stay_within_two_buckets(
    sizes: list[int], bucket: int
):
    metas = metas_of(sizes)
    size, chunks = plan_staging(metas, bucket)
    bound = max(bucket, *(meta.num_bytes for meta in metas)) + 31
    assert size <= bound
    assert size + largest_bytes([chunk.bucket for chunk in chunks]) <= 2 * bound
    assert [meta for chunk in chunks for meta in chunk.bucket] == metas
    assert all(chunk.offset + total_bytes(chunk.bucket) <= size for chunk in chunks)


@exhaustive
@given(SIZES, LIMITS)
def test_a_chunk_overlaps_its_neighbour_in_the_staging_buffer_only_where_it_is_alone(
    sizes: list[int], bucket: int
):
    _, chunks = plan_staging(metas_of(sizes), bucket)
    for first, second in pairwise(chunks):
        ends = [chunk.offset + total_bytes(chunk.bucket) for chunk in (first, second)]
        apart = ends[0] <= second.offset or ends[1] <= first.offset
        assert apart or first.alone or second.alone


@exhaustive
@given(st.integers(1, 200), st.integers(1, 9))
def test_the_ranks_shards_are_deepspeeds_equal_cuts_without_the_padding(numel: int, ranks: int):
    flat = torch.arange(numel)
    padded = torch.nn.functional.pad(flat, (0, -numel % ranks), value=-1)
    for rank, shard in enumerate(padded.chunk(ranks)):
        start, end = shard_range(rank, ranks, numel)
        assert torch.equal(flat[start:end], shard[shard >= 0])


def test_a_bucket_comes_apart_into_views_of_its_bytes():
    metas = [WeightMeta("a", "bfloat16", (2, 3)), WeightMeta("b", "bfloat16", (4,))]
    flat = torch.zeros(20, dtype=torch.uint8)
    named = dict(unflatten(flat, metas))
    assert named["a"].shape == (2, 3) and named["b"].shape == (4,)
    flat[12:14] = torch.tensor([0x80, 0x3F], dtype=torch.uint8)  # 1.0 in bfloat16
    assert named["b"][0] == 1.0 and named["a"].eq(0).all()


def test_what_engines_are_told_has_the_fields_of_vllms_own_dataclasses():
    """Those of the installed version, read from its source."""
    told = set(meeting("nccl").engine_info(1))
    assert told <= fields_of("nccl_common.py", "NCCLWeightTransferInitInfo")
    assert {"packed", "packed_buffer_size_bytes"} < told
    assert set(meeting("ipc").engine_info(1)) == fields_of(
        "ipc_engine.py", "IPCWeightTransferInitInfo"
    )
    told = set(chunk_info(metas_of([3]), {}))
    assert told <= fields_of("ipc_engine.py", "IPCWeightTransferUpdateInfo")


@pytest.mark.parametrize(
    ("on_gpu", "colocated", "one_host", "expected"),
    [
        (False, False, True, "shm"),
        (False, False, False, "gloo"),
        (True, True, True, "ipc"),
        (True, False, True, "nccl"),
    ],
)
def test_auto_picks_the_fastest_transport_that_the_placement_allows(
    on_gpu: bool, colocated: bool, one_host: bool, expected: str
):
    picked = pick_transport("auto", on_gpu=on_gpu, colocated=colocated, one_host=one_host)
    assert picked == expected
    asked = pick_transport("gloo", on_gpu=on_gpu, colocated=colocated, one_host=one_host)
    assert asked == "gloo", "what is asked for is not overruled"
    assert picked in BACKENDS
