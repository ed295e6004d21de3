"""What trains, on the disk: a file for each rank, read again by any number of ranks.

    zero/rank_00000_of_00002.safetensors, zero/rank_00001_of_00002.safetensors

Each holds the elements of every flat parameter that ZeRO-3 gives its rank (`shard_range`), without
the padding: of its float32 master and of each tensor that the optimizer keeps for it, as
KIND/PARAMETER. The header says what of. Nothing here knows DeepSpeed.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from grpo.errors import UserError
from grpo.sync.buckets import shard_range

FORMAT = 1
MASTER = "master"
_KEY = "grpo"  # of the header's own text in safetensors' metadata
_MEND = "Nothing was changed. Resume from another checkpoint with --resume DIR"


@dataclass(frozen=True, slots=True)
class Header:
    """What a rank's file is a part of.

    optimizer: the name of its class
    kinds: MASTER first, then the tensors of the optimizer's state, none before its first step
    numbers: of the optimizer's state that are the same for every parameter, such as its step
    shapes: of each whole parameter that trains, by name
    base: of each frozen parameter the sum of this rank's part (`grpo.learner.lora.base_sums`)
    """

    rank: int
    ranks: int
    optimizer: str
    kinds: tuple[str, ...]
    numbers: Mapping[str, float]
    shapes: Mapping[str, tuple[int, ...]]
    base: Mapping[str, int]

    def length(self, name: str) -> int:
        """Elements of a parameter in this file; 0 where padding is all that its rank holds."""
        start, end = shard_range(self.rank, self.ranks, prod(self.shapes[name]))
        return end - start

    def lengths(self) -> dict[str, int]:
        """Elements of every tensor in this file by its key, in the order in which they lie."""
        return {
            f"{kind}/{name}": length
            for name in self.shapes
            for kind in self.kinds
            if (length := self.length(name))
        }


def file_name(rank: int, ranks: int) -> str:
    return f"rank_{rank:05d}_of_{ranks:05d}.safetensors"


def write(folder: Path, header: Header, tensor: Callable[[str, str], torch.Tensor]) -> None:
    """Writes this rank's file, whatever other ranks do. `tensor(kind, name)`: [length] float32, on
    any device; one at a time is in host memory. Raises OSError with the file's name."""
    path = folder / file_name(header.rank, header.ranks)
    lengths = header.lengths()
    described: dict[str, Any] = {
        "__metadata__": {_KEY: json.dumps({"format": FORMAT, **asdict(header)})}
    }
    at = 0
    for key, length in lengths.items():
        described[key] = {"dtype": "F32", "shape": [length], "data_offsets": [at, at + 4 * length]}
        at += 4 * length
    text = json.dumps(described).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8 bytes
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for key, length in lengths.items():
                kind, _, name = key.partition("/")
                values = tensor(kind, name)
                assert values.shape == (length,) and values.dtype == torch.float32, key
                file.write(values.detach().cpu().numpy().data)
    except OSError as error:
        # That of a write has no name of its own.
        raise OSError(error.errno, error.strerror, str(path)) from error


class Shards:
    """The files of all ranks that wrote a checkpoint."""

    def __init__(self, headers: Sequence[Header], files: Sequence[Any], folder: Path):
        self._headers = headers
        self._files = files
        self._folder = folder
        self.kinds = headers[0].kinds
        self.numbers = headers[0].numbers

    def check(self, shapes: Mapping[str, tuple[int, ...]], optimizer: str) -> None:
        """Raises UserError unless these parameters are what was trained, by this optimizer."""
        then = self._headers[0]
        path = self._folder / file_name(0, then.ranks)
        for name in [*shapes, *then.shapes]:
            found, wanted = then.shapes.get(name), shapes.get(name)
            if found != wanted:
                raise UserError(
                    f"{path}: {name} is {_shown(found)}, and this run's model has it as "
                    f"{_shown(wanted)}: the checkpoint is that of another model, or of another set "
                    f"of weights that train (model.path, learner.lora). {_MEND}"
                )
        if then.optimizer != optimizer:
            raise UserError(
                f"{path}: the optimizer was {then.optimizer}, and this run's is {optimizer}: set "
                f"learner.optimizer back. {_MEND}"
            )

    def read_into(self, out: torch.Tensor, kind: str, name: str, start: int) -> None:
        """Writes the elements from `start` on of a whole flat parameter to `out`, [length]. Only
        these are read from the disk."""
        end = start + len(out)
        for header, file in zip(self._headers, self._files, strict=True):
            first, last = shard_range(header.rank, header.ranks, prod(header.shapes[name]))
            low, high = max(start, first), min(end, last)
            if low < high:
                piece = file.get_slice(f"{kind}/{name}")[low - first : high - first]
                out[low - start : high - start].copy_(piece)

    def base_sums(self) -> dict[str, int]:
        """Of each frozen parameter as a whole."""
        sums: Counter[str] = Counter()
        for header in self._headers:
            sums.update(header.base)
        return dict(sums)


