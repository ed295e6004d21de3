"""Predicted memory: worked examples, what autograd really keeps, and what the command says."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config
from typer.testing import CliRunner

from grpo.cli.plan import plan as command
from grpo.config.load import load_recipe
from grpo.config.recipe import Recipe
from grpo.errors import UserError
from grpo.learner import attention
from grpo.learner.flops import ModelShape
from grpo.learner.memory import LearnerSetting, layer_bytes, phases, resident
from grpo.preflight.plan import GIB, Device, changes_that_fit, kv_bytes_per_token, model_shape, plan
from tests.examples import examples

ROOT = Path(__file__).parents[2]
QWEN3_06B = {
    "model_type": "qwen3",
    "hidden_size": 1024,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 3072,
    "vocab_size": 151_936,
    "max_position_embeddings": 40_960,
    "tie_word_embeddings": True,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(QWEN3_06B))
    return tmp_path


@pytest.fixture
def recipe(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """Qwen3-0.6B in bfloat16: two engines, six ranks, 16,384 tokens, answers of up to 8,192."""
    monkeypatch.chdir(ROOT)
    return load_recipe(Path("recipes/qwen3_1p7b_ba.yaml"), [f"model.path={folder}"])


def setting(**changes: Any) -> LearnerSetting:
    shape = ModelShape.of(Qwen3Config(**{k: v for k, v in QWEN3_06B.items() if k != "model_type"}))
    values: dict[str, Any] = {
        "shape": shape,
        "dtype": "bfloat16",
        "device": "cuda",
        "ranks": 1,
        "tokens": 16_384,
        "targets": 16_384,
    }
    return LearnerSetting(**values | changes)


def test_between_steps_a_rank_holds_sixteen_bytes_a_parameter_and_its_bucket():
    parts = resident(setting())
    shards = sum(parts.values()) - parts["gradient bucket"]
    assert shards == 16 * 596_049_920  # bfloat16 2 + 2, float32 master 4, two moments 8
    assert parts["gradient bucket"] == 2 * 50_000_000
    quarter = resident(setting(ranks=4))
    assert quarter["moments"] == parts["moments"] / 4
    assert quarter["gathered weights"] == 2 * 596_049_920


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
def test_a_layer_keeps_what_autograd_keeps(config: type[Any], dtype: torch.dtype):
    sizes = {
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "intermediate_size": 192,
        "vocab_size": 50,
    }
    made = [config(**sizes, num_hidden_layers=layers) for layers in (1, 3)]
    one, three = (kept_bytes(each, dtype) for each in made)
    name: Any = str(dtype).removeprefix("torch.")
    formula = layer_bytes(setting(shape=ModelShape.of(made[0]), dtype=name, device="cpu"))
    assert formula == pytest.approx((three - one) / 2 / 128, rel=0.02)


def kept_bytes(config: Any, dtype: torch.dtype) -> int:
    """Of distinct storages that autograd holds after a forward over four sequences of 32 tokens,
    without the weights."""
    attention.register(attention.PACKED)
    model = AutoModelForCausalLM.from_config(
        config, dtype=dtype, attn_implementation=attention.PACKED
    ).train()
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    held: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    positions = torch.arange(32).repeat(4)
    where = attention.segments(torch.arange(5, dtype=torch.int32) * 32, positions)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model.model(
            input_ids=torch.zeros(1, 128, dtype=torch.long),
            position_ids=positions[None],
            use_cache=False,
            **attention.arguments(attention.PACKED, where),
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


def test_the_cache_of_a_token_is_two_widths_a_layer(recipe: Recipe):
    shape = model_shape(recipe)
    assert kv_bytes_per_token(recipe, shape) == 2 * 28 * 1024 * 2


def test_a_model_that_is_to_be_built_needs_no_file(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    demo = load_recipe(Path("recipes/tiny_cpu.yaml"))
    assert model_shape(demo).parameters == 789_824
    (host,) = {phase.where for phase in plan(demo, model_shape(demo), Device("cpu", 24))}
    assert host == "host"


def test_each_change_that_is_named_makes_it_fit(recipe: Recipe):
    shape, device = model_shape(recipe), Device("cuda", 5.0)
    assert not all(phase.fits for phase in plan(recipe, shape, device))
    changes = changes_that_fit(recipe, shape, device)
    assert changes
    for change in changes:
        path = recipe.model.path
        changed = load_recipe(
            Path("recipes/qwen3_1p7b_ba.yaml"), [f"model.path={path}", *change.split()]
        )
        assert all(phase.fits for phase in plan(changed, shape, device)), change


def test_what_every_second_layer_keeps_is_counted_and_can_be_given_up(recipe: Recipe):
    sparse = recipe.model_copy(
        update={"model": recipe.model.model_copy(update={"checkpoint_every": 2})}
    )
    shape, device = model_shape(recipe), Device("cuda", 80)
    every, second = (
        next(phase for phase in plan(r, shape, device) if phase.name == "layer backward")
        for r in (recipe, sparse)
    )
    # 14 layers keep everything, not their input of 16,384 x 1,024 values of two bytes alone.
    kept = second.parts["activations"] - every.parts["activations"]
    assert kept > 14 * 16_384 * 1024 * 2
    tight = Device("cuda", every.total / GIB)
    assert "model.checkpoint_every=1" in changes_that_fit(sparse, shape, tight)


def test_where_nothing_helps_nothing_is_named(recipe: Recipe):
    assert changes_that_fit(recipe, model_shape(recipe), Device("cuda", 0.5)) == []


def test_colocated_engines_and_learner_share_a_device(recipe: Recipe):
    shared = recipe.model_copy(update={"placement": "colocated"})
    found = plan(shared, model_shape(recipe), Device("cuda", 80))
    assert {phase.where for phase in found} == {"shared GPU"}
    update = next(phase for phase in found if phase.name == "sync")
    assert update.parts["engine's weights"] == 2 * 596_049_920
    assert update.parts["libraries"] == 2 * GIB


def run(*arguments: str) -> Any:
    app = typer.Typer()
    app.command()(command)
    return CliRunner().invoke(app, list(arguments))


def test_the_command_prints_tables_and_exits_with_1_where_something_does_not_fit(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(ROOT)
    base = ("recipes/qwen3_1p7b_ba.yaml", f"model.path={folder}", "--device", "gpu")
    fine = run(*base, "--device-gib", "80")
    assert fine.exit_code == 0, fine.output
    assert "6 x learner GPU, 80 GiB" in fine.output
    assert "112 KiB of KV cache per token" in fine.output
    crowded = run(*base, "--device-gib", "5")
    assert crowded.exit_code == 1, crowded.output
    assert "does not fit: learner GPU, layer backward" in crowded.output
    assert "would fit with: " in crowded.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--device", "tpu"], "expected gpu or cpu"),
        (["--device-gib", "0"], "expected a size above 0"),
        (["model.path=./nowhere"], "no config.json"),
    ],
)
def test_mistakes_exit_with_2(arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    result = run("recipes/tiny_cpu.yaml", *arguments)
    assert result.exit_code == 2, result.output
    assert said in result.output


def test_a_configuration_that_cannot_be_read_is_the_users_to_mend(tmp_path: Path, recipe: Recipe):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        model_shape(recipe)
