"""The files of a checkpoint: read by another number of ranks, and refused where they do not fit."""

import json
import os
import struct
from collections.abc import Callable
from dataclasses import replace
from math import prod
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from grpo.errors import UserError
from grpo.learner import shards
from grpo.learner.shards import Header, file_name, opened
from grpo.sync.buckets import shard_range

SHAPES = {"a.weight": (3, 5), "b": (1,), "c.bias": (7,)}
KINDS = ("master", "exp_avg")


def whole(kind: str, name: str, shapes: dict[str, tuple[int, ...]] = SHAPES) -> torch.Tensor:
    """Different in every element of every tensor."""
    start = 1000 * list(shapes).index(name) + 100 * KINDS.index(kind)
    return torch.arange(prod(shapes[name]), dtype=torch.float32) + start


def header(rank: int, ranks: int) -> Header:
    return Header(rank, ranks, "AdamW", KINDS, {"step": 3.0}, SHAPES, {"frozen": 10 + rank})


def save(folder: Path, ranks: int, change: Callable[[Header], Header] = lambda h: h) -> None:
    """`change` is made to the last rank's header."""
    for rank in range(ranks):
        made = header(rank, ranks)
        made = change(made) if rank == ranks - 1 else made

        def tensor(kind: str, name: str, made: Header = made) -> torch.Tensor:
            start, end = shard_range(made.rank, made.ranks, prod(made.shapes[name]))
            return whole(kind, name, dict(made.shapes))[start:end]

        shards.write(folder, made, tensor)


def refusal(folder: Path) -> str:
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    with pytest.raises(UserError) as raised, opened(folder):
        pass
    after = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert after == before, "nothing is deleted"
    return str(raised.value)


def test_the_files_hold_each_element_once_and_no_padding(tmp_path: Path):
    """Of 15 elements two ranks hold 8 and 7, of one element the second holds nothing."""
    save(tmp_path, 2)
    first, second = (load_file(tmp_path / file_name(rank, 2)) for rank in range(2))
    assert first["master/a.weight"].tolist() == list(range(8))
    assert second["master/a.weight"].tolist() == list(range(8, 15))
    assert first["exp_avg/b"].tolist() == [1100.0]
    assert "exp_avg/b" not in second
    assert second["master/c.bias"].tolist() == [2004.0, 2005.0, 2006.0]


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(1, 6))
def test_any_number_of_ranks_reads_what_any_number_wrote(tmp_path_factory, then: int, now: int):
    folder = tmp_path_factory.mktemp("shards")
    save(folder, then)
    with opened(folder) as stored:
        stored.check(SHAPES, "AdamW")
        assert stored.kinds == KINDS and stored.numbers == {"step": 3.0}
        for kind in KINDS:
            for name, shape in SHAPES.items():
                parts = []
                for rank in range(now):
                    start, end = shard_range(rank, now, prod(shape))
                    out = torch.full((end - start,), torch.nan)
                    stored.read_into(out, kind, name, start)
                    parts.append(out)
                assert torch.equal(torch.cat(parts), whole(kind, name))


def test_sums_of_a_frozen_base_are_those_of_all_ranks(tmp_path: Path):
    save(tmp_path, 3)
    with opened(tmp_path) as stored:
        assert stored.base_sums() == {"frozen": 10 + 11 + 12}


def test_a_folder_without_files_is_no_checkpoint(tmp_path: Path):
    assert "holds no rank_*" in refusal(tmp_path)


@pytest.mark.parametrize("lost", [0, 2])
def test_a_missing_file_is_named(tmp_path: Path, lost: int):
    save(tmp_path, 3)
    (tmp_path / file_name(lost, 3)).unlink()
    told = refusal(tmp_path)
    assert file_name(lost, 3) in told and "files of 2 are there" in told


def test_a_file_of_another_number_of_ranks_beside_the_others_is_named(tmp_path: Path):
    save(tmp_path, 1)
    save(tmp_path, 2)
    assert f"{file_name(0, 1)} does not belong to the 2 files" in refusal(tmp_path)


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_a_file_that_was_cut_short_is_named(tmp_path: Path, kept: int):
    """Within the length of its header, within the header, and by its last byte."""
    save(tmp_path, 2)
    path = tmp_path / file_name(1, 2)
    path.write_bytes(path.read_bytes()[:kept])
    assert f"{path} is damaged or cut short" in refusal(tmp_path)


