"""What only a step needs rests in host memory while engines sample on the same GPU.

DeepSpeed moves the masters and moments of its own FusedAdam alone. Those of torch's optimizers are
moved here, gradients and their bucket by DeepSpeed. The weights stay, for the next update.
"""

from collections.abc import Iterator
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

    def offload(self) -> None:
        """Nothing where they are away already."""
        if self._rests:
            return
        here = {name: tensor for name, tensor in self._states() if tensor.device == self._device}
        for name, tensor in here.items():
            if name not in self._buffers:
                pinned = self._device.type == "cuda"
                self._buffers[name] = torch.empty_like(tensor, device="cpu", pin_memory=pinned)
            self._buffers[name].copy_(tensor, non_blocking=True)
        self._wait()  # all copies are under way at once, and none may be read before it is whole
        for name, tensor in here.items():
            tensor.data = self._buffers[name]
        self._away = list(here.values())
        self._engine.offload_states(include=_BY_DEEPSPEED)
        self._rests = True

    def reload(self) -> None:
        """Takes back what `offload` moved away; nothing where it was not called."""
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
