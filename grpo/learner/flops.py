"""Floating-point operations of a learner step, and what share of the device's peak they make up.

Counted as in PaLM's appendix B (arXiv 2204.02311): two operations per multiply-add of a matrix
product, forward once, backward twice; norms, rotary embeddings and softmax are left out. Attention
is causal, so a sequence of n tokens has n (n + 1) / 2 pairs, and the head scores response tokens
only: both count less than the usual 6 N per token, which would overstate the utilization.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from grpo.errors import UserError

_TERA = 1e12

# Dense bfloat16 FLOP/s with float32 accumulation, without structured sparsity, by the words of
# torch.cuda.get_device_name(): the first line whose words are all in a name holds. Sources: the
# data sheets of NVIDIA (where they print the figure with sparsity, half of it): B200 (HGX, 36
# PFLOPS of eight), H200, H100 (SXM5, NVL, PCIe), GH200, A100, L40S, L4, A10; for GeForce the
# whitepapers of the Ada and Ampere (GA102) architectures, tensor FP16 with FP32 accumulate.
_PEAKS: tuple[tuple[tuple[str, ...], float], ...] = (
    (("B200",), 2250 * _TERA),
    (("GH200",), 989.4 * _TERA),
    (("H200", "NVL"), 835.5 * _TERA),
    (("H200",), 989.4 * _TERA),
    (("H100", "NVL"), 835.5 * _TERA),
    (("H100", "PCIE"), 756.5 * _TERA),
    (("H100",), 989.4 * _TERA),
    (("A100",), 312 * _TERA),
    (("L40S",), 362.05 * _TERA),
    (("L4",), 121 * _TERA),
    (("A10",), 125 * _TERA),
    (("RTX", "4090"), 165.2 * _TERA),
    (("RTX", "3090"), 71 * _TERA),
)


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The sizes of a dense decoder-only transformer with a gated MLP (Llama, Qwen2, Qwen3).

    qk_norm: queries and keys are normalised head by head, as Qwen3's are.
    context: tokens of prompt and answer together, at most; None where the model does not say.
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    tied: bool
    qk_norm: bool = False
    context: int | None = None

    @classmethod
    def of(cls, config: Any) -> "ModelShape":
        """From a transformers configuration. Raises UserError for one that is not dense."""
        values = config.to_dict()
        experts = [key for key in ("num_experts", "num_local_experts", "n_routed_experts")
                   if values.get(key)]  # fmt: skip
        if experts:
            raise UserError(
                f"model type {values.get('model_type')!r} has {experts[0]}={values[experts[0]]}: "
                "only dense decoders are counted"
            )
        needed = {
            "layers": "num_hidden_layers",
            "hidden": "hidden_size",
            "heads": "num_attention_heads",
            "intermediate": "intermediate_size",
            "vocab": "vocab_size",
        }
        if lacking := [key for key in needed.values() if values.get(key) is None]:
            raise UserError(
                f"model type {values.get('model_type')!r} has no {lacking[0]} in its config.json: "
                "only dense decoders such as Llama, Qwen2 and Qwen3 are counted"
            )
        sizes = {field: int(values[key]) for field, key in needed.items()}
        heads = sizes["heads"]
        return cls(
            **sizes,
            kv_heads=int(values.get("num_key_value_heads") or heads),
            head_dim=int(values.get("head_dim") or sizes["hidden"] // heads),
            tied=bool(values.get("tie_word_embeddings")),
            qk_norm=values.get("model_type") == "qwen3",
            context=values.get("max_position_embeddings"),
        )

    @property
    def query(self) -> int:
        """Width of all query heads together."""
        return self.heads * self.head_dim

    @property
    def key_value(self) -> int:
        """Width of all key heads together; the values' is the same."""
        return self.kv_heads * self.head_dim

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """The linear layers of one decoder layer by their names: inputs and outputs."""
        return {
            "q_proj": (self.hidden, self.query),
            "k_proj": (self.hidden, self.key_value),
            "v_proj": (self.hidden, self.key_value),
            "o_proj": (self.query, self.hidden),
            "gate_proj": (self.hidden, self.intermediate),
            "up_proj": (self.hidden, self.intermediate),
            "down_proj": (self.intermediate, self.hidden),
        }

    @property
    def layer_matmul(self) -> int:
        """Parameters of one layer that take part in matrix products."""
        return sum(inputs * outputs for inputs, outputs in self.linears.values())

    @property
    def layer_parameters(self) -> int:
        """With the norms; biases, which Qwen2 has on three projections, are left out."""
        return self.layer_matmul + 2 * self.hidden + (2 * self.head_dim if self.qk_norm else 0)

    @property
    def parameters(self) -> int:
        embeddings = self.head_matmul if self.tied else 2 * self.head_matmul
        return self.layers * self.layer_parameters + embeddings + self.hidden

    @property
    def head_matmul(self) -> int:
        return self.vocab * self.hidden