def test_a_file_under_another_ranks_name_is_named(tmp_path: Path):
    save(tmp_path, 2)
    content = (tmp_path / file_name(0, 2)).read_bytes()
    (tmp_path / file_name(1, 2)).write_bytes(content)
    assert "is by its header the file of rank 0 of 2" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"shapes": {**SHAPES, "a.weight": (5, 3)}}, "a.weight is of shape [5, 3], but of shape"),
        ({"shapes": {"a.weight": (3, 5), "b": (1,)}}, "c.bias is not there, but of shape [7]"),
        ({"numbers": {"step": 4.0}}, "'step': 4.0"),
        ({"kinds": ("master",)}, "it is from another checkpoint"),
        ({"optimizer": "SGD"}, "the optimizer is ('SGD'"),
    ],
)
def test_a_file_of_another_checkpoint_is_named_with_what_differs(tmp_path: Path, change, words):
    save(tmp_path, 2, lambda made: replace(made, **change))
    told = refusal(tmp_path)
    assert words in told and file_name(1, 2) in told and "another checkpoint" in told


def rewrite(path: Path, change: Callable[[dict], None]) -> None:
    """Changes the text at the beginning of a file of safetensors."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    text = json.loads(content[8 : 8 + length])
    change(text)
    made = json.dumps(text).encode()
    path.write_bytes(struct.pack("<Q", len(made)) + made + content[8 + length :])


def test_another_format_says_which_this_version_reads(tmp_path: Path):
    save(tmp_path, 1)

    def newer(text: dict) -> None:
        said = json.loads(text["__metadata__"]["grpo"])
        text["__metadata__"]["grpo"] = json.dumps(said | {"format": 2})

    rewrite(tmp_path / file_name(0, 1), newer)
    assert "has format 2, and this version of grpo reads format 1" in refusal(tmp_path)


def test_a_file_of_safetensors_that_is_no_checkpoint_is_told_apart(tmp_path: Path):
    save(tmp_path, 1)
    rewrite(tmp_path / file_name(0, 1), lambda text: text.pop("__metadata__"))
    assert "was not written as a checkpoint of grpo" in refusal(tmp_path)


@pytest.mark.parametrize("said", ["{", "[]", '{"format": 1}', "7"])
def test_a_header_that_says_nothing_is_named(tmp_path: Path, said: str):
    save(tmp_path, 1)
    rewrite(tmp_path / file_name(0, 1), lambda text: text["__metadata__"].update(grpo=said))
    assert "its header cannot be read" in refusal(tmp_path)


def test_a_tensor_under_another_name_is_named(tmp_path: Path):
    save(tmp_path, 1)
    path = tmp_path / file_name(0, 1)
    path.write_bytes(path.read_bytes().replace(b'"exp_avg/b"', b'"exp_avg/x"'))
    told = refusal(tmp_path)
    assert "exp_avg/b is missing, [1] expected" in told


def test_a_tensor_of_another_dtype_is_named(tmp_path: Path):
    save(tmp_path, 1)

    def halved(text: dict) -> None:
        text["master/c.bias"] |= {"dtype": "F16", "shape": [14]}

    rewrite(tmp_path / file_name(0, 1), halved)
    assert "master/c.bias is F16 [14], F32 [7] expected" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("shapes", "optimizer", "words"),
    [
        ({**SHAPES, "b": (2,)}, "AdamW", "b is of shape [1], and this run's model has it as of"),
        ({**SHAPES, "d": (2,)}, "AdamW", "d is not there, and"),
        ({"b": (1,), "c.bias": (7,)}, "AdamW", "has it as not there"),
        (SHAPES, "SGD", "the optimizer was AdamW, and this run's is SGD"),
    ],
)
def test_a_run_of_another_model_or_optimizer_is_refused(tmp_path: Path, shapes, optimizer, words):
    save(tmp_path, 2)
    with opened(tmp_path) as stored, pytest.raises(UserError) as raised:
        stored.check(shapes, optimizer)
    assert words in str(raised.value) and file_name(0, 2) in str(raised.value)


def test_a_folder_in_a_files_place_is_an_error_of_the_disk_with_its_name(tmp_path: Path):
    path = tmp_path / file_name(0, 1)
    path.mkdir()
    with pytest.raises(OSError) as raised:
        save(tmp_path, 1)
    assert raised.value.filename == str(path)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_disk_that_is_full_is_an_error_with_the_files_name_and_number(tmp_path: Path):
    path = tmp_path / file_name(0, 1)
    path.symlink_to("/dev/full")
    with pytest.raises(OSError) as raised:
        save(tmp_path, 1)
    assert raised.value.filename == str(path) and raised.value.strerror == os.strerror(28)
