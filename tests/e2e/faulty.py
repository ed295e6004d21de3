"""A learner rank and an engine that do one thing wrong with weights, when they are told to."""

import os
from typing import Any

import torch

from grpo.learner.rank import LearnerRank
from grpo.sync import vllm_host
from grpo.sync.buckets import Bucket, unflatten

# What vLLM puts into an engine that is started without weights.
_DUMMY = 1e-3


class FaultyRank(LearnerRank):
    """Sends `fault` in place of its weights, by the end of a tensor's name: "dummy" values, the
    tensor read "backwards", or "nan" in one element. An empty name stands for every tensor."""

    def plant(self, fault: str, name: str) -> None:
        self._fault, self._name = fault, name
        fill = type(self._source).fill

        def faulty(bucket: Bucket, flat: torch.Tensor) -> None:
            fill(self._source, bucket, flat)
            for found, tensor in unflatten(flat, bucket):
                if found.endswith(self._name):
                    self._spoil(tensor)

        self._source.fill = faulty

    def _spoil(self, tensor: torch.Tensor) -> None:
        if self._fault == "dummy":
            tensor.uniform_(-_DUMMY, _DUMMY)
        elif self._fault == "backwards":
            tensor.copy_(tensor.flatten().flip(0).view_as(tensor).clone())
        elif self._fault == "nan":
            tensor.view(-1)[0] = torch.nan

    def kept_after_rest(self, canary: list[int]) -> int:
        """Parameters that still show the memory of weights that have left, after a forward pass."""
        self.offload()
        left = {t.untyped_storage().data_ptr() for t in self._resting._shards()}
        self.score(canary)
        self.rest(True)
        shown = [p for p in self._engine.module.parameters() if p.data.numel()]
        kept = sum(p.data.untyped_storage().data_ptr() in left for p in shown)
        self.reload()
        return kept

    def leave_out(self, name: str) -> None:
        """From the next meeting on, one tensor is neither announced nor sent."""
        self._source.metas = [m for m in self._source.metas if not m.name.endswith(name)]


def make_rank(*args: Any) -> FaultyRank:
    return FaultyRank(*args)


def stale_head(model: torch.nn.Module) -> None:
    for head in model.modules():
        if isinstance(head, vllm_host.ParallelLMHead):
            lost: Any = head
            values = torch.empty_like(lost.weight).uniform_(-_DUMMY, _DUMMY)
            lost.weight = torch.nn.Parameter(values, requires_grad=False)
            lost.quant_method.process_weights_after_loading(lost)


def forget(vllm_worker: Any) -> None:
    vllm_host.pack_tied_heads = stale_head


def make_engine(spec: Any) -> Any:
    """Defined here, as vLLM is imported in the engine's own process."""
    os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"  # of a function that vLLM is to run
    from grpo.rollout.worker import RolloutWorker

    class FaultyEngine(RolloutWorker):
        async def forget_the_head(self) -> None:
            """From now on the head is what it was before the first update, tied or not."""
            engine: Any = self._engine  # whose annotation knows names of methods only
            await engine.collective_rpc(forget)

    return FaultyEngine(spec)
