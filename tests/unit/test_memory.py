"""What a learner rank holds: worked examples, and what autograd really keeps."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config

from grpo.config.recipe import LoraConfig
from grpo.errors import UserError
from grpo.learner import attention
from grpo.learner.flops import ModelShape
from grpo.learner.memory import (
    GIB,
    adapter_parameters,
    layer_bytes,
    on_host,
    phases,
    resident,
    share_beside,
)
from tests.examples import examples
from tests.unit.planned import PARAMETERS, SHAPE, setting

LORA = LoraConfig(rank=32)


def test_between_steps_a_rank_holds_sixteen_bytes_a_parameter_and_its_bucket():
    parts = resident(setting())
    shards = sum(parts.values()) - parts["gradient bucket"]
    assert shards == 16 * PARAMETERS  # bfloat16 2 + 2, float32 master 4, two moments 8
    assert parts["gradient bucket"] == 2 * 50_000_000
    quarter = resident(setting(ranks=4))
    assert quarter["moments"] == parts["moments"] / 4
    assert quarter["gathered weights"] == 2 * PARAMETERS


def test_offloading_leaves_weights_and_what_gradients_pass_through():
    assert set(resident(setting(offload_optimizer=True))) == {"weights", "gradient bucket"}


def test_checkpointing_keeps_a_layers_input_and_one_layer():
    whole = setting(checkpoint_every=0)
    kept = phases(whole)["layer backward"]["activations"]
    again = phases(setting())["layer backward"]
    # Widths: H 1024, Q 2048, K 1024, I 3072. Two norms of 4 + 2 + 2 bytes, norms of queries and
    # keys of 4 + 2, rotated queries, keys, values and the output, four MLP widths, statistics.
    layer = 16 * 1024 + 6 * 3072 + 2 * (2 * 2048 + 2 * 1024) + 8 * 3072 + 4 * (2 + 16 + 24)
    assert layer_bytes(whole) == layer
    last_norm = 8 * 1024
    assert kept == 16_384 * (28 * layer + last_norm)
    assert again["activations"] == 16_384 * (28 * 2 * 1024 + last_norm)
    assert again["recomputed layer"] == 16_384 * layer
    half = phases(setting(checkpoint_every=2))["layer backward"]["activations"]
    assert half == 16_384 * (14 * 2 * 1024 + 14 * layer + last_norm)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("config", [Qwen3Config, LlamaConfig])
@pytest.mark.parametrize(
    "targets",
    [None, LORA.targets, ("q_proj", "v_proj"), ("o_proj", "down_proj"), ("gate_proj",)],
    ids=lambda targets: "+".join(targets) if targets else "all weights",
)
def test_a_layer_keeps_what_autograd_keeps(
    config: type[Any], dtype: torch.dtype, targets: tuple[str, ...] | None
):
    sizes = {
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "intermediate_size": 192,
        "vocab_size": 50,
    }
    lora = None if targets is None else LoraConfig(rank=8, targets=targets)
    made = [config(**sizes, num_hidden_layers=layers) for layers in (1, 3)]
    one, three = (kept_bytes(each, dtype, lora) for each in made)
    name: Any = str(dtype).removeprefix("torch.")
    shape = ModelShape.of(made[0])
    formula = layer_bytes(setting(shape=shape, dtype=name, device="cpu", lora=lora))
    assert formula == pytest.approx((three - one) / 2 / 128, rel=0.02)


class Adapted(nn.Module):
    """x W + (x A) B, with A of the rank's width."""

    def __init__(self, base: nn.Linear, rank: int):
        super().__init__()
        made: dict[str, Any] = {"bias": False, "dtype": base.weight.dtype}
        self.base = base
        self.a = nn.Linear(base.in_features, rank, **made)
        self.b = nn.Linear(rank, base.out_features, **made)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.base(hidden) + self.b(self.a(hidden)) * 2.0


def adapt(model: nn.Module, lora: LoraConfig) -> None:
    model.requires_grad_(False)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if name in lora.targets:
                setattr(module, name, Adapted(child, lora.rank))