@contextmanager
def opened(folder: Path) -> Iterator[Shards]:
    """The shards in a checkpoint's folder. Raises UserError where they are not whole, not of one
    checkpoint or not of this format."""
    paths = _paths(folder)
    with ExitStack() as stack:
        files = [_opened(path, stack) for path in paths]
        headers = [_header(path, file) for path, file in zip(paths, files, strict=True)]
        for rank, (path, header, file) in enumerate(zip(paths, headers, files, strict=True)):
            _check_file(path, header, file, rank, headers)
        yield Shards(headers, files, folder)


def num_deepspeed_ranks(folder: Path) -> int:
    """How many ranks wrote this checkpoint by DeepSpeed itself, which was done once; 0: none."""
    return len(list((folder / "zero").glob("*zero_pp_rank_*_optim_states.pt")))


def _paths(folder: Path) -> list[Path]:
    """Of every rank, in order."""
    there = {path.name for path in folder.glob("rank_*_of_*.safetensors")}
    if not there:
        raise UserError(f"{folder} holds no rank_*_of_*.safetensors: it is no checkpoint. {_MEND}")
    last = max(there).removesuffix(".safetensors").rpartition("_")[2]
    ranks = int(last) if last.isdecimal() else 0
    wanted = [file_name(rank, ranks) for rank in range(ranks)]
    if missing := [name for name in wanted if name not in there]:
        raise UserError(
            f"{folder / missing[0]} is missing: {ranks} ranks wrote this checkpoint, and the files "
            f"of {ranks - len(missing)} are there. {_MEND}"
        )
    if foreign := sorted(there - set(wanted)):
        raise UserError(
            f"{folder / foreign[0]} does not belong to the {ranks} files of this checkpoint: move "
            "it away if it was put there by mistake"
        )
    return [folder / name for name in wanted]


def _opened(path: Path, stack: ExitStack) -> Any:
    try:
        return stack.enter_context(safe_open(path, framework="pt"))
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged or cut short ({error}). {_MEND}") from None


def _header(path: Path, file: Any) -> Header:
    text = (file.metadata() or {}).get(_KEY)
    if text is None:
        raise UserError(f"{path} was not written as a checkpoint of grpo. {_MEND}")
    try:
        said = json.loads(text)
        version = said.pop("format")
        if version != FORMAT:
            raise UserError(
                f"{path} has format {version}, and this version of grpo reads format {FORMAT}: "
                "resume with the version that wrote it"
            )
        said["kinds"] = tuple(said["kinds"])
        said["shapes"] = {name: tuple(shape) for name, shape in said["shapes"].items()}
        return Header(**{field.name: said[field.name] for field in fields(Header)})
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: its header cannot be read ({error!r}). {_MEND}") from None


def _check_file(
    path: Path, header: Header, file: Any, rank: int, headers: Sequence[Header]
) -> None:
    """Raises UserError unless it is that of this rank, belongs to the others and is complete."""
    if (header.rank, header.ranks) != (rank, len(headers)):
        raise UserError(
            f"{path} is by its header the file of rank {header.rank} of {header.ranks}, under "
            f"another name. {_MEND}"
        )
    first = headers[0]
    for name in first.shapes.keys() | header.shapes.keys():
        found, wanted = header.shapes.get(name), first.shapes.get(name)
        if found != wanted:
            raise UserError(
                f"{path}: {name} is {_shown(found)}, but {_shown(wanted)} in rank 0's file: it is "
                f"from another checkpoint. {_MEND}"
            )
    told, wanted = ((h.optimizer, h.kinds, dict(h.numbers)) for h in (header, first))
    if told != wanted:
        raise UserError(
            f"{path}: the optimizer is {told}, but {wanted} in rank 0's file: it is from another "
            f"checkpoint. {_MEND}"
        )
    _check_tensors(path, header, file)


def _check_tensors(path: Path, header: Header, file: Any) -> None:
    lengths, there = header.lengths(), set(file.keys())
    for key in sorted(lengths.keys() | there):
        if key not in there:
            raise UserError(f"{path}: {key} is missing, [{lengths[key]}] expected. {_MEND}")
        if key not in lengths:
            raise UserError(f"{path}: {key} is not among what its header names. {_MEND}")
        slice_ = file.get_slice(key)
        dtype, shape = slice_.get_dtype(), slice_.get_shape()
        if dtype != "F32" or shape != [lengths[key]]:
            raise UserError(
                f"{path}: {key} is {dtype} {shape}, F32 [{lengths[key]}] expected. {_MEND}"
            )


def _shown(shape: tuple[int, ...] | None) -> str:
    return "not there" if shape is None else f"of shape {list(shape)}"
