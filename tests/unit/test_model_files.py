"""`grpo check` finds what is wrong with a model's folder before anything is started."""

import http.server
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
import transformers.dynamic_module_utils
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner, Result

from grpo.cli.commands import app
from grpo.errors import UserError
from grpo.learner.base_model import local_model
from grpo.learner.export import write_model
from grpo.learner.model_files import code_of
from grpo.rollout.engine import EngineSpec, engine_arguments
from grpo.rollout.stops import stop_tokens
from tests.unit.small_models import changed, model_with_code, small_model

ROOT = Path(__file__).parents[2]
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module", autouse=True)
def code_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where transformers copies a model's code to; one for all tests, as modules stay imported."""
    cache = tmp_path_factory.mktemp("modules")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(cache))
        patch.setattr(sys, "path", list(sys.path))
        patch.chdir(ROOT)
        yield cache


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return small_model(tmp_path / "model")


def check(model: Path, *overrides: str) -> Result:
    told = [f"model.path={model}", "rollout.max_tokens=8", "eval.suite=null", *overrides]
    return CliRunner().invoke(app, ["check", "tiny_cpu", *told])


def refused(model: Path, *overrides: str) -> str:
    result = check(model, *overrides)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    return result.output


# --- what a checkpoint exports ---


def test_a_generation_config_that_transformers_will_not_save_is_exported_as_it_stands(
    model, tmp_path
):
    changed(model / "generation_config.json", temperature=0.6, top_p=0.95)
    with pytest.raises(ValueError, match="do_sample"):
        AutoModelForCausalLM.from_pretrained(model).save_pretrained(tmp_path / "plain")
    assert "is fine" in check(model).output
    loaded = AutoModelForCausalLM.from_pretrained(model)
    weights = {name: tensor + 1 for name, tensor in loaded.state_dict().items()}
    exported = tmp_path / "exported"
    write_model(loaded, weights, str(model), exported)
    name = "generation_config.json"
    assert (exported / name).read_text() == (model / name).read_text()
    again = AutoModelForCausalLM.from_pretrained(exported)
    assert torch.equal(again.model.norm.weight, loaded.model.norm.weight + 1)
    before, after = (AutoTokenizer.from_pretrained(folder) for folder in (model, exported))
    assert before("1+2").input_ids == after("1+2").input_ids


def test_a_model_without_a_generation_config_is_exported_with_its_end_token(model, tmp_path):
    (model / "generation_config.json").unlink()
    loaded = AutoModelForCausalLM.from_pretrained(model)
    write_model(loaded, loaded.state_dict(), str(model), tmp_path / "exported")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "exported")
    assert again.generation_config.eos_token_id == 1


def test_what_transformers_would_not_save_at_the_first_checkpoint_is_refused(tmp_path):
    model = model_with_code(tmp_path / "model")
    with (model / "configuration_mine.py").open("a") as code:
        code.write("\n    def to_json_file(self, *args, **kwargs):\n")
        code.write("        raise TypeError('no')\n")
    said = refused(model, "model.trust_remote_code=true")
    assert "the first checkpoint would fail (TypeError: no)" in said


# --- the head ---


def with_head(model: Path, head: torch.Tensor) -> None:
    weights = load_file(model / WEIGHTS)
    save_file({**weights, "lm_head.weight": head}, model / WEIGHTS, metadata={"format": "pt"})


def test_a_config_that_says_tied_while_the_head_differs_is_refused(model):
    embedding = load_file(model / WEIGHTS)["model.embed_tokens.weight"]
    head = embedding.clone()
    head[-1, -1] += 1
    with_head(model, head)
    said = refused(model)
    assert "tie_word_embeddings true" in said and "lm_head.weight that differs" in said
    assert "set tie_word_embeddings to false" in said


def test_a_head_that_is_the_embedding_once_more_is_fine(model):
    with_head(model, load_file(model / WEIGHTS)["model.embed_tokens.weight"].clone())
    assert "the head is the embedding" in check(model).output


def test_a_head_that_is_not_there_would_be_drawn_at_random_and_is_refused(model):
    changed(model / "config.json", tie_word_embeddings=False)
    assert "hold no lm_head" in refused(model)


def test_a_head_of_its_own_is_fine(tmp_path):
    assert check(small_model(tmp_path / "untied", tied=False)).exit_code == 0


