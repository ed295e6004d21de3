"""What only a step needs rests in host memory while engines sample on the same GPU.

DeepSpeed moves the masters and moments of its own FusedAdam alone. Those of torch's optimizers are
moved here, gradients and their bucket by DeepSpeed. The weights stay for the update that comes
first; then they can be moved as well, all of them here, since DeepSpeed takes every weight for one
that is trained.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from deepspeed.runtime.zero.offload_config import OffloadStateTypeEnum

_ALIGNED = 64
_View = tuple[torch.Tensor, int]  # with the byte of its memory at which it begins
_BY_DEEPSPEED = [
    OffloadStateTypeEnum.lp_grads,
    OffloadStateTypeEnum.contiguous_grad_buffer,
]


class Resting:
    """Moves the states of a ZeRO-3 engine, which must have an optimizer, between `device` and
    pinned buffers, which are kept."""

    def __init__(self, engine: Any, device: torch.device):
        self._engine = engine
        self._device = device
        self._buffers: dict[str, torch.Tensor] = {}
        self._away: list[torch.Tensor] = []
        self._rests = False
        self._weights: list[tuple[list[_View], torch.Tensor]] | None = None

    def offload(self) -> None:
        """Nothing where they are away already."""
        if self._rests:
            return
        here = {name: tensor for name, tensor in self._states() if tensor.device == self._device}
        for name, tensor in here.items():
            if name not in self._buffers:
                self._buffers[name] = self._pinned(tensor)
            self._buffers[name].copy_(tensor, non_blocking=True)
        self._wait()  # all copies are under way at once, and none may be read before it is whole
        for name, tensor in here.items():
            tensor.data = self._buffers[name]
        self._away = list(here.values())
        self._engine.offload_states(include=_BY_DEEPSPEED)
        self._rests = True

    def release(self) -> None:
        """Gives back what DeepSpeed keeps gathered after a forward pass, for the next one. On one
        rank those are views of the shards' own memory, which would stay with them."""
        self._engine.optimizer.empty_partition_cache()

    def offload_weights(self) -> None:
        """The shards of all weights, trained and frozen; nothing where they are away already."""
        if self._weights is not None:
            return
        self.release()
        groups = _by_memory(self._shards())
        memories = [_bytes_of(tensors[0]) for tensors in groups]
        buffers = self._slices([len(memory) for memory in memories])
        for memory, buffer in zip(memories, buffers, strict=True):
            buffer.copy_(memory, non_blocking=True)
        self._wait()
        views = [[(tensor, _start(tensor)) for tensor in tensors] for tensors in groups]
        self._weights = list(zip(views, buffers, strict=True))
        for shown, buffer in self._weights:
            _move(shown, buffer)

    def _slices(self, sizes: Sequence[int]) -> list[torch.Tensor]:
        """Of one pinned buffer, since each that is pinned by itself is rounded up to a power of
        two. They begin where any dtype may."""
        padded = [size + -size % _ALIGNED for size in sizes]
        if "weights" not in self._buffers:
            self._buffers["weights"] = self._pinned(torch.empty(sum(padded), dtype=torch.uint8))
        pieces = self._buffers["weights"].split(padded)
        return [piece[:size] for piece, size in zip(pieces, sizes, strict=True)]

    def reload(self) -> None:
        """Takes back what was moved away; nothing where nothing was."""
        self._reload_weights()
        if not self._rests:
            return
        for tensor in self._away:
            # A new one on the CPU, too: the next offload writes to the buffer.
            back = torch.empty_like(tensor, device=self._device)
            back.copy_(tensor, non_blocking=True)
            tensor.data = back
        self._wait()
        self._away = []
        self._engine.reload_states()
        self._rests = False

    def _reload_weights(self) -> None:
        for shown, buffer in self._weights or []:
            # A new one on the CPU, too: the next offload writes to the buffer.
            back = torch.empty_like(buffer, device=self._device)
            back.copy_(buffer, non_blocking=True)
            _move(shown, back)
        self._wait()
        self._weights = None

    def _pinned(self, like: torch.Tensor) -> torch.Tensor:
        return torch.empty_like(like, device="cpu", pin_memory=self._device.type == "cuda")

    def _shards(self) -> Iterator[torch.Tensor]:
        """Every tensor that shows weights on the device: as long as one is left there, so is the
        memory of all that share it."""
        zero = self._engine.optimizer
        shown = [p.ds_tensor for p in self._engine.module.parameters()]
        shown += [zero.lp_param_buffer, *zero.fp16_partitioned_groups_flat]
        for tensor in shown:
            if tensor is not None and tensor.device == self._device and tensor.numel():
                yield tensor

    def _states(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Masters and moments by name. Moments are there from the first step on."""
        zero = self._engine.optimizer
        for i, master in enumerate(zero.fp32_partitioned_groups_flat):
            yield f"master {i}", master
        for i, state in enumerate(zero.optimizer.state.values()):
            for key, value in state.items():
                if isinstance(value, torch.Tensor):
                    yield f"{key} {i}", value

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize()


def _by_memory(tensors: Iterable[torch.Tensor]) -> list[list[torch.Tensor]]:
    """Tensors that are views of one memory, together."""
    found: dict[int, list[torch.Tensor]] = {}
    for tensor in tensors:
        found.setdefault(tensor.untyped_storage().data_ptr(), []).append(tensor)
    return list(found.values())


def _bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    """The whole memory that a tensor is a view of, as bytes."""
    memory = torch.empty(0, dtype=torch.uint8, device=tensor.device)
    memory.set_(tensor.untyped_storage())
    return memory


def _start(tensor: torch.Tensor) -> int:
    """Where in its memory a tensor begins, in bytes."""
    return int(tensor.storage_offset()) * tensor.element_size()


def _move(shown: Sequence[_View], memory: torch.Tensor) -> None:
    """Makes them views of other memory, each where it was in the first."""
    for tensor, start in shown:
        end = start + tensor.numel() * tensor.element_size()
        tensor.data = memory[start:end].view(tensor.dtype).view(tensor.shape)