def kept_bytes(config: Any, dtype: torch.dtype, lora: LoraConfig | None) -> int:
    """Of distinct storages that autograd holds after a forward over four sequences of 32 tokens,
    without the weights."""
    attention.register(attention.PACKED)
    model = AutoModelForCausalLM.from_config(
        config, dtype=dtype, attn_implementation=attention.PACKED
    ).train()
    if lora is not None:
        adapt(model, lora)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    held: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    positions = torch.arange(32).repeat(4)
    where = attention.segments(torch.arange(5, dtype=torch.int32) * 32, positions)
    # The first layer is kept like the others where its input takes part, as in checkpointing.
    inputs = torch.zeros(1, 128, 64, dtype=dtype, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model.model(
            inputs_embeds=inputs * 1,
            position_ids=positions[None],
            use_cache=False,
            **attention.arguments(attention.PACKED, where, dtype),
        )
    assert output.last_hidden_state.requires_grad
    return sum(t.untyped_storage().nbytes() for at, t in held.items() if at not in weights)


@examples(50)
@given(st.integers(1, 100_000), st.integers(1, 100_000), st.integers(0, 4))
def test_more_tokens_never_take_less(fewer: int, more: int, every: int):
    fewer, more = sorted((fewer, more))
    small, large = (
        phases(setting(tokens=n, targets=n, checkpoint_every=every)) for n in (fewer, more)
    )
    for name in small:
        assert sum(small[name].values()) <= sum(large[name].values())


def test_adapters_have_rank_times_inputs_and_outputs_of_every_target():
    # Widths: H 1024, Q 2048, K 1024, I 3072; 28 layers. q and o: 3072 each; k, v: 2048 each;
    # gate, up, down: 4096 each.
    every = 28 * 32 * (2 * 3072 + 2 * 2048 + 3 * 4096)
    assert adapter_parameters(LORA, SHAPE) == every == 20_185_088
    two = LoraConfig(rank=8, targets=("q_proj", "down_proj"))
    assert adapter_parameters(two, SHAPE) == 28 * 8 * (3072 + 4096)


def test_a_target_that_the_model_lacks_is_named_with_those_it_has():
    with pytest.raises(UserError, match=r"names c_attn: the linear layers .* q_proj, k_proj"):
        adapter_parameters(LoraConfig(targets=("q_proj", "c_attn")), SHAPE)


def test_with_adapters_a_weight_takes_two_bytes_and_an_adapter_sixteen():
    parts = resident(setting(lora=LORA))
    assert parts["weights"] == 2 * (PARAMETERS + 20_185_088)
    assert parts["float32 masters"] == 4 * 20_185_088
    assert parts["gradients"] == 2 * 20_185_088
    assert parts["moments"] == 8 * 20_185_088
    half = resident(setting(lora=LORA, ranks=2))
    assert half["weights"] == PARAMETERS + 20_185_088
    assert half["moments"] == 4 * 20_185_088


def test_a_frozen_embedding_and_head_have_no_gradients():
    found = phases(setting(lora=LORA))
    assert "embedding backward" not in found
    for parts in found.values():
        assert "gradient of the head" not in parts
    # One group of all adapters: float32 gradients and AdamW's float32 temporary.
    assert found["optimizer"]["optimizer temporaries"] == 20_185_088 * 8


def test_an_adapter_keeps_its_inner_width_and_a_frozen_norm_keeps_less():
    whole, adapted = setting(), setting(lora=LORA)
    # Seven targets of 32 values; two norms of 1,024 and those of queries and keys, 3,072 together.
    assert layer_bytes(adapted) - layer_bytes(whole) == 2 * (7 * 32 - 2 * 1024 - 3072)


@pytest.mark.parametrize(
    ("changes", "colocated", "kept"),
    [
        ({}, False, 0),
        ({"offload_optimizer": True}, False, 14 * PARAMETERS),
        ({}, True, 14 * PARAMETERS + 2 * 50_000_000),
        ({"offload_weights": True}, True, 16 * PARAMETERS + 2 * 50_000_000),
        ({"offload_weights": True}, False, 0),
        ({"ranks": 2}, True, 7 * PARAMETERS + 2 * 50_000_000),
    ],
)
def test_what_rests_lies_in_host_memory(changes: dict[str, Any], colocated: bool, kept: int):
    assert sum(on_host(setting(**changes), colocated).values()) == kept


def test_weights_that_rest_leave_their_bytes_to_the_engine():
    # 1.11 GiB of weights and 2 GiB for both processes.
    assert share_beside(setting(), 10 * GIB) == 0.68
    assert share_beside(setting(offload_weights=True), 10 * GIB) == 0.80
