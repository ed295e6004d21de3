"""How well an optimizer step used its device: operations, utilization, peak memory."""

import resource
import time
from typing import Any

import torch

from grpo.errors import UserError
from grpo.learner.attention import Segments
from grpo.learner.flops import Flops, ModelShape, training_flops, utilization


class Meter:
    """One rank's. `start`, `add` for every micro-batch, `stop`; then again.

    config: the model's, of transformers. checkpoint_every: which layers are computed again in
    backward; 0 for none. adapters: their parameters, where they alone train.
    """

    def __init__(
        self,
        config: Any,
        dtype: str,
        device: torch.device,
        checkpoint_every: int,
        adapters: int | None = None,
    ):
        try:
            self._shape = ModelShape.of(config)
        except UserError:  # not a dense decoder: its operations are not counted, and none claimed
            self._shape = None
        self._dtype = dtype
        self._cuda = device.type == "cuda"
        self._device = torch.cuda.get_device_name(device) if self._cuda else "cpu"
        self._every = checkpoint_every
        self._adapters = adapters
        self._began_s = 0.0
        self._flops = Flops(0.0, 0.0)

    def start(self) -> None:
        self._flops = Flops(0.0, 0.0)
        self._began_s = time.perf_counter()
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()

    def add(self, where: Segments, num_targets: int) -> None:
        """A forward and a backward over a micro-batch of these segments and response tokens."""
        if self._shape is None:
            return
        self._flops += training_flops(
            self._shape,
            where.lengths,
            num_targets,
            positions_M=where.firsts,
            recomputed_layers=-(-self._shape.layers // self._every) if self._every else 0,
            adapters=self._adapters,
        )

    def stop(self) -> dict[str, float]:
        """seconds; peak_bytes: tensors since `start` on a GPU, all memory since the process began
        on CPU; flops where they can be counted, mfu and hfu where the device's peak is known."""
        seconds = time.perf_counter() - self._began_s
        found = {"seconds": seconds, "peak_bytes": float(self._peak_bytes())}
        if self._shape is None:
            return found
        found["flops"] = self._flops.model
        for name, flops in (("mfu", self._flops.model), ("hfu", self._flops.hardware)):
            share = utilization(flops, seconds, self._device, dtype=self._dtype)
            if share is not None:
                found[name] = share
        return found

    def _peak_bytes(self) -> int:
        if self._cuda:
            return torch.cuda.max_memory_allocated()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def usage_metrics(ranks: list[dict[str, float]]) -> dict[str, float]:
    """What `Meter.stop` returned on every rank, under the names that are logged."""
    metrics = {"memory/learner_peak_gib": max(rank["peak_bytes"] for rank in ranks) / 2**30}
    if all("flops" in rank for rank in ranks):
        slowest_s = max(rank["seconds"] for rank in ranks)
        metrics["learn/tflops_per_s"] = sum(rank["flops"] for rank in ranks) / slowest_s / 1e12
    for name in ("mfu", "hfu"):
        if all(name in rank for rank in ranks):
            metrics[f"learn/{name}"] = sum(rank[name] for rank in ranks) / len(ranks)
    return metrics
