"""One ZeRO-3 rank of the learner: weighted sums in, an optimizer step out."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import deepspeed
import torch
from transformers.integrations.deepspeed import HfDeepSpeedConfig

from grpo.errors import UserError
from grpo.learner import zero_state
from grpo.learner.attention import segments
from grpo.learner.export import write_model
from grpo.learner.lora import (
    add_adapters,
    all_base_sums,
    base_sums,
    check_same_base,
    num_trained,
    save_adapter,
)
from grpo.learner.objective import Objective, Scores
from grpo.learner.policy import Loaded, load_policy, score
from grpo.learner.reference import BaseModel, Reference
from grpo.learner.resting import Resting
from grpo.learner.shards import num_deepspeed_ranks, opened
from grpo.learner.spec import LearnerSpec, learning_rate, set_options
from grpo.learner.usage import Meter
from grpo.learner.zero import init_distributed, make_optimizer, zero_config
from grpo.plugins import import_plugins
from grpo.sync.buckets import torch_dtype
from grpo.sync.merged import MergedSource
from grpo.sync.senders import make_sender
from grpo.sync.source import ZeroSource
from grpo.sync.transport import Meeting, Sender
from grpo.types import MicroBatch


class LearnerRank:
    """Holds its shard of the policy. Plain Python: Ray wraps it, tests call it.

    Collective: every rank must be given the same sequence of calls with as many micro-batches.
    """

    def __init__(self, spec: LearnerSpec, rank: int, world_size: int, address: str, port: int):
        recipe = spec.recipe
        import_plugins(recipe.plugin_names())
        if spec.threads:
            torch.set_num_threads(spec.threads)
        self._spec = spec
        self._rank = rank
        self._world_size = world_size
        self._device = init_distributed(rank, world_size, address, port)
        dtype = recipe.model.dtype
        config = zero_config(recipe.learner, dtype)
        # Partitions the weights while from_pretrained loads them; must outlive the load.
        self._zero_init = HfDeepSpeedConfig(config)
        policy = load_policy(
            spec.model,
            torch_dtype(dtype),
            recipe.rollout.temperature,
            recipe.model.gradient_checkpointing,
            recipe.model.checkpoint_every,
            trust=recipe.model.trust_remote_code,
        )
        lora = recipe.learner.lora
        if lora is not None:
            add_adapters(policy.model, lora, recipe.seed)
        engine, *_ = deepspeed.initialize(
            model=policy, optimizer=make_optimizer(policy, recipe.learner), config=config
        )
        self._engine: Any = engine
        self._source = _source(policy.model, spec)
        self._trained = zero_state.trained(policy.model)
        self._objective = Objective(recipe)
        recomputed = recipe.model.checkpoint_every if recipe.model.gradient_checkpointing else 0
        adapters = None if lora is None else num_trained(policy.model)
        self._meter = Meter(policy.model.config, dtype, self._device, recomputed, adapters)
        self._reference: Reference | BaseModel | None = None
        if recipe.regularization.kl:
            self._reference = Reference(spec, config) if lora is None else BaseModel(engine)
        self._lora = lora
        self._sender: Sender | None = None
        self._resting = Resting(engine, self._device)
        self._minibatches: list[list[Loaded]] = []
        # By mini-batch; None until one has been scored under the weights that sampled it.
        self._old_logprobs: list[list[torch.Tensor] | None] = []
        self._old_are_kept = False
        self._found: list[torch.Tensor] = []  # logprobs of the last step, by micro-batch
        self._reference_logprobs: list[list[torch.Tensor]] | None = None

    # --- a step ---

    def load(self, minibatches: Sequence[Sequence[MicroBatch]]) -> None:
        """This rank's share of the mini-batches of one rollout step."""
        self._minibatches = [[Loaded.onto(self._device, m) for m in part] for part in minibatches]
        self._old_logprobs = [None] * len(minibatches)
        self._old_are_kept = False
        if self._reference is not None:
            told = self._reference.logprobs
            self._reference_logprobs = [[told(m) for m in part] for part in self._minibatches]

    def remember_logprobs(self) -> None:
        """Keeps the logprobs of every response under the weights that sampled it. Needed only where
        the batch takes more than one optimizer step. Its first step, which is on mini-batch 0,
        finds those weights in place and keeps what it computes anyway; the others are scored."""
        self._old_are_kept = True
        with torch.no_grad():
            for index, part in enumerate(self._minibatches[1:], start=1):
                self._old_logprobs[index] = [score(self._engine, loaded) for loaded in part]

    def step(self, index: int, number: int) -> dict[str, float]:
        """One optimizer step on mini-batch `index`; `number` counts them over the run from 0.

        Returns sums over this rank's response tokens (keys ending in _sum, and `tokens`), and
        values that all ranks share. Where the gradient or a part of the loss is not finite, on
        whichever rank, `skipped` is 1: weights and optimizer are as they were.
        """
        lr = learning_rate(self._spec.recipe.learner, number, self._spec.optimizer_steps)
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr
        # DeepSpeed averages gradients over ranks; the weights are over all ranks already.
        undo_averaging = self._world_size
        totals: dict[str, torch.Tensor] = {}
        old = self._old_logprobs[index]
        found: list[torch.Tensor] = []
        self._meter.start()
        for i, loaded in enumerate(self._minibatches[index]):
            logprobs_T, entropy_T = self._engine(*loaded.inputs)
            found.append(logprobs_T.detach())
            old_T = found[i] if old is None else old[i]
            reference = self._reference_logprobs
            reference_T = reference[index][i] if reference else None
            scores = Scores(logprobs_T, entropy_T, old_T, reference_T)
            loss, sums = self._objective.loss(loaded.micro, scores)
            # nan where the loss is not finite, else 1: every rank sees it in the gradient's norm.
            finite = loss.detach() * 0 + 1
            self._engine.backward(loss * finite * undo_averaging, scale_wrt_gas=False)
            for key, value in sums.items():
                totals[key] = totals[key] + value if key in totals else value
            self._meter.add(loaded.where, len(loaded.micro.targets_T))
        if self._old_are_kept and old is None:
            self._old_logprobs[index] = found
        self._found = found
        self._engine.step()
        taken = self._engine.was_step_applied()
        # DeepSpeed, which does not take a step whose norm is not finite, keeps the norm before it.
        grad_norm = float(self._engine.get_global_grad_norm() or 0.0) if taken else math.nan
        read = torch.stack(list(totals.values())).tolist()  # the one wait for the device
        sums = dict(zip(totals, read, strict=True))
        facts = {"grad_norm": grad_norm, "lr": lr, "skipped": float(not taken)}
        return sums | facts | self._meter.stop()

    def parts_of_loss(self, index: int) -> dict[int, float]:
        """What each sequence of this rank's share of mini-batch `index` adds to the policy's loss,
        by its number in the Batch; after a step on it, which tells why it was skipped."""
        parts: dict[int, float] = {}
        old = self._old_logprobs[index]
        for i, loaded in enumerate(self._minibatches[index]):
            old_T = self._found[i] if old is None else old[i]
            parts_N = self._objective.by_sequence(loaded.micro, self._found[i], old_T).tolist()
            rows = loaded.micro.rows_N.tolist()
            parts |= {row: part for row, part in zip(rows, parts_N, strict=True) if row >= 0}
        return parts

    def num_not_finite(self) -> int:
        """Of this rank's share of the weights that train."""
        return zero_state.num_not_finite(self._engine, self._trained)

    def score(self, token_ids: Sequence[int]) -> list[float]:
        """Logprobs of tokens 1.. of a sequence, each given all tokens before it, at temperature 1,
        which is what engines score prompts at."""
        ids, length = torch.tensor(list(token_ids), device=self._device), len(token_ids)
        positions = torch.arange(length)
        where = segments(torch.tensor([0, length], dtype=torch.int32), positions).to(self._device)
        positions = positions.to(self._device)
        with torch.no_grad():
            logprobs, _ = self._engine(
                ids, positions, where, positions[:-1], ids[1:], entropy=False, temperature=1.0
            )
        return logprobs.tolist()

    # --- weights to the engines ---

    def open_transport(self, meeting: Meeting, push: Callable[..., None]) -> None:
        """Meets the engines. `push` hands them a chunk, for the transport whose learner drives."""
        if self._sender is not None:  # an engine has a new process, so all of them meet anew
            self._sender.close()
        self._sender = make_sender(self._source, meeting, push)
        self._sender.open()

    def update_info(self) -> dict[str, Any]:
        assert self._sender is not None, "open_transport comes first"
        return self._sender.update_info()

    def send(self) -> None:
        assert self._sender is not None, "open_transport comes first"
        with self._source.reading():
            if self._device.type == "cuda":
                torch.cuda.synchronize()  # the optimizer's last writes, before other streams read
            self._sender.send()

    def offload(self) -> None:
        """Moves everything that only a step needs to host memory (shared GPUs)."""
        self._resting.offload()
        torch.cuda.empty_cache()

    def rest(self, weights: bool) -> None:
        """Between an update and the next step, while engines sample on this GPU: what a forward
        pass has left goes. `weights`: they, too; until they are taken back nothing can be scored,
        and nothing sent."""
        if weights:
            self._resting.offload_weights()
        else:
            self._resting.release()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def reload(self) -> None:
        """Takes back what was moved away; nothing where nothing was."""
        self._resting.reload()

    def num_weight_bytes(self) -> int:
        return sum(meta.num_bytes for meta in self._source.metas)

    # --- disk ---

    def save(self, folder: Path) -> None:
        """This rank's file of what trains, with the optimizer state, for resume with any number of
        ranks. Not collective. A frozen base stays out; that it is the same again is known by its
        sums. Raises OSError."""
        base = base_sums(self._engine.module) if self._lora else {}
        zero_state.write(self._engine, self._trained, base, folder)

    def restore(self, folder: Path) -> None:
        """Raises UserError where a file is damaged, missing or that of another model, and where the
        base is not the one that the adapters were trained on."""
        self._resting.reload()
        if num_deepspeed_ranks(folder):
            self._restore_by_deepspeed(folder)
            return
        with opened(folder) as stored:
            zero_state.check(self._engine, self._trained, stored)
            if self._lora is not None:
                now = all_base_sums(self._engine.module)
                check_same_base(now, stored.base_sums(), self._spec.model)
            zero_state.read(self._engine, self._trained, stored)

    def _restore_by_deepspeed(self, folder: Path) -> None:
        """From a checkpoint of DeepSpeed's own form, which wants as many ranks as wrote it."""
        ranks = num_deepspeed_ranks(folder)
        if ranks != self._world_size:
            raise UserError(
                f"learner.ranks is {self._world_size}, but the checkpoint in {folder} is in an "
                f"older form, which only as many ranks can read as wrote it: set "
                f"learner.ranks={ranks} until the next checkpoint is written, and change it then"
            )
        # Not strict with adapters, as the frozen parameters are not in it.
        strict = self._lora is None
        found, state = self._engine.load_checkpoint(
            str(folder), tag="zero", load_module_strict=strict
        )
        if found is None:  # DeepSpeed says so in its log, and goes on
            raise UserError(f"{folder} has no state of learner rank {self._rank}")
        # The state brings the settings that it was saved with; those of the recipe hold.
        set_options(self._engine.optimizer.param_groups, self._spec.recipe.learner)
        if self._lora is not None:
            check_same_base(base_sums(self._engine.module), state["base"], self._spec.model)

    def export(self, folder: Path) -> None:
        """A Hugging Face folder (weights, config, tokenizer) that transformers and vLLM load, with
        adapters merged into the weights. The ranks wait for each other to gather, not for the disk:
        where rank 0 cannot write, the others are done all the same."""
        weights = self._source.whole(keep=self._rank == 0)
        if self._rank == 0:
            trust = self._spec.recipe.model.trust_remote_code
            write_model(self._engine.module.model, weights, self._spec.model, folder, trust)

    def export_adapter(self, folder: Path) -> None:
        """The adapters alone, a folder that peft loads; nothing where all weights train."""
        if not isinstance(self._source, MergedSource):
            return
        assert self._lora is not None
        tensors = self._source.adapters(keep=self._rank == 0)
        if self._rank == 0:
            save_adapter(folder, self._lora, tensors, self._spec.model)


def _source(model: torch.nn.Module, spec: LearnerSpec) -> ZeroSource:
    """The weights as engines load them."""
    dtype, lora = spec.recipe.model.dtype, spec.recipe.learner.lora
    parameters = dict(model.named_parameters())
    if lora is None:
        return ZeroSource(parameters, dtype, spec.bucket_bytes)
    scale = lora.alpha / lora.rank
    return MergedSource(parameters, dtype, spec.bucket_bytes, scale=scale)
