"""Floating-point operations: by hand, against torch's counter, against published figures."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, LlamaConfig, MixtralConfig, Qwen3Config

from grpo.errors import UserError
from grpo.learner.attention import Segments, segments
from grpo.learner.flops import (
    Flops,
    ModelShape,
    head_forward,
    layers_forward,
    peak_flops,
    training_flops,
    utilization,
)
from grpo.learner.usage import Meter, usage_metrics
from tests.examples import examples

SMALL = ModelShape(
    layers=2, hidden=4, heads=2, kv_heads=1, head_dim=2, intermediate=8, vocab=10, tied=True
)
QWEN3_06B = ModelShape(
    layers=28,
    hidden=1024,
    heads=16,
    kv_heads=8,
    head_dim=128,
    intermediate=3072,
    vocab=151_936,
    tied=True,
    qk_norm=True,
)


def tiny(config: type[Any], **changes: Any) -> Any:
    return config(
        **{
            "hidden_size": 32,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "intermediate_size": 48,
            "vocab_size": 50,
            **changes,
        }
    )


def test_a_small_step_counts_as_worked_out_by_hand():
    # A layer: q and o 2 x 4 x 4, k and v 2 x 4 x 2, MLP 3 x 4 x 8.
    assert SMALL.layer_matmul == 32 + 16 + 96
    # Three tokens see 1 + 2 + 3 keys, at 2 products x 2 operations x 4 query widths.
    assert layers_forward(SMALL, [3]) == 2 * (2 * 144 * 3 + 4 * 4 * 6) == 1920
    assert head_forward(SMALL, 2) == 2 * 10 * 4 * 2 == 160
    step = training_flops(SMALL, [3], 2)
    assert step == Flops(model=3 * (1920 + 160), hardware=3 * (1920 + 160) + 160)


def test_recomputed_layers_count_for_the_hardware_alone():
    plain = training_flops(SMALL, [3], 2)
    again = training_flops(SMALL, [3], 2, recomputed_layers=1)
    assert again.model == plain.model
    assert again.hardware - plain.hardware == 1920 / 2


def test_adapters_save_the_gradients_of_the_weights():
    """Seven numbers in adapters, three tokens: 2 x 7 x 3 = 42 forward, 126 with backward. The two
    layers' weights take 2 x 2 x 144 x 3 = 1728 less, and the head's 160; pairs stay as they are."""
    plain = training_flops(SMALL, [3], 2)
    adapted = training_flops(SMALL, [3], 2, adapters=7)
    assert adapted.model == plain.model - 1728 - 160 + 126
    assert adapted.hardware - adapted.model == 160
    again = training_flops(SMALL, [3], 2, adapters=7, recomputed_layers=1)
    assert again.hardware - adapted.hardware == (1920 + 42) / 2


def test_a_shared_prompt_is_computed_once_and_attended_to_by_every_answer():
    together = layers_forward(SMALL, [3, 2, 2], [0, 3, 3])
    apart = layers_forward(SMALL, [5, 5])
    # Three tokens less through the products of two layers, and the 6 pairs among them.
    assert apart - together == 2 * (2 * 144 * 3 + 4 * 4 * 6)


@examples(50)
@given(st.lists(st.integers(1, 300), min_size=1, max_size=8), st.integers(0, 300))
def test_sequences_packed_together_count_as_they_do_alone(lengths: list[int], targets: int):
    together = training_flops(SMALL, lengths, targets)
    apart = Flops(0.0, 0.0)
    for number, length in enumerate(lengths):
        apart += training_flops(SMALL, [length], targets if number == 0 else 0)
    assert together.model == pytest.approx(apart.model)
    assert together.hardware == pytest.approx(apart.hardware)


def test_matrix_products_are_those_that_torch_counts():
    config = tiny(Qwen3Config)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    shape, length = ModelShape.of(config), 24
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=torch.zeros(1, length, dtype=torch.long), use_cache=False)
    counted = {str(op): n for op, n in counter.get_flop_counts()["Global"].items()}
    attention = sum(n for op, n in counted.items() if "bmm" in op)
    # torch counts all pairs of an attention, ours the half and the diagonal that are used.
    assert attention == shape.layers * 4 * shape.query * length**2
    ours = layers_forward(shape, [length]) + head_forward(shape, length)
    used = shape.layers * 4 * shape.query * length * (length + 1) // 2
    assert ours - used == sum(counted.values()) - attention


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("config", [Qwen3Config, LlamaConfig])
def test_parameters_are_those_of_the_model(config: type[Any], tied: bool):
    made = tiny(config, tie_word_embeddings=tied)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(made)
    assert ModelShape.of(made).parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("length", "tokens_per_s", "mfu"), [(16_384, 11_896, 0.111), (65_536, 10_147, 0.268)]
)
def test_published_utilizations_of_one_h100_come_out(length: int, tokens_per_s: float, mfu: float):
    """prime-rl's benchmarks/baselines of Qwen3-0.6B, one sequence a step."""
    flops = training_flops(QWEN3_06B, [length], length).model
    found = utilization(flops, length / tokens_per_s, "NVIDIA H100 80GB HBM3")
    assert found == pytest.approx(mfu, abs=0.0006)


