"""One ZeRO-3 rank of the learner: weighted sums in, an optimizer step out."""

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.runtime.zero.offload_config import OffloadStateTypeEnum
from transformers import AutoTokenizer
from transformers.integrations.deepspeed import HfDeepSpeedConfig

from grpo.learner.objective import Objective, Scores
from grpo.learner.policy import load_policy, to_device
from grpo.learner.reference import Reference
from grpo.learner.spec import LearnerSpec, learning_rate
from grpo.learner.usage import Meter
from grpo.learner.zero import init_distributed, make_optimizer, zero_config
from grpo.sync.buckets import torch_dtype
from grpo.sync.senders import make_sender
from grpo.sync.source import ZeroSource
from grpo.sync.transport import Meeting, Sender
from grpo.types import MicroBatch

# What rests in host memory while the engines sample; the weights stay, for the next update.
_NEEDED_IN_A_STEP = [
    OffloadStateTypeEnum.optim_states,
    OffloadStateTypeEnum.hp_params,
    OffloadStateTypeEnum.lp_grads,
    OffloadStateTypeEnum.contiguous_grad_buffer,
]


class LearnerRank:
    """Holds its shard of the policy. Plain Python: Ray wraps it, tests call it.

    Collective: every rank must be given the same sequence of calls with as many micro-batches.
    """

    def __init__(self, spec: LearnerSpec, rank: int, world_size: int, address: str, port: int):
        for plugin in spec.plugins:
            importlib.import_module(plugin)
        if spec.threads:
            torch.set_num_threads(spec.threads)
        self._spec = spec
        self._rank = rank
        self._world_size = world_size
        self._device = init_distributed(rank, world_size, address, port)
        config = zero_config(spec.config, spec.dtype)
        # Partitions the weights while from_pretrained loads them; must outlive the load.
        self._zero_init = HfDeepSpeedConfig(config)
        policy = load_policy(
            spec.model,
            torch_dtype(spec.dtype),
            spec.temperature,
            spec.gradient_checkpointing,
            spec.checkpoint_every,
        )
        engine, *_ = deepspeed.initialize(
            model=policy, optimizer=make_optimizer(policy, spec.config), config=config
        )
        self._engine: Any = engine
        self._source = ZeroSource(policy.model, spec.dtype, spec.bucket_bytes)
        self._objective = Objective(spec)
        recomputed = spec.checkpoint_every if spec.gradient_checkpointing else 0
        self._meter = Meter(policy.model.config, spec.dtype, self._device, recomputed)
        self._reference = Reference(spec, config) if spec.regularization.kl else None
        self._sender: Sender | None = None
        self._offloaded = False
        self._minibatches: list[list[MicroBatch]] = []
        # By mini-batch; None until one has been scored under the weights that sampled it.
        self._old_logprobs: list[list[torch.Tensor] | None] = []
        self._old_are_kept = False
        self._reference_logprobs: list[list[torch.Tensor]] | None = None

    # --- a step ---

    def load(self, minibatches: Sequence[Sequence[MicroBatch]]) -> None:
        """This rank's share of the mini-batches of one rollout step."""
        self._minibatches = [[to_device(m, self._device) for m in part] for part in minibatches]
        self._old_logprobs = [None] * len(minibatches)
        self._old_are_kept = False
        if self._reference is not None:
            score = self._reference.logprobs
            self._reference_logprobs = [[score(m) for m in part] for part in self._minibatches]

    def remember_logprobs(self) -> None:
        """Keeps the logprobs of every response under the weights that sampled it. Needed only where
        the batch takes more than one optimizer step. Its first step, which is on mini-batch 0,
        finds those weights in place and keeps what it computes anyway; the others are scored."""
        self._old_are_kept = True
        with torch.no_grad():
            for index, part in enumerate(self._minibatches[1:], start=1):
                self._old_logprobs[index] = [self._forward(micro)[0] for micro in part]

    def step(self, index: int, number: int) -> dict[str, float]:
        """One optimizer step on mini-batch `index`; `number` counts them over the run from 0.

        Returns sums over this rank's response tokens (keys ending in _sum, and `tokens`), and
        values that all ranks share.
        """
        lr = learning_rate(self._spec.config, number, self._spec.optimizer_steps)
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr
        # DeepSpeed averages gradients over ranks; the weights are over all ranks already.
        undo_averaging = self._world_size
        totals: dict[str, float] = {}
        old = self._old_logprobs[index]
        found: list[torch.Tensor] = []
        self._meter.start()
        for i, micro in enumerate(self._minibatches[index]):
            logprobs_T, entropy_T = self._forward(micro)
            found.append(logprobs_T.detach())
            old_T = found[i] if old is None else old[i]
            reference = self._reference_logprobs
            reference_T = reference[index][i] if reference else None
            scores = Scores(logprobs_T, entropy_T, old_T, reference_T)
            loss, sums = self._objective.loss(micro, scores)
            self._engine.backward(loss * undo_averaging, scale_wrt_gas=False)
            for key, value in sums.items():
                totals[key] = totals.get(key, 0.0) + value
            self._meter.add(micro)
        if self._old_are_kept and old is None:
            self._old_logprobs[index] = found
        self._engine.step()
        grad_norm = float(self._engine.get_global_grad_norm() or 0.0)
        return totals | {"grad_norm": grad_norm, "lr": lr} | self._meter.stop()

    def _forward(self, micro: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
        return self._engine(
            micro.input_ids_S,
            micro.position_ids_S,
            micro.cu_seqlens,
            micro.predict_T,
            micro.targets_T,
        )

    def score(self, token_ids: Sequence[int]) -> list[float]:
        """Logprobs of tokens 1.. of a sequence, each given all tokens before it."""
        ids = torch.tensor(list(token_ids), device=self._device)
        length = len(token_ids)
        with torch.no_grad():
            logprobs, _ = self._engine(
                ids,
                torch.arange(length, device=self._device),
                torch.tensor([0, length], dtype=torch.int32, device=self._device),
                torch.arange(length - 1, device=self._device),
                ids[1:],
            )
        return logprobs.tolist()

    # --- weights to the engines ---

    def open_transport(self, meeting: Meeting, push: Callable[..., None]) -> None:
        """Meets the engines. `push` hands them a chunk, for the transport whose learner drives."""
        self._sender = make_sender(self._source, meeting, push)
        self._sender.open()

    def update_info(self) -> dict[str, Any]:
        assert self._sender is not None, "open_transport comes first"
        return self._sender.update_info()

    def send(self) -> None:
        assert self._sender is not None, "open_transport comes first"
        if self._device.type == "cuda":
            torch.cuda.synchronize()  # the optimizer's last writes, before other streams read
        self._sender.send()

    def offload(self) -> None:
        """Moves everything that only a step needs to host memory (shared GPUs)."""
        self._engine.offload_states(include=_NEEDED_IN_A_STEP)
        self._offloaded = True
        torch.cuda.empty_cache()

    def reload(self) -> None:
        """Takes back what `offload` moved away; nothing where it was not called."""
        if self._offloaded:
            self._engine.reload_states()
            self._offloaded = False

    def num_weight_bytes(self) -> int:
        return sum(meta.num_bytes for meta in self._source.metas)

    # --- disk ---

    def save(self, folder: Path) -> None:
        """The sharded optimizer state and weights, for resume with as many ranks."""
        self._engine.save_checkpoint(str(folder), tag="zero", exclude_frozen_parameters=False)

    def restore(self, folder: Path) -> None:
        self._engine.load_checkpoint(str(folder), tag="zero")

    def export(self, folder: Path) -> None:
        """A Hugging Face folder (weights, config, tokenizer) that transformers and vLLM load."""
        weights = {name: t.cpu().clone() for name, t in self._source.named_tensors()}
        if self._rank == 0:
            self._engine.module.model.save_pretrained(folder, state_dict=weights)
            AutoTokenizer.from_pretrained(self._spec.model).save_pretrained(folder)
        if self._world_size > 1:
            dist.barrier()