@dataclass(frozen=True, slots=True)
class Flops:
    """`model`: what a step needs, for MFU; `hardware`: with what is computed again, for HFU."""

    model: float
    hardware: float

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(self.model + other.model, self.hardware + other.hardware)


def layers_forward(
    shape: ModelShape, lengths_M: Sequence[int], positions_M: Sequence[int] | None = None
) -> float:
    """All layers once over segments of these lengths, in tokens.

    positions_M: where each begins: 0, or behind a prompt of so many tokens that it shares.
    """
    tokens = sum(lengths_M)
    before_M = positions_M or [0] * len(lengths_M)
    pairs = sum(n * p + n * (n + 1) // 2 for n, p in zip(lengths_M, before_M, strict=True))
    # Every pair takes a product with the key and one with the value, over all query heads.
    return shape.layers * (2.0 * shape.layer_matmul * tokens + 4.0 * shape.query * pairs)


def head_forward(shape: ModelShape, targets: int) -> float:
    """The head once, for `targets` response tokens."""
    return 2.0 * shape.head_matmul * targets


def training_flops(
    shape: ModelShape,
    lengths_M: Sequence[int],
    targets: int,
    *,
    positions_M: Sequence[int] | None = None,
    recomputed_layers: int = 0,
    adapters: int | None = None,
) -> Flops:
    """Forward and backward over packed segments, see `layers_forward`.

    targets: response tokens in all. recomputed_layers: how many layers gradient checkpointing runs
    again; the chunked head computes its logits again in every backward. adapters: their parameters
    in all layers, where they alone train: no gradient of any other weight is computed.
    """
    layers, head = layers_forward(shape, lengths_M, positions_M), head_forward(shape, targets)
    model = 3 * (layers + head)
    if adapters is not None:
        added = 2.0 * adapters * sum(lengths_M)
        model += 3 * added - head - shape.layers * 2.0 * shape.layer_matmul * sum(lengths_M)
        layers += added
    return Flops(model, model + layers * recomputed_layers / shape.layers + head)


def peak_flops(device: str, dtype: str = "bfloat16") -> float | None:
    """FLOP/s that the named device cannot pass; None where it is not known, as of any CPU.

    `device` is what torch.cuda.get_device_name() says. Known for bfloat16 and float16 only: float32
    has other peaks with and without TF32.
    """
    if dtype not in ("bfloat16", "float16"):
        return None
    words = set(re.split(r"[^A-Z0-9]+", device.upper()))
    for needed, peak in _PEAKS:
        if words.issuperset(needed):
            return peak
    return None


def utilization(flops: float, seconds: float, device: str, dtype: str = "bfloat16") -> float | None:
    """The share of the device's peak: MFU of `Flops.model`, HFU of `.hardware`."""
    peak = peak_flops(device, dtype)
    if peak is None or seconds <= 0:
        return None
    return flops / (seconds * peak)