@pytest.mark.parametrize(
    ("device", "tera"),
    [
        ("NVIDIA H200", 989.4),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA H100 NVL", 835.5),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA B200", 2250),
        ("NVIDIA L40S", 362.05),
        ("NVIDIA L4", 121),
        ("NVIDIA GeForce RTX 4090", 165.2),
    ],
)
def test_peaks_go_by_the_name_that_torch_gives(device: str, tera: float):
    assert peak_flops(device) == tera * 1e12


@pytest.mark.parametrize("device", ["AMD EPYC", "cpu", "NVIDIA A10G", "NVIDIA H1000", ""])
def test_an_unknown_device_has_no_peak_and_no_utilization(device: str):
    assert peak_flops(device) is None
    assert utilization(1e12, 1.0, device) is None


def test_a_peak_is_of_half_precision_only():
    assert peak_flops("NVIDIA H200", "float32") is None
    assert peak_flops("NVIDIA H200", "float16") == peak_flops("NVIDIA H200")


def test_half_the_peak_is_a_utilization_of_a_half():
    assert utilization(989.4e12, 2.0, "NVIDIA H200") == pytest.approx(1 / 2)


def test_a_mixture_of_experts_is_refused_with_its_key():
    with pytest.raises(UserError, match="num_local_experts"):
        ModelShape.of(MixtralConfig(num_hidden_layers=1))


def shared_prompt() -> Segments:
    """A prompt of three tokens that two answers of two share."""
    starts = torch.tensor([0, 3, 5, 7], dtype=torch.int32)
    return segments(starts, torch.tensor([0, 1, 2, 3, 4, 3, 4]))


def test_a_meter_counts_what_lies_in_the_micro_batches_and_starts_anew():
    config = tiny(Qwen3Config)
    meter = Meter(config, "float32", torch.device("cpu"), checkpoint_every=2)
    expected = training_flops(ModelShape.of(config), [3, 2, 2], 4, positions_M=[0, 3, 3]).model
    for count in (2, 1):
        meter.start()
        for _ in range(count):
            meter.add(shared_prompt(), num_targets=4)
        found = meter.stop()
        assert found["flops"] == pytest.approx(count * expected)
        assert "mfu" not in found and found["peak_bytes"] > 1e7 and found["seconds"] > 0


def test_a_model_that_cannot_be_counted_still_has_its_memory_measured():
    meter = Meter(MixtralConfig(num_hidden_layers=1), "bfloat16", torch.device("cpu"), 1)
    meter.start()
    meter.add(shared_prompt(), num_targets=4)
    assert meter.stop().keys() == {"seconds", "peak_bytes"}


def test_ranks_are_taken_together_by_the_slowest_and_the_fullest():
    ranks = [
        {"seconds": 2.0, "peak_bytes": 2.0**30, "flops": 3e12, "mfu": 0.2, "hfu": 0.3},
        {"seconds": 4.0, "peak_bytes": 2.0**31, "flops": 5e12, "mfu": 0.4, "hfu": 0.5},
    ]
    assert usage_metrics(ranks) == pytest.approx(
        {
            "memory/learner_peak_gib": 2.0,
            "learn/tflops_per_s": 2.0,
            "learn/mfu": 0.3,
            "learn/hfu": 0.4,
        }
    )
    bare = [{"seconds": 1.0, "peak_bytes": 2.0**30}]
    assert usage_metrics(bare) == {"memory/learner_peak_gib": 1.0}
