"""The gloo and shared-memory transports, vLLM side: an engine inside each vLLM worker."""

from dataclasses import dataclass
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    VocabParallelEmbedding,
)
from vllm.model_executor.model_loader.reload import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

from grpo.sync.buckets import WeightMeta
from grpo.sync.channel import GlooChannel
from grpo.sync.receive import GlooReceiver, Receiver, ShmReceiver


@dataclass
class HostInitInfo(WeightTransferInitInfo):
    """`transport` is "gloo" or "shm"."""

    transport: str
    master_address: str
    master_port: int
    rank_offset: int
    world_size: int
    timeout_s: float


@dataclass
class HostUpdateInfo(WeightTransferUpdateInfo):
    metas: list[dict[str, Any]]
    bucket_bytes: int


class HostWeightTransferEngine(WeightTransferEngine[HostInitInfo, HostUpdateInfo]):
    """Receives through host memory. Can be initialised again, also with the other transport."""

    init_info_cls = HostInitInfo
    update_info_cls = HostUpdateInfo

    def init_transfer_engine(self, init_info: HostInitInfo) -> None:
        channel = GlooChannel(
            init_info.master_address,
            init_info.master_port,
            rank=init_info.rank_offset + self.parallel_config.rank,
            world_size=init_info.world_size,
            timeout_s=init_info.timeout_s,
        )
        receivers = {"gloo": GlooReceiver, "shm": ShmReceiver}
        self._receiver: Receiver = receivers[init_info.transport](channel)

    def start_weight_update(self) -> None:
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: HostUpdateInfo) -> None:
        metas = [
            WeightMeta(meta["name"], meta["dtype"], tuple(meta["shape"]))
            for meta in update_info.metas
        ]
        self._receiver.receive(metas, update_info.bucket_bytes, self._load)

    def _load(self, flat: torch.Tensor, weights: list[tuple[str, torch.Tensor]]) -> None:
        model: Any = self.model
        model.load_weights(weights)
        keep_waiting(self.model, flat)

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)
        pack_tied_heads(self.model)

    def shutdown(self) -> None:
        """Nothing to release: sockets and memory go with the process."""


def keep_waiting(model: torch.nn.Module, flat: torch.Tensor) -> None:
    """Copies out of `flat`, which will be overwritten, what vLLM holds back until the layer is
    complete (q of a fused qkv, say)."""
    start = flat.data_ptr()
    end = start + flat.numel()
    for layer in model.modules():
        for _, call in get_layerwise_info(layer).loaded_weights:
            for name, value in call.arguments.items():
                if isinstance(value, torch.Tensor) and start <= value.data_ptr() < end:
                    call.arguments[name] = value.clone()


def pack_tied_heads(model: torch.nn.Module) -> None:
    """On CPU the head multiplies by a packed copy of its weight, and layerwise reload repacks a
    tied weight for the embedding only: without this, the head would keep the old policy's."""
    embeddings = [m for m in model.modules() if isinstance(m, VocabParallelEmbedding)]
    heads: list[Any] = [m for m in embeddings if isinstance(m, ParallelLMHead)]
    for head in heads:
        if any(m.weight is head.weight for m in embeddings if m is not head):
            head.quant_method.process_weights_after_loading(head)
