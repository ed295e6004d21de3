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
        self._weights: list[tuple[list[torch.Tensor], torch.Tensor]] | None = None

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

    def offload_weights(self) -> None:
        """The shards of all weights, trained and frozen; nothing where they are away already."""
        if self._weights is not None:
            return
        self._weights = []
        for tensors in _by_memory(self._shards()):
            memory = _bytes_of(tensors[0])
            name = f"weights {len(self._weights)}"
            if name not in self._buffers:
                self._buffers[name] = self._pinned(memory)
            buffer = self._buffers[name]
            buffer.copy_(memory, non_blocking=True)
            self._weights.append((tensors, buffer))
        self._wait()
        for tensors, buffer in self._weights:
            _move(tensors, buffer)

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
        for tensors, buffer in self._weights or []:
            # A new one on the CPU, too: the next offload writes to the buffer.
            back = torch.empty_like(buffer, device=self._device)
            back.copy_(buffer, non_blocking=True)
            _move(tensors, back)
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


def _move(tensors: Sequence[torch.Tensor], memory: torch.Tensor) -> None:
    """Makes them views of other memory, each where it was."""
    for tensor in tensors:
        start = tensor.storage_offset() * tensor.element_size()
        end = start + tensor.numel() * tensor.element_size()
        tensor.data = memory[start:end].view(tensor.dtype).view(tensor.shape)
