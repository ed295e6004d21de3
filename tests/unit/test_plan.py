"""`grpo plan`: every phase on every device, the engines' cache, and what the command says."""

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from grpo.cli.plan import plan as command
from grpo.config.load import load_recipe
from grpo.config.recipe import Recipe
from grpo.config.shipped import shipped
from grpo.errors import UserError
from grpo.learner.flops import ModelShape
from grpo.learner.memory import setting_of
from grpo.learner.shapes import known_models, model_shape
from grpo.preflight.engine import engine_memory, kv_bytes_per_token
from grpo.preflight.layout import Machine
from grpo.preflight.plan import GIB, Phase, engine_share, kv_cache, plan
from tests.unit.planned import PARAMETERS, QWEN3_06B

ROOT = Path(__file__).parents[2]
CARD = Machine("cuda", 80)
SHARED = ["placement=colocated", "rollout.engines=1", "learner.ranks=1"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(QWEN3_06B))
    return tmp_path


@pytest.fixture
def load(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Qwen3-0.6B in bfloat16: two engines, six ranks, 16,384 tokens, answers of up to 8,192, with
    overrides."""
    monkeypatch.chdir(ROOT)
    return lambda *overrides: load_recipe("qwen3_1p7b_ba", [f"model.path={folder}", *overrides])


def shape_of(recipe: Recipe) -> ModelShape:
    return model_shape(recipe)[0]


def phase(recipe: Recipe, name: str, where: str, machine: Machine = CARD) -> Phase:
    (found,) = (
        phase
        for phase in plan(recipe, shape_of(recipe), machine)
        if (phase.name, phase.where) == (name, where)
    )
    return found


# --- engines ---


def test_the_cache_of_a_token_is_two_widths_a_layer(load: Any):
    shape = shape_of(load())
    assert kv_bytes_per_token(load(), shape) == 2 * 28 * 1024 * 2
    halved = load("rollout.engine.kv_cache_dtype=fp8")
    assert kv_bytes_per_token(halved, shape) == 2 * 28 * 1024
    # Eight key heads over sixteen GPUs: each head is there twice.
    assert kv_bytes_per_token(load("rollout.tensor_parallel=16"), shape) == 2 * 28 * 2048 * 2


def test_the_cache_gets_what_weights_and_a_forward_pass_leave_of_the_share(load: Any):
    recipe, shape = load(), shape_of(load())
    engine = engine_memory(recipe, shape)
    assert engine.weights == 2 * PARAMETERS
    # 2,048 tokens of two H and three I in bfloat16; 128 sequences' logits three times in float32.
    assert engine.activations == 2 * 2048 * (2 * 1024 + 3 * 3072) + 3 * 4 * 128 * 151_936
    assert engine_share(recipe, shape, CARD) == 0.92
    cache = kv_cache(recipe, shape, CARD)
    assert cache == pytest.approx(0.92 * 80 * GIB - engine.weights - engine.activations)
    assert engine.sequence == 10_240 * 114_688
    assert engine.sequences(cache) == pytest.approx(cache / 10_240 / 114_688)
    pair = engine_memory(load("rollout.tensor_parallel=2"), shape)
    assert (pair.weights, pair.token) == (PARAMETERS, 114_688 / 2)


def test_what_the_recipe_says_of_an_engine_comes_before_what_vllm_would_take(load: Any):
    said = load(
        "rollout.engine={gpu_memory_utilization: 0.5, max_num_seqs: 1024}",
        "rollout.engine.max_num_batched_tokens=4",
    )
    shape = shape_of(said)
    assert engine_share(said, shape, CARD) == 0.5
    engine = engine_memory(said, shape)
    assert engine.activations == 2 * 4 * (2 * 1024 + 3 * 3072) + 3 * 4 * 1024 * 151_936
    assert engine.most == 1024
    fixed = load("rollout.engine.kv_cache_memory_bytes=1000")
    assert kv_cache(fixed, shape, CARD) == 1000


def test_an_engine_that_cannot_hold_one_longest_sequence_does_not_fit(load: Any):
    # 1.11 GiB of weights, 0.26 of a forward pass and 1.09 of one sequence.
    assert phase(load(), "engine's share at least", "engine GPU").total / GIB == pytest.approx(
        1.110 + 0.260 + 1.094, abs=0.001
    )
    assert not phase(
        load(), "engine's share at least", "engine GPU", Machine("cuda", 2.6)
    ).fits  # of which 2.39


def test_without_a_limit_the_cache_must_hold_the_models_whole_context(load: Any):
    """As a run starts vLLM, which refuses a cache that does not hold it."""
    free = load("rollout.max_model_len=null")
    assert engine_memory(free, shape_of(free)).longest == 40_960
    # 1.11 GiB of weights, 0.26 of a forward pass and 4.375 of one sequence.
    least = phase(free, "engine's share at least", "engine GPU", Machine("cuda", 6))
    assert least.parts["KV cache"] == 40_960 * 114_688
    assert not least.fits  # of which 5.52
    assert phase(load(), least.name, "engine GPU", Machine("cuda", 6)).fits
    # The learner's micro-batches stay those of the answers.
    micro = ["rollout.max_model_len=null", "learner.micro_batch_tokens=64"]
    assert setting_of(load(*micro), shape_of(free), "cuda").tokens == 8192


def test_an_update_takes_two_buckets_and_the_module_that_is_made_anew(load: Any):
    parts = phase(load(), "sync", "engine GPU").parts
    head = 2 * 1024 * 151_936  # more than a bucket of 256 MiB
    assert parts["weight buckets"] == 2 * head
    assert parts["module in loading"] == head
    assert parts["engine's weights"] == 2 * PARAMETERS


# --- shared GPUs ---


def test_colocated_engines_and_learner_share_a_device(load: Any):
    shared = load(*SHARED)
    found = plan(shared, shape_of(shared), CARD)
    assert {phase.where for phase in found} == {"shared GPU", "host of a node"}
    learning = phase(shared, "optimizer", "shared GPU").parts
    assert learning["libraries"] == 2 * GIB
    assert "engine's weights" not in learning


def test_in_an_update_of_a_shared_gpu_both_have_their_weights_and_nothing_else_but_buckets(
    load: Any,
):
    head = 2 * 1024 * 151_936
    assert phase(load(*SHARED), "sync", "shared GPU").parts == {
        "weights": 2 * PARAMETERS,
        "engine's weights": 2 * PARAMETERS,
        "libraries": 2 * GIB,
        "weight buckets": 2 * head,
        "module in loading": head,
    }


def test_weights_that_rest_in_host_memory_make_room_for_the_cache(load: Any):
    card = Machine("cuda", 10)
    stay, rest = load(*SHARED), load(*SHARED, "learner.offload_weights=true")
    before, after = (phase(r, "rollout", "shared GPU", card) for r in (stay, rest))
    assert before.parts["weights"] == 2 * PARAMETERS
    assert "weights" not in after.parts
    # Shares of 0.68 and 0.80, see test_memory.py.
    grown = after.parts["KV cache"] - before.parts["KV cache"]
    assert grown == pytest.approx(0.12 * 10 * GIB)
    hosts = [phase(r, "resting", "host of a node", card).parts for r in (stay, rest)]
    assert [parts.get("weights") for parts in hosts] == [None, 2 * PARAMETERS]
    # Masters, gradients and moments of one rank, and three processes: rank, engine, driver.
    assert hosts[0]["moments"] == 8 * PARAMETERS
    assert hosts[0]["libraries"] == pytest.approx(3 * 0.8 * GIB)


def test_auto_is_planned_as_it_will_be_decided(load: Any):
    recipe = load("placement=auto", "rollout.engines=1", "learner.ranks=1")
    shape = shape_of(recipe)

    def wheres(gpus: int | None) -> set[str]:
        return {phase.where for phase in plan(recipe, shape, Machine("cuda", 80, gpus))}

    assert wheres(1) == {"shared GPU", "host of a node"}
    assert wheres(2) == wheres(None) == {"learner GPU", "engine GPU"}


def test_a_host_has_what_all_ranks_of_its_node_leave_there(load: Any):
    recipe = load("learner.offload_optimizer=true", "rollout.engines=8", "learner.ranks=8")
    two = Machine("cuda", 80, gpus=8, nodes=2, host_gib=1)
    found = phase(recipe, "resting", "host of a node", two)
    assert found.parts["moments"] == 8 * PARAMETERS  # eight ranks, an eighth each
    assert found.parts["libraries"] == pytest.approx(9 * 0.8 * GIB)
    assert not found.fits
    unknown = Machine("cuda", 80, gpus=8, nodes=2)
    assert phase(recipe, "resting", "host of a node", unknown).fits


# --- models ---


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("Qwen/Qwen3-0.6B", 0.596),
        ("Qwen/Qwen3-1.7B", 1.72),
        ("Qwen/Qwen3-4B-Base", 4.02),
        ("Qwen/Qwen3-8B-Base", 8.19),
        ("Qwen/Qwen2.5-1.5B-Instruct", 1.54),
        ("Qwen/Qwen2.5-3B", 3.09),
        ("Qwen/Qwen2.5-Math-7B", 7.62),
        ("meta-llama/Llama-3.2-3B-Instruct", 3.21),
    ],
)
def test_a_model_that_the_package_knows_has_as_many_parameters_as_published(
    name: str, billions: float, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    recipe = load_recipe("qwen3_1p7b_ba", [f"model.path={name}"])
    shape, source = model_shape(recipe)
    assert source == f"{name} as the package knows it"
    assert shape.parameters / 1e9 == pytest.approx(billions, abs=0.005)


def test_the_package_knows_every_model_that_its_recipes_name(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    named = {load_recipe(path).model.path for path in shipped("recipes").values()}
    assert named - {None} <= set(known_models())
    # Files below grpo/ are in the wheel without further ado.
    assert all(ROOT / "grpo" in file.parents for file in known_models().values())


def test_a_folder_comes_before_what_the_package_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    local = Path("Qwen/Qwen3-1.7B")
    local.mkdir(parents=True)
    (local / "config.json").write_text(json.dumps(QWEN3_06B))
    shape, source = model_shape(load_recipe("qwen3_1p7b_ba"))
    assert (shape.parameters, source) == (PARAMETERS, "Qwen/Qwen3-1.7B/config.json")


@pytest.mark.parametrize(
    ("overrides", "processes", "shared"),
    [
        ([], 6 + 2 * 2 + 1, True),
        (["rollout.tensor_parallel=2"], 6 + 2 * 4 + 1, True),
        (["sync.transport=gloo"], 6 + 2 * 2 + 1, False),
    ],
)
def test_on_a_cpu_an_engine_is_several_processes_and_buckets_are_shared_by_all(
    load: Any, overrides: list[str], processes: int, shared: bool
):
    """Six ranks, two engines and the driver. An engine is a worker and vLLM's core, and as many
    more as compute together. Of the buckets, the embedding is the larger tensor: 151,936 x 1,024
    in bfloat16, twice."""
    recipe = load(*overrides)
    found = phase(recipe, "optimizer", "host", Machine("cpu", 500)).parts
    assert found["libraries"] == pytest.approx(processes * 0.8 * GIB)
    assert found.get("weight buckets") == (2 * 2 * 151_936 * 1024 if shared else None)
    sync = phase(recipe, "sync", "host", Machine("cpu", 500)).parts
    assert sync["weight buckets"] == (1 if shared else 6) * 2 * 2 * 151_936 * 1024


def test_a_model_that_is_to_be_built_needs_no_file(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    demo = load_recipe(Path("recipes/tiny_cpu.yaml"))
    shape, source = model_shape(demo)
    assert (shape.parameters, source) == (789_824, "model.build")
    (host,) = {phase.where for phase in plan(demo, shape, Machine("cpu", 24))}
    assert host == "host"


def test_a_configuration_that_cannot_be_read_is_the_users_to_mend(tmp_path: Path, load: Any):
    recipe = load()
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        model_shape(recipe)


# --- the command ---


def run(*arguments: str) -> Any:
    app = typer.Typer()
    app.command()(command)
    return CliRunner().invoke(app, list(arguments))


def test_the_command_prints_tables_and_exits_with_1_where_something_does_not_fit(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(ROOT)
    base = ("recipes/qwen3_1p7b_ba.yaml", f"model.path={folder}", "--gpus", "8")
    fine = run(*base, "--gpu-gib", "80")
    assert fine.exit_code == 0, fine.output
    assert f"model: {folder}/config.json, 0.60 G parameters" in fine.output
    assert "disaggregated, engines: 2, learner ranks: 6; 8 of 8 GPUs used" in fine.output
    assert "6 x learner GPU, 80 GiB" in fine.output
    assert "112 KiB of KV cache per token" in fine.output
    assert "each engine: 0.92 of a GPU, 72.2 GiB of it KV cache: 676,233 tokens" in fine.output
    crowded = run(*base, "--gpu-gib", "5")
    assert crowded.exit_code == 1, crowded.output
    assert "does not fit: learner GPU, layer backward" in crowded.output
    assert "would fit with: " in crowded.output


def test_a_cache_that_holds_less_than_a_group_is_warned_of(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(ROOT)
    base = ("qwen3_1p7b_ba", f"model.path={folder}", "--gpus=1", *SHARED)
    # 0.87 of 24 GiB less 1.37 are 17.8 longest sequences; 0.84 of 20 GiB less 1.37 are 14.1, and
    # with weights that rest 0.90 of them 15.2.
    assert "fewer than a group" not in run(*base, "--gpu-gib=24").output
    tight = run(*base, "--gpu-gib=20").output
    assert "holds 14.1 longest sequences, fewer than a group of 16" in tight
    assert "wait for each other; 15.2 with learner.offload_weights=true" in tight


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--device", "tpu"], "expected gpu or cpu"),
        (["--gpus", "0", "--gpu-gib", "80"], "--gpus 0: expected a number from 1 on"),
        (["--gpus", "1", "--gpu-gib", "-1"], "--gpu-gib -1: expected a size above 0"),
        (["--gpu-gib", "nan"], "expected a size above 0"),
        (["--nodes", "0"], "--nodes 0: expected a number from 1 on"),
        (["--host-gib", "0"], "--host-gib 0: expected a size above 0"),
        (["--device", "cpu", "--gpus", "2"], "leave out --gpus"),
        (["model.path=./nowhere"], "no config.json"),
        (
            ["--gpu-gib", "80", "learner.lora.targets=[q_proj, wqkv]"],
            "learner.lora.targets names wqkv: the linear layers of this model are q_proj, k_proj",
        ),
    ],
)
def test_mistakes_exit_with_2(arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    result = run("recipes/tiny_cpu.yaml", *arguments)
    assert result.exit_code == 2, result.output
    assert said in result.output


def test_a_layout_that_cannot_be_placed_exits_with_2_and_what_would(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.chdir(ROOT)
    result = run("qwen3_1p7b_ba", "--gpus", "4", "--gpu-gib", "80")
    assert result.exit_code == 2, result.output
    assert "needs 8 GPUs, and there are 4" in result.output
    # One engine of four is a quarter, as two of eight.
    assert "would fit with: rollout.engines=1 learner.ranks=3" in result.output


def test_a_card_that_is_too_small_exits_with_2_and_the_smallest_that_would_do(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.chdir(ROOT)
    result = run("qwen3_8b_math_grpo", *SHARED, "--gpus", "1", "--gpu-gib", "16")
    assert result.exit_code == 2, result.output
    assert "a GPU of 16 GiB is too small to be shared" in result.output
    assert "Use GPUs of 40 GiB, or a smaller model" in result.output
    few = run("qwen3_1p7b_ba", "--gpus", "8", "--gpu-gib", "2")
    assert few.exit_code == 2, few.output
    assert "too small for 1.72 G parameters" in few.output
