"""The gloo transport, vLLM side: a weight-transfer engine inside each vLLM worker."""

from dataclasses import dataclass
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.reload import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)

from grpo.sync.buckets import WeightMeta, plan_buckets, unflatten
from grpo.sync.channel import GlooChannel


@dataclass
class GlooInitInfo(WeightTransferInitInfo):
    master_address: str
    master_port: int
    rank_offset: int
    world_size: int
    timeout_s: float


@dataclass
class GlooUpdateInfo(WeightTransferUpdateInfo):
    metas: list[dict[str, Any]]
    bucket_bytes: int


class GlooWeightTransferEngine(WeightTransferEngine[GlooInitInfo, GlooUpdateInfo]):
    init_info_cls = GlooInitInfo
    update_info_cls = GlooUpdateInfo

    def init_transfer_engine(self, init_info: GlooInitInfo) -> None:
        parallel = self.parallel_config
        self._channel = GlooChannel(
            init_info.master_address,
            init_info.master_port,
            rank=init_info.rank_offset + parallel.rank,
            world_size=init_info.world_size,
            timeout_s=init_info.timeout_s,
        )

    def start_weight_update(self) -> None:
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: GlooUpdateInfo) -> None:
        metas = [
            WeightMeta(meta["name"], meta["dtype"], tuple(meta["shape"]))
            for meta in update_info.metas
        ]
        model: Any = self.model
        for bucket in plan_buckets(metas, update_info.bucket_bytes):
            flat = torch.empty(sum(meta.num_bytes for meta in bucket), dtype=torch.uint8)
            self._channel.broadcast(flat)
            failure: str | None = None
            try:
                model.load_weights(unflatten(flat, bucket))
            except Exception as error:  # agree() raises it, here and in the learner
                failure = f"{type(error).__name__}: {error}"
            self._channel.agree(failure)

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)
        # On CPU the head multiplies by a packed copy of its weight, and layerwise reload repacks a
        # tied weight only for the embedding: without this the head stays at the old policy.
        heads: list[Any] = [m for m in self.model.modules() if isinstance(m, ParallelLMHead)]
        for head in heads:
            head.quant_method.process_weights_after_loading(head)

    def shutdown(self) -> None:
        """Nothing to release: the channel's sockets close with the process."""