def in_two_shards(model: Path) -> None:
    weights = load_file(model / WEIGHTS)
    (model / WEIGHTS).unlink()
    parts = {"model-1.safetensors": {}, "model-2.safetensors": {}}
    for place, (name, tensor) in enumerate(weights.items()):
        parts[f"model-{1 + place % 2}.safetensors"][name] = tensor
    for file, tensors in parts.items():
        save_file(tensors, model / file, metadata={"format": "pt"})
    listed = {name: file for file, tensors in parts.items() for name in tensors}
    (model / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": listed}))


def test_weights_in_several_files_are_looked_at_as_well(model):
    with_head(model, load_file(model / WEIGHTS)["model.embed_tokens.weight"] + 1)
    in_two_shards(model)
    assert "that differs from model.embed_tokens.weight" in refused(model)


@pytest.mark.parametrize("fault", ["missing", "cut short"])
def test_a_file_of_weights_that_is_missing_or_cut_short_is_named(model, fault):
    in_two_shards(model)
    shard = model / "model-2.safetensors"
    shard.unlink() if fault == "missing" else shard.write_bytes(shard.read_bytes()[:-9])
    assert str(shard) in refused(model).replace("\n", "")


# --- code of the model's own ---


def test_a_model_with_code_of_its_own_says_which_files_and_which_key_allows_them(tmp_path):
    model = model_with_code(tmp_path / "model")
    with (model / "configuration_mine.py").open("a") as code:
        code.write("\nraise RuntimeError('it ran')\n")
    said = refused(model)
    assert "configuration_mine.py, modeling_mine.py" in said
    assert "model.trust_remote_code=true" in said and "it ran" not in said


def test_a_model_whose_code_is_trusted_says_what_runs(tmp_path):
    model = model_with_code(tmp_path / "model")
    result = check(model, "model.trust_remote_code=true")
    assert result.exit_code == 0, result.output
    assert "code of the model that runs" in result.output
    assert "configuration_mine.py, modeling_mine.py" in result.output


def test_code_that_is_trusted_and_does_not_run_is_named_with_its_error(tmp_path):
    model = model_with_code(tmp_path / "model")
    (model / "modeling_mine.py").write_text("import a_module_that_nobody_has\n")
    with (model / "configuration_mine.py").open("a") as code:
        code.write("# another one, as transformers remembers the code of a configuration\n")
    said = refused(model, "model.trust_remote_code=true")
    assert "a_module_that_nobody_has" in said and "modeling_mine.py" in said


def test_an_export_of_a_model_with_code_brings_the_code_along(tmp_path):
    model = model_with_code(tmp_path / "model")
    loaded = AutoModelForCausalLM.from_pretrained(model, trust_remote_code=True)
    write_model(loaded, loaded.state_dict(), str(model), tmp_path / "exported", trust=True)
    assert code_of(tmp_path / "exported") == ["configuration_mine.py", "modeling_mine.py"]
    AutoModelForCausalLM.from_pretrained(tmp_path / "exported", trust_remote_code=True)


def test_the_code_of_a_tokenizer_is_named_as_well(model):
    changed(
        model / "tokenizer_config.json",
        auto_map={"AutoTokenizer": ["tokenization_mine.MineTokenizer", None]},
    )
    assert code_of(model) == ["tokenization_mine.py"]
    changed(model / "tokenizer_config.json", auto_map={"AutoTokenizer": "o/n--b.c.T"})
    assert code_of(model) == ["b/c.py of o/n"]


@pytest.mark.parametrize("trust", [False, True])
def test_vllm_is_told_whether_a_models_code_may_run(trust):
    spec = EngineSpec("m", "float32", 0, None, 1, "gloo", {}, trust)
    assert engine_arguments(spec)["trust_remote_code"] is trust


# --- what else a folder may say ---


def test_an_architecture_that_transformers_does_not_know_is_refused(model):
    changed(model / "config.json", model_type="of_tomorrow")
    assert "of_tomorrow" in refused(model)


def test_a_config_that_is_no_json_is_refused(model):
    (model / "config.json").write_text('{"model_type": "qwen3"')
    assert "config.json" in refused(model)


def test_a_tokenizer_that_cannot_be_read_is_refused(model):
    (model / "tokenizer.json").write_text("{}")
    assert "the tokenizer of" in refused(model)


def test_an_architecture_that_the_learner_cannot_call_is_refused(model):
    gpt2 = {"model_type": "gpt2", "n_positions": 64, "n_embd": 32, "n_layer": 1, "n_head": 1}
    changed(model / "config.json", **gpt2)
    assert re_flowed(refused(model)).count("GPT2LMHeadModel") == 1


def re_flowed(text: str) -> str:
    return " ".join(text.split())


def test_a_context_that_is_too_short_for_an_answer_is_said_before_a_model_is_built():
    told = ["check", "tiny_cpu", "rollout.max_tokens=4096", "overlong.buffer=0"]
    result = CliRunner().invoke(app, told)
    assert result.exit_code == 2 and "rollout.max_tokens is 4096" in result.output


# --- end tokens ---


@pytest.mark.parametrize(
    ("generation", "config", "found"),
    [
        (None, {"eos_token_id": [7, 9]}, [5, 7, 9]),
        ({"eos_token_id": 7}, {"eos_token_id": [8, 9]}, [5, 7]),
        ({"temperature": 0.6}, {"eos_token_id": [7, 9]}, [5, 7, 9]),
        ({"eos_token_id": [7, 9]}, {}, [5, 7, 9]),
        (None, {"text_config": {"eos_token_id": 7}}, [5, 7]),
        (None, {"eos_token_id": None}, [5]),
    ],
)
def test_end_tokens_are_those_of_the_generation_config_or_else_of_the_config(
    tmp_path, generation, config, found
):
    (tmp_path / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    assert stop_tokens(str(tmp_path), 5) == found


@pytest.mark.parametrize("text", ['{"eos_token_id": 7', "[]", '{"eos_token_id": "<end>"}'])
def test_a_generation_config_that_says_no_ids_is_refused(model, text):
    (model / "generation_config.json").write_text(text)
    assert "generation_config.json" in re_flowed(refused(model))


def test_an_evaluation_refuses_it_before_an_engine_starts(model, tmp_path):
    (model / "generation_config.json").write_text("[]")
    told = ["eval", str(model), "--suite", "arithmetic", "--out", str(tmp_path / "result.json")]
    result = CliRunner().invoke(app, told)
    assert result.exit_code == 2, result.output
    assert "generation_config.json holds no JSON object" in re_flowed(result.output)


# --- the hub ---


@pytest.fixture
def cached(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The model in the hub's cache, as owner/name."""
    cache = tmp_path / "hub" / "models--owner--name"
    snapshot = cache / "snapshots" / ("0" * 40)
    snapshot.parent.mkdir(parents=True)
    model.rename(snapshot)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return snapshot


def test_a_model_in_the_hubs_cache_is_looked_at_like_a_folder(cached):
    result = check(Path("owner/name"))
    assert result.exit_code == 0 and "owner/name (in the Hugging Face cache)" in result.output
    changed(cached / "config.json", tie_word_embeddings=False)
    assert "hold no lm_head" in refused(Path("owner/name"))


@pytest.mark.parametrize("missing", ["tokenizer.json", WEIGHTS, "model-2.safetensors"])
def test_a_part_of_a_model_in_the_hubs_cache_is_no_fault(cached, missing):
    if missing == "model-2.safetensors":
        in_two_shards(cached)
    (cached / missing).unlink()
    result = check(Path("owner/name"))
    assert result.exit_code == 0, result.output
    assert "looked at once it is here" in result.output


class _Gated(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(403)
        self.send_header("X-Error-Code", "GatedRepo")
        self.send_header("X-Error-Message", "You are not in the authorized list. Ask for access.")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def gated_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    server = http.server.HTTPServer(("127.0.0.1", 0), _Gated)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield
    server.shutdown()


def test_a_gated_model_is_refused_in_the_hubs_own_words(gated_hub):
    with pytest.raises(UserError) as error:
        local_model("owner/a-gated-model")
    said = str(error.value)
    assert "Ask for access" in said and "Accept its terms" in said and "hf auth login" in said


def test_a_model_that_no_network_reaches_says_so():
    with pytest.raises(UserError, match=r"LocalEntryNotFoundError\): .*[Oo]ffline"):
        local_model("owner/a-model-that-is-nowhere")
