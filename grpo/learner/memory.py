"""What a learner rank holds in memory at its fullest, by formula, part by part.

Written against DeepSpeed 0.19's ZeRO-3, transformers 5 and this package's policy and head;
benchmarks/memory.py holds it against a measured run. Letters: P parameters, W ranks, S packed
tokens, T response tokens; widths H (hidden), Q (query heads), K (key heads), I (MLP), V.

With `learner.lora` (Hu et al. 2021, arXiv 2106.09685) the P parameters are frozen, in the model's
dtype; masters, moments and gradients are those of the adapters' A parameters alone.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from grpo.config.recipe import LoraConfig, Recipe
from grpo.errors import UserError
from grpo.learner.flops import ModelShape

GIB = 1 << 30
# What a process holds before it holds any tensor of ours: on a GPU its context and NCCL's buffers
# (assumed), on CPU Python with torch, transformers and DeepSpeed or vLLM (measured, 0.5 to 0.9).
LIBRARIES = {"cuda": 1.0 * GIB, "cpu": 0.8 * GIB}
# vLLM's own default share of a GPU.
ENGINE_SHARE = 0.92

# Elements. DeepSpeed's own 500 and 1,000 million hold a gigabyte of gradients back before they are
# reduced, and the optimizer's float32 temporaries for the whole shard at once.
REDUCE_BUCKET = 50_000_000
SUB_GROUP = 100_000_000
# DeepSpeed's stage3_max_live_parameters: elements that stay gathered between their uses.
MAX_LIVE = 1_000_000_000

FLOAT32 = 4
ITEMSIZE = {"bfloat16": 2, "float32": FLOAT32}
# Tiles of logits that the head holds, in elements; see grpo.learner.head_kernels.TILES.
_HEAD_TILE = {"cpu": 1 << 22, "cuda": 1 << 26}
# AdamW's temporaries of a sub-group: torch takes the root of a moment on CUDA, and none in the one
# pass that it makes on a CPU.
_ADAM_TEMPORARIES = {"cpu": 0, "cuda": FLOAT32}
# DeepSpeed takes the norm of a gradient in this precision, a parameter at a time.
_NORM_BYTES = {"cpu": 8, "cuda": FLOAT32}


@dataclass(frozen=True, slots=True)
class LearnerSetting:
    """What a rank's memory depends on.

    tokens, targets: S and T of the largest micro-batch. checkpoint_every: which layers are computed
    again in backward; 0 for none. bucket_bytes: a bucket of weights on the way to the engines.
    offload_weights: on a shared GPU the weights are away while the engine samples. reference: a
    second, frozen model beside the policy.
    """

    shape: ModelShape
    dtype: Literal["bfloat16", "float32"]
    device: Literal["cpu", "cuda"]
    ranks: int
    tokens: int
    targets: int
    checkpoint_every: int = 1
    optimizer: Literal["adamw", "sgd"] = "adamw"
    offload_optimizer: bool = False
    offload_weights: bool = False
    lora: LoraConfig | None = None
    reference: bool = False
    bucket_bytes: int = 256 << 20
    reduce_bucket: int = REDUCE_BUCKET
    sub_group: int = SUB_GROUP

    @property
    def itemsize(self) -> int:
        return ITEMSIZE[self.dtype]

    @property
    def parameters(self) -> int:
        """P + A."""
        return self.shape.parameters + self.adapters

    @property
    def adapters(self) -> int:
        """A, 0 without adapters."""
        return 0 if self.lora is None else adapter_parameters(self.lora, self.shape)

    @property
    def trained(self) -> int:
        """Parameters with masters, moments and gradients: all of them, or the adapters'."""
        return self.parameters if self.lora is None else self.adapters

    @property
    def largest_trained(self) -> int:
        """Of the trained parameters: the embedding, or the longer factor of an adapter."""
        if self.lora is None:
            return self.shape.head_matmul
        return self.lora.rank * max(max(self.shape.linears[name]) for name in self.lora.targets)

    def trains(self, *names: str) -> bool:
        """Whether any of these linear layers is trained, itself or by its adapter."""
        return self.lora is None or not set(names).isdisjoint(self.lora.targets)

    def of_a_rank(self, parameters: int) -> int:
        """What ZeRO-3 leaves of them on one rank."""
        return -(-parameters // self.ranks)


def setting_of(recipe: Recipe, shape: ModelShape, device: Literal["cpu", "cuda"]) -> LearnerSetting:
    """A rank at its largest micro-batch: full, or one longest answer where that is more."""
    learner, model = recipe.learner, recipe.model
    tokens = max(learner.micro_batch_tokens, longest_sequence(recipe))
    return LearnerSetting(
        shape=shape,
        dtype=model.dtype,
        device=device,
        ranks=learner.ranks,
        tokens=tokens,
        targets=tokens,
        checkpoint_every=model.checkpoint_every if model.gradient_checkpointing else 0,
        optimizer=learner.optimizer,
        offload_optimizer=learner.offload_optimizer,
        offload_weights=learner.offload_weights,
        lora=learner.lora,
        # Of a KL penalty; with adapters it is the frozen base, which is there anyway.
        reference=recipe.regularization.kl > 0 and learner.lora is None,
        bucket_bytes=recipe.sync.bucket_mib << 20,
    )


def adapter_parameters(lora: LoraConfig, shape: ModelShape) -> int:
    """A: over all layers and targets rank x (inputs + outputs). Raises UserError for a target that
    the model does not have."""
    linears = shape.linears
    if unknown := sorted(set(lora.targets) - set(linears)):
        raise UserError(
            f"learner.lora.targets names {', '.join(unknown)}: the linear layers of this model are "
            f"{', '.join(linears)}"
        )
    return shape.layers * sum(lora.rank * sum(linears[name]) for name in set(lora.targets))


def longest_sequence(recipe: Recipe) -> int:
    """Tokens of prompt and answer; of the answer alone where the recipe sets no limit to both."""
    return recipe.rollout.max_model_len or recipe.rollout.max_tokens


def share_beside(setting: LearnerSetting, gpu_bytes: float) -> float:
    """What an engine may take of a GPU that it shares with this rank while the rank rests, rounded
    down to hundredths: all but the rank's weights, unless they rest in host memory, those of the
    reference, which never do, and what both processes hold for themselves."""
    held = resident(setting)
    weights = 0 if setting.offload_weights else held["weights"]
    kept = weights + held.get("reference", 0) + 2 * LIBRARIES["cuda"]
    return max(0.0, min(ENGINE_SHARE, math.floor(100 * (1 - kept / gpu_bytes)) / 100))


Parts = Mapping[str, float]  # bytes by name


def phases(setting: LearnerSetting) -> dict[str, Parts]:
    """The moments at which a rank may be fullest, each with its parts in bytes."""
    base = resident(setting)
    moments = {
        "layer backward": {**_activations(setting), **_in_a_layer(setting)},
        "head backward": {**_activations(setting), **_in_the_head(setting)},
        "embedding backward": _in_the_embedding(setting),
        "optimizer": _in_the_optimizer(setting),
        "sync": {"weight buckets": sync_buckets(setting)},
    }
    if setting.lora is not None:
        del moments["embedding backward"]  # it is frozen
    return {name: {**base, **parts} for name, parts in moments.items()}


def resident(setting: LearnerSetting) -> dict[str, float]:
    """What a rank holds between steps, its engines' share not counted."""
    e = setting.itemsize
    parts: dict[str, float] = {"weights": e * setting.of_a_rank(setting.parameters)}
    if not setting.offload_optimizer:
        parts |= optimizer_state(setting)
    bucket = setting.reduce_bucket
    if setting.device == "cpu":  # memory that was never written to takes no space
        bucket = min(bucket, setting.trained)
    parts["gradient bucket"] = e * bucket
    if setting.reference:
        parts["reference"] = e * setting.of_a_rank(setting.shape.parameters)
    if setting.ranks > 1:
        parts["gathered weights"] = e * min(setting.parameters, MAX_LIVE)
    return parts


def on_host(setting: LearnerSetting, colocated: bool) -> dict[str, float]:
    """What of a rank lies in host memory: always where the recipe offloads it, and on a shared GPU
    (colocated) while the engine samples; the pinned buffers are kept."""
    parts: dict[str, float] = {}
    if setting.offload_optimizer or colocated:
        parts |= optimizer_state(setting)
    if colocated:
        parts["gradient bucket"] = setting.itemsize * setting.reduce_bucket
    if colocated and setting.offload_weights:
        parts["weights"] = resident(setting)["weights"]
    return parts


def optimizer_state(setting: LearnerSetting) -> dict[str, float]:
    """On the device, or in host memory where the recipe offloads it."""
    shard = setting.of_a_rank(setting.trained)
    moments = {"adamw": 2 * FLOAT32, "sgd": 0}[setting.optimizer]
    return {
        "float32 masters": FLOAT32 * shard,
        "gradients": setting.itemsize * shard,
        "moments": moments * shard,
    }


def layer_bytes(setting: LearnerSetting) -> float:
    """What autograd keeps of one layer, per packed token.

    A norm keeps its input in float32, the normalised input and the output, which a projection
    keeps. Rotated queries and keys, values and the output are attention's; outside of CUDA they are
    laid together once more for the projection. Four widths I are the gate, its activation, the
    other branch and their product.

    A frozen norm does not keep the normalised input, nor a frozen projection without an adapter
    its own; an adapter keeps its inner width.
    """
    shape, e = setting.shape, setting.itemsize
    normalised = e if setting.lora is None else 0
    inputs = setting.trains("q_proj", "k_proj", "v_proj") + setting.trains("gate_proj", "up_proj")
    normed = (2 * (FLOAT32 + normalised) + inputs * e) * shape.hidden
    if shape.qk_norm:
        normed += (FLOAT32 + normalised) * (shape.query + shape.key_value)
    attention = e * (2 * shape.query + 2 * shape.key_value)
    if setting.device == "cpu" and setting.trains("o_proj"):
        attention += e * shape.query
    mlp = (3 + setting.trains("down_proj")) * e * shape.intermediate
    inner = 0 if setting.lora is None else e * setting.lora.rank * len(set(setting.lora.targets))
    statistics = FLOAT32 * (2 + shape.heads)
    if shape.qk_norm:
        statistics += FLOAT32 * (shape.heads + shape.kv_heads)
    return normed + attention + mlp + inner + statistics


def _activations(setting: LearnerSetting) -> dict[str, float]:
    """Kept from forward to backward: layers in full, or a layer's input where it is recomputed."""
    shape, every = setting.shape, setting.checkpoint_every
    recomputed = -(-shape.layers // every) if every else 0
    kept = recomputed * setting.itemsize * shape.hidden
    kept += (shape.layers - recomputed) * layer_bytes(setting)
    last_norm = (FLOAT32 + 2 * setting.itemsize) * shape.hidden
    return {"activations": setting.tokens * (kept + last_norm)}


def _in_a_layer(setting: LearnerSetting) -> dict[str, float]:
    """While the MLP of the layer that comes first in backward is under way."""
    shape, e = setting.shape, setting.itemsize
    parts = {
        "gradients of a layer": float(setting.tokens * e * 2 * (shape.intermediate + shape.hidden))
    }
    if setting.checkpoint_every:
        parts["recomputed layer"] = setting.tokens * layer_bytes(setting)
    if shape.tied and setting.lora is None:
        # Autograd adds the embedding's to it before it hands it on.
        parts["gradient of the head"] = e * shape.head_matmul
    return parts


def _in_the_head(setting: LearnerSetting) -> dict[str, float]:
    shape, e, device = setting.shape, setting.itemsize, setting.device
    hidden = FLOAT32 + e  # its gradient, summed in float32, and itself
    if e != FLOAT32:
        hidden += FLOAT32 if device == "cpu" else e
    parts = {
        "gradient of the head": float(e * shape.head_matmul),
        "hidden states of responses": float(setting.targets * shape.hidden * hidden),
        "logits": float(3 * FLOAT32 * min(_HEAD_TILE[device], setting.targets * shape.vocab)),
    }
    if setting.lora is not None:
        del parts["gradient of the head"]
    return parts


def _in_the_embedding(setting: LearnerSetting) -> dict[str, float]:
    """The last of backward: dense gradients, and the copy of them that is reduced."""
    shape, e = setting.shape, setting.itemsize
    copies = 3 if shape.tied else 2
    return {"gradients of the embedding": copies * e * shape.head_matmul}


def _in_the_optimizer(setting: LearnerSetting) -> dict[str, float]:
    """A sub-group's gradients in one piece and in float32, then AdamW's temporaries; or, before,
    the norm of the largest gradient. Offloaded, all of it happens in host memory."""
    if setting.offload_optimizer:
        return {}
    e, device = setting.itemsize, setting.device
    largest = setting.of_a_rank(setting.largest_trained)
    group = min(setting.of_a_rank(setting.trained), max(setting.sub_group, largest))
    whole = e if e == FLOAT32 else e + FLOAT32
    temporaries = _ADAM_TEMPORARIES[device] if setting.optimizer == "adamw" else 0
    # The piece in the weights' own precision is gone once its float32 copy is there.
    stepping = group * max(whole, FLOAT32 + temporaries)
    return {"optimizer temporaries": max(stepping, largest * _NORM_BYTES[device])}


def sync_buckets(setting: LearnerSetting) -> float:
    """Two buckets of weights on the way, each at least the largest parameter: of the sender by
    NCCL, and again of the receiver; by IPC the staging buffer and the receiver's copy."""
    e, shape = setting.itemsize, setting.shape
    bucket = max(e * shape.head_matmul, min(setting.bucket_bytes, e * shape.parameters))
    return 2.0 * bucket
