"""What adapters come to on a model, which ones are refused, and how weights are merged."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from grpo.cli.commands import app
from grpo.config.load import load_recipe, resolved
from grpo.config.lora import LoraConfig
from grpo.config.recipe import BuildConfig, ModelConfig
from grpo.errors import UserError
from grpo.learner.build import build_model, build_tokenizer, save_pretrained
from grpo.learner.lora import add_adapters, base_sums, check_same_base
from grpo.preflight.lora import check_lora, describe
from grpo.store.checkpoint import RunFolder
from grpo.sync import merged
from grpo.sync import source as sources
from grpo.sync.buckets import plan_buckets, total_bytes, unflatten
from grpo.sync.merged import Adapter, MergedSource
from grpo.sync.source import ZeroSource
from tests.unit.test_sync_source import gathered, shards_of

BUILD = BuildConfig(
    alphabet="0123456789+=}\n", layers=2, hidden_size=64, heads=2, kv_heads=1,
    intermediate_size=128, context=64,
)  # fmt: skip
MODEL = ModelConfig(build=BUILD)


def model() -> Any:
    return build_model(BUILD, build_tokenizer(BUILD), seed=1)


# --- what fits ---


def test_what_trains_is_counted_by_hand(tmp_path: Path):
    """Rank 4, two layers, q 64 x 64, v 32 x 64, down 64 x 128: 4 x 2 x (128 + 96 + 192) = 3328. The
    model: 18 x 64 tied embeddings, and by layer q and o 64 x 64, k and v 32 x 64, MLP 3 x 64 x 128,
    norms 2 x 64 + 2 x 32; a last norm of 64."""
    lora = LoraConfig(rank=4, alpha=6, targets=("q_proj", "v_proj", "down_proj"))
    layer = 2 * 4096 + 2 * 2048 + 3 * 8192 + 192
    whole = 18 * 64 + 2 * layer + 64 + 3328
    said = f"0.00333 M of {whole / 1e6:.3g} M parameters train (rank 4, alpha 6)"
    assert check_lora(lora, MODEL) == said
    save_pretrained(model(), build_tokenizer(BUILD), tmp_path)
    assert (
        check_lora(lora, ModelConfig(path=str(tmp_path))) == describe(lora, str(tmp_path)) == said
    )
    assert "once the model is here" in check_lora(lora, ModelConfig(path="org/model"))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"targets": ("q_prj",)}, "no linear layer 'q_prj'; did you mean 'q_proj'? It has q_proj,"),
        ({"targets": ("c_attn",)}, "k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj"),
        ({"targets": ("mlp",)}, "no linear layer 'mlp'"),
        ({"targets": ("embed_tokens",)}, "no linear layer 'embed_tokens'"),
        ({"targets": ("q_proj", "lm_head")}, "lm_head cannot have an adapter"),
        (
            {"rank": 33},
            "layers.0.self_attn.k_proj is 32 x 64, and no update of it has a rank above",
        ),
    ],
)
def test_what_does_not_fit_the_model_is_refused(settings: dict[str, Any], said: str):
    with pytest.raises(UserError) as error:
        check_lora(LoraConfig(**settings), MODEL)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("learner.lora.targets=[]", "learner.lora.targets: "),
        ("learner.lora.targets=[q_proj,q_proj]", "'q_proj' is there twice"),
        ('learner.lora.targets=[""]', "an empty name is no layer's"),
        ("learner.lora.alpha=0", "learner.lora.alpha: Input should be greater than 0"),
        ("learner.lora.alpha=.inf", "learner.lora.alpha: Input should be a finite number"),
        ("learner.lora.rank=0", "learner.lora.rank: Input should be greater than or equal to 1"),
        ("learner.lora.ranks=8", "unknown key 'learner.lora.ranks'; did you mean 'rank'?"),
    ],
)
def test_what_makes_no_sense_is_refused_by_the_recipe(override: str, said: str):
    with pytest.raises(UserError) as error:
        load_recipe("tiny_cpu", [override])
    assert said in str(error.value)


def test_one_key_on_the_command_line_turns_adapters_on():
    assert load_recipe("tiny_cpu").learner.lora is None
    assert load_recipe("tiny_cpu", ["learner.lora={}"]).learner.lora == LoraConfig()
    lora = load_recipe("tiny_cpu", ["learner.lora.rank=8", "learner.lora.alpha=9"]).learner.lora
    assert lora == LoraConfig(rank=8, alpha=9)


@pytest.mark.parametrize("command", ["check", "train"])
def test_check_and_train_end_with_exit_code_2_before_anything_is_started(
    command: str, tmp_path: Path
):
    asked = [command, "tiny_cpu", f"output={tmp_path}", "learner.lora.targets=[c_attn]"]
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 2
    assert "no linear layer 'c_attn'" in result.output and "Traceback" not in result.output
    assert list(tmp_path.iterdir()) == []


def test_a_run_does_not_go_on_with_other_adapters(tmp_path: Path):
    def asked(*overrides: str) -> dict[str, Any]:
        return resolved(load_recipe("tiny_cpu", overrides))

    folder = RunFolder(tmp_path)
    folder.begin(asked("learner.lora.rank=8"), {})
    assert folder.recipe_conflicts(asked("learner.lora.rank=8", "checkpoint.every=3")) == []
    differing = folder.recipe_conflicts(asked("learner.lora.rank=16"))
    assert differing == ["learner.lora.rank: was 8, now 16"]
    assert "learner.lora.rank: was 8, now not set" in folder.recipe_conflicts(asked())


# --- in the model ---


def test_adapters_are_drawn_from_the_seed_and_everything_else_is_frozen():
    made = [model() for _ in range(3)]
    for each, seed in zip(made, (5, 5, 6), strict=True):
        torch.rand(seed)  # wherever the process's own generator stands
        add_adapters(each, LoraConfig(rank=4, targets=("k_proj",)), seed)
    one, again, other = (dict(each.named_parameters()) for each in made)
    trained = [name for name, parameter in one.items() if parameter.requires_grad]
    assert trained == [
        f"model.layers.{layer}.self_attn.k_proj.lora_{part}.default.weight"
        for layer in (0, 1)
        for part in "AB"
    ]
    for name in trained:
        assert torch.equal(one[name], again[name])
        assert torch.equal(one[name], other[name]) == ("lora_B" in name)
        assert bool(one[name].any()) == ("lora_A" in name)


def test_adapters_have_the_dtype_of_the_base():
    adapted = model().to(torch.bfloat16)
    add_adapters(adapted, LoraConfig(rank=4), 0)
    assert {parameter.dtype for parameter in adapted.parameters()} == {torch.bfloat16}


def held(tensor: torch.Tensor, rank: int = 0, ranks: int = 1, trained: bool = False) -> Any:
    return SimpleNamespace(
        ds_shape=tensor.shape,
        ds_numel=tensor.numel(),
        ds_tensor=shards_of(tensor, ranks)[rank],
        ds_zero_partition_rank=rank,
        ds_zero_partition_world_size=ranks,
        all_shards=shards_of(tensor, ranks),
        requires_grad=trained,
    )


def test_a_base_that_has_changed_is_noticed():
    def sums(frozen: torch.Tensor, rank: int = 1) -> dict[str, int]:
        parts = [("a.weight", held(frozen, rank, 2)), ("b.weight", held(frozen + 1, 0, 1, True))]
        module: Any = SimpleNamespace(named_parameters=lambda: parts)
        return base_sums(module)

    weight = torch.arange(1.0, 8.0)  # over two ranks 4 and 3, the last one padded with NaN
    bits = weight.view(torch.int32)
    assert sums(weight) == {"a.weight": int(bits[4:].sum())}
    assert sums(weight.bfloat16(), 0) == {
        "a.weight": int(weight.bfloat16().view(torch.int16)[:4].sum(dtype=torch.int64))
    }
    check_same_base(sums(weight), sums(weight), "m")
    with pytest.raises(UserError, match=r"1 of its tensors differ, such as a\.weight"):
        check_same_base(sums(weight), sums(weight.where(weight < 7, 7.5)), "m")


# --- merged ---


def test_an_update_by_hand():
    """scale 2, B = (1, -1), A = (3, 5): 2 B A = ((6, 10), (-6, -10)), added to ones."""
    adapter = Adapter(torch.tensor([[3.0, 5.0]]), torch.tensor([[1.0], [-1.0]]), 2.0)
    out = torch.ones(4)
    adapter.add_to(out, 0)
    assert out.tolist() == [7, 11, -5, -9]
    middle = torch.ones(2)  # elements 1 and 2 of the four
    adapter.add_to(middle, 1)
    assert middle.tolist() == [11, -5]
    nothing = torch.ones(0)
    adapter.add_to(nothing, 4)


def test_a_bfloat16_weight_is_rounded_once():
    """1 + 2^-8 + 2^-10 is rounded up to 1 + 2^-7. Its two terms, added one by one in bfloat16,
    would each be lost."""
    down = torch.tensor([[2.0**-8], [2.0**-10]], dtype=torch.bfloat16)
    out = torch.ones(1, dtype=torch.bfloat16)
    Adapter(down, torch.ones(1, 2, dtype=torch.bfloat16), 1.0).add_to(out, 0)
    assert out.item() == 1 + 2**-7


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("piece", [1, 12, 1 << 24])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_written_and_filled_weights_are_merged_under_plain_names(
    ranks: int, piece: int, dtype: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sources, "_gather", gathered)
    monkeypatch.setattr(merged, "_PIECE", piece)
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(getattr(torch, dtype))

    parameters = {
        "embed.weight": drawn(7, 3),
        "q.base_layer.weight": drawn(5, 7),
        "q.base_layer.bias": drawn(5),
        "q.lora_A.default.weight": drawn(2, 7),
        "q.lora_B.default.weight": drawn(5, 2),
        "norm.weight": drawn(3),
    }
    exact = {
        name.replace(".base_layer.", "."): tensor.double()
        for name, tensor in parameters.items()
        if "lora" not in name
    }
    down, up = (parameters[f"q.lora_{part}.default.weight"].double() for part in "AB")
    exact["q.weight"] = exact["q.weight"] + 1.5 * up @ down
    made = [
        MergedSource({n: held(t, rank, ranks) for n, t in parameters.items()}, dtype, 60, scale=1.5)
        for rank in range(ranks)
    ]
    assert [(meta.name, meta.shape) for meta in made[0].metas] == [
        ("embed.weight", (7, 3)), ("q.weight", (5, 7)), ("q.bias", (5,)), ("norm.weight", (3,)),
    ]  # fmt: skip
    for bucket in plan_buckets(made[0].metas, 60):
        written = torch.zeros(total_bytes(bucket), dtype=torch.uint8)
        for source in made:
            with source.reading():
                source.write_shard(bucket, written)
                filled = torch.zeros(total_bytes(bucket), dtype=torch.uint8)
                source.fill(bucket, filled)
            for flat in (written, filled) if source is made[-1] else (filled,):
                for name, out in unflatten(flat, bucket):
                    expected = exact[name].to(out.dtype)
                    tolerance = 1e-6 if dtype == "float32" else 2**-8
                    torch.testing.assert_close(out, expected, rtol=tolerance, atol=tolerance / 10)


def test_nothing_is_read_outside_of_reading():
    parameters = {
        "q.base_layer.weight": held(torch.ones(2, 2)),
        "q.lora_A.default.weight": held(torch.ones(1, 2)),
        "q.lora_B.default.weight": held(torch.ones(2, 1)),
    }
    source = MergedSource(parameters, "float32", 100, scale=1.0)
    flat = torch.zeros(16, dtype=torch.uint8)
    for call in (source.fill, source.write_shard):
        with pytest.raises(AssertionError, match="reading comes first"):
            call(source.metas, flat)
    with source.reading():
        source.fill(source.metas, flat)
    assert flat.view(torch.float32).tolist() == [2, 2, 2, 2]
    assert parameters["q.base_layer.weight"].ds_tensor.tolist() == [1, 1, 1, 1]
    with ZeroSource({}, "float32", 100).reading():
        pass


def test_shards_that_rest_in_host_memory_are_gathered_where_they_belong(
    monkeypatch: pytest.MonkeyPatch,
):
    """`meta` stands for a GPU, whose ranks cannot gather from host memory."""
    asked: list[str] = []

    def gather(out: torch.Tensor, shard: torch.Tensor, parameter: object) -> SimpleNamespace:
        asked.extend((out.device.type, shard.device.type))
        return SimpleNamespace(wait=lambda: None)

    monkeypatch.setattr(sources, "_gather", gather)
    parameter = held(torch.ones(4, 2), 0, 2)
    shard = parameter.ds_tensor
    parameter.ds_tensor = shard.to("meta")
    source = ZeroSource({"w": parameter}, "float32", 100)
    parameter.ds_tensor = shard
    source.fill(source.metas, torch.empty(32, dtype=torch.uint8, device="meta"))
    assert asked == ["meta", "meta"]
