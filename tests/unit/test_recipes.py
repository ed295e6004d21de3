"""One recipe per published setting, and its numbers are the paper's."""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from grpo.config.load import load_data, load_recipe, resolved
from grpo.config.recipe import Recipe
from grpo.data import load_rows
from grpo.errors import UserError
from grpo.learner.shapes import model_shape
from grpo.preflight.advice import fits
from grpo.preflight.check import check_recipe
from grpo.preflight.layout import Machine
from grpo.types import Row
from grpo.verify import VERIFIERS

ROOT = Path(__file__).parents[2]
RECIPES = {path.stem: path for path in sorted((ROOT / "recipes").rglob("*.yaml"))}
NOT_PUBLISHED = {
    "tiny_cpu",
    "smollm2_135m_stories",
    "qwen2p5_math_7b_lora_1gpu",
    "qwen2p5_1p5b_gsm8k_24gb",
}


class Setting(NamedTuple):
    """What a paper states of a run; lengths in tokens, prompt_tokens is the longest prompt."""

    model: str
    data: str
    prompts: int
    group_size: int
    max_tokens: int
    prompt_tokens: int
    minibatches: int
    warmup_steps: int
    weight_decay: float
    surrogate: tuple[str, float, float]
    aggregate: dict[str, Any]
    flat_groups: str
    difficulty: float | None = None  # the scale of HA-DW


DAPO, POLARIS = "dapo_math_17k", "polaris_53k"
BALANCED = {"name": "balanced", "balance": "count", "scope": "group"}
TOKEN = {"name": "token_mean", "scope": "group"}
SEQUENCE = {"name": "seq_mean_token_mean"}


def balanced_run(data: str, aggregate: dict[str, Any], *, qwen2: bool = False) -> Setting:
    """arXiv 2605.04077: 128 x 16, mini-batches of 32 prompts, 10 x 4 steps of warm-up."""
    model, max_tokens = ("Qwen/Qwen2.5-Math-7B", 2048) if qwen2 else ("Qwen/Qwen3-1.7B", 8192)
    clip = ("ppo_clip", 0.2, 0.28)
    return Setting(model, data, 128, 16, max_tokens, 2048, 4, 40, 0.1, clip, aggregate, "replace")


ALGORITHMS = {
    "grpo": (("ppo_clip", 0.2, 0.2), SEQUENCE, "keep"),
    "gspo": (("gspo", 3e-4, 4e-4), SEQUENCE, "keep"),
    "dapo": (("ppo_clip", 0.2, 0.28), {"name": "token_mean", "scope": "batch"}, "replace"),
}


def math_run(model: str, algorithm: str, difficulty: float | None = None) -> Setting:
    """arXiv 2601.08521, Table 8: 256 x 8, mini-batches of 16 prompts, 10 x 16 steps of warm-up."""
    surrogate, aggregate, flat = ALGORITHMS[algorithm]
    steps = (16, 160, 0.1)
    return Setting(
        model, "math_train", 256, 8, 4096, 1024, *steps, surrogate, aggregate, flat, difficulty
    )


def delta_l_run(data: str, prompt_tokens: int, alpha: float) -> Setting:
    """The scripts of arXiv 2509.07558: 128 x 10, mini-batches of 32 prompts, clip 0.2/0.3."""
    aggregate = {"name": "delta_l", "alpha": alpha, "scope": "batch"}
    clip = ("ppo_clip", 0.2, 0.3)
    steps = (4, 0, 0.01)
    model = "Qwen/Qwen2.5-3B"
    return Setting(model, data, 128, 10, 8192, prompt_tokens, *steps, clip, aggregate, "keep")


QWEN_4B, QWEN_8B = "Qwen/Qwen3-4B-Base", "Qwen/Qwen3-8B-Base"
LLAMA_3B = "meta-llama/Llama-3.2-3B-Instruct"
PUBLISHED = {
    "qwen3_1p7b_ba": balanced_run(DAPO, BALANCED),
    "qwen3_1p7b_token": balanced_run(DAPO, TOKEN),
    "qwen3_1p7b_seq": balanced_run(DAPO, SEQUENCE),
    "qwen3_1p7b_polaris_ba": balanced_run(POLARIS, BALANCED),
    "qwen3_1p7b_polaris_token": balanced_run(POLARIS, TOKEN),
    "qwen3_1p7b_polaris_seq": balanced_run(POLARIS, SEQUENCE),
    "qwen2p5_math_7b_ba": balanced_run(DAPO, BALANCED, qwen2=True),
    "qwen2p5_math_7b_token": balanced_run(DAPO, TOKEN, qwen2=True),
    "qwen2p5_math_7b_seq": balanced_run(DAPO, SEQUENCE, qwen2=True),
    "qwen2p5_math_7b_polaris_ba": balanced_run(POLARIS, BALANCED, qwen2=True),
    "qwen2p5_math_7b_polaris_token": balanced_run(POLARIS, TOKEN, qwen2=True),
    "qwen2p5_math_7b_polaris_seq": balanced_run(POLARIS, SEQUENCE, qwen2=True),
    "qwen3_4b_math_grpo": math_run(QWEN_4B, "grpo"),
    "qwen3_4b_math_gspo": math_run(QWEN_4B, "gspo"),
    "qwen3_4b_math_dapo": math_run(QWEN_4B, "dapo"),
    "qwen3_4b_math_grpo_hadw": math_run(QWEN_4B, "grpo", 1.3),
    "qwen3_4b_math_gspo_hadw": math_run(QWEN_4B, "gspo", 1.3),
    "qwen3_4b_math_dapo_hadw": math_run(QWEN_4B, "dapo", 1.3),
    "qwen3_8b_math_grpo": math_run(QWEN_8B, "grpo"),
    "qwen3_8b_math_gspo": math_run(QWEN_8B, "gspo"),
    "qwen3_8b_math_dapo": math_run(QWEN_8B, "dapo"),
    "qwen3_8b_math_grpo_hadw": math_run(QWEN_8B, "grpo", 1.3),
    "qwen3_8b_math_gspo_hadw": math_run(QWEN_8B, "gspo", 1.3),
    "qwen3_8b_math_dapo_hadw": math_run(QWEN_8B, "dapo", 1.3),
    "llama3p2_3b_math_grpo": math_run(LLAMA_3B, "grpo"),
    "llama3p2_3b_math_gspo": math_run(LLAMA_3B, "gspo"),
    "llama3p2_3b_math_dapo": math_run(LLAMA_3B, "dapo"),
    "llama3p2_3b_math_grpo_hadw": math_run(LLAMA_3B, "grpo", 1.3),
    "llama3p2_3b_math_gspo_hadw": math_run(LLAMA_3B, "gspo", 1.3),
    "llama3p2_3b_math_dapo_hadw": math_run(LLAMA_3B, "dapo", 1.3),
    "qwen2p5_3b_countdown_delta_l": delta_l_run("countdown", 256, 1.0),
    "qwen2p5_3b_math_delta_l": delta_l_run("orz_math", 1024, 0.75),
}


@pytest.fixture(autouse=True)
def in_the_root(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)


@cache
def recipe_of(name: str) -> Recipe:
    return load_recipe(RECIPES[name])


def setting_of(recipe: Recipe) -> Setting:
    rollout, learner, surrogate = recipe.rollout, recipe.learner, recipe.surrogate
    assert recipe.model.path is not None and rollout.max_model_len is not None
    return Setting(
        recipe.model.path,
        recipe.data.name,
        rollout.prompts,
        rollout.group_size,
        rollout.max_tokens,
        rollout.max_model_len - rollout.max_tokens,
        recipe.schedule.minibatches,
        learner.warmup_steps,
        learner.weight_decay,
        (surrogate.name, surrogate.options["clip_low"], surrogate.options["clip_high"]),
        {"name": recipe.aggregate.name, **recipe.aggregate.options},
        recipe.flat_groups.mode,
        recipe.difficulty.scale if recipe.difficulty else None,
    )


def test_every_recipe_stands_in_the_table_and_every_line_has_one():
    assert set(RECIPES) == set(PUBLISHED) | NOT_PUBLISHED


@pytest.mark.parametrize("name", RECIPES)
def test_grpo_check_accepts_the_recipe_under_the_name_of_its_file(name: str):
    facts = dict(check_recipe(recipe_of(name)).facts)
    assert "estimator" in facts
    assert recipe_of(name).name == name


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_settings_are_the_papers(name: str):
    recipe = recipe_of(name)
    assert setting_of(recipe) == PUBLISHED[name]
    rollout, learner = recipe.rollout, recipe.learner
    assert (rollout.temperature, rollout.top_p, rollout.top_k) == (1.0, 1.0, 0)
    assert (learner.lr, learner.lr_decay, learner.grad_clip) == (1e-6, "constant", 1.0)
    assert (recipe.regularization.kl, recipe.regularization.entropy) == (0.0, 0.0)
    assert recipe.advantage.name == "group_norm"
    assert recipe.advantage.options == {"ddof": 1, "eps": 1e-6}
    assert recipe.verifier.name == ("countdown" if recipe.data.name == "countdown" else "math")


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_recipe_reads_its_data_as_declared_and_nothing_of_its_bases(name: str):
    """A key of the base's data that lived on would show here: its task, or what it strips."""
    data = recipe_of(name).data
    assert data == load_data(f"data/{data.name}.yaml")


@pytest.mark.parametrize("name", RECIPES)
def test_a_header_says_hardware_command_and_what_to_expect(name: str):
    text = RECIPES[name].read_text()
    header = text[: re.search(r"^[^#]", text, re.MULTILINE).start()]  # type: ignore
    assert f"grpo train recipes/{name}.yaml" in header
    assert re.search(r"^#   hardware ", header, re.MULTILINE)
    assert re.search(r"^#   expected ", header, re.MULTILINE)
    assert name in NOT_PUBLISHED or re.search(r"not\s+(#\s+)?reproduced", header)
    named = set(re.findall(r"(\w+)\.yaml", header)) - {name}
    assert named <= set(RECIPES), f"{named - set(RECIPES)}"


def repeated(own: dict[str, Any], base: dict[str, Any], result: dict[str, Any]) -> list[str]:
    """The dotted keys of an overlay without which its result would be the same."""
    found = []
    for key, value in own.items():
        if key == "extends":
            continue
        before, after = base.get(key), result[key]  # vLLM's own keys may be new
        if isinstance(value, dict) and isinstance(before, dict) and not renamed(before, after):
            found += [f"{key}.{inner}" for inner in repeated(value, before, after)]
        elif before == after:
            found.append(key)
    return found


def renamed(before: dict[str, Any], after: dict[str, Any]) -> bool:
    """Whether it is another part, which starts from its own defaults."""
    return before.get("name") != after.get("name")


# GPUs, GiB of each
SMALL_MACHINES = {
    "qwen2p5_math_7b_lora_1gpu": Machine("cuda", 80, gpus=1),
    "qwen2p5_1p5b_gsm8k_24gb": Machine("cuda", 24, gpus=1, host_gib=32),
}


@pytest.mark.parametrize("name", SMALL_MACHINES)
def test_a_recipe_for_one_gpu_fits_on_it(name: str):
    recipe = recipe_of(name)
    assert fits(recipe, model_shape(recipe)[0], SMALL_MACHINES[name])


OVERLAYS = [name for name, path in RECIPES.items() if "\nextends:" in path.read_text()]


def test_each_family_has_one_base():
    bases = set(RECIPES) - set(OVERLAYS) - NOT_PUBLISHED
    assert bases == {"qwen3_1p7b_ba", "qwen3_4b_math_grpo", "qwen2p5_3b_countdown_delta_l"}


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlay_repeats_nothing_that_its_base_has(name: str):
    own = yaml.safe_load(RECIPES[name].read_text())
    base = Path(own["extends"]).stem
    assert not repeated(own, resolved(recipe_of(base)), resolved(recipe_of(name)))


def test_a_repeated_key_would_be_found():
    base = resolved(recipe_of("qwen3_1p7b_ba"))
    own = {"rollout": {"prompts": 128, "group_size": 8}, "aggregate": {"scope": "group"}}
    result = base | {"rollout": base["rollout"] | {"group_size": 8}}
    assert repeated(own, base, result) == ["rollout.prompts", "aggregate.scope"]


@pytest.mark.parametrize(
    ("name", "raw", "row"),
    [
        (
            "polaris_53k",
            {"problem": "1+1?", "answer": "2", "difficulty": "3/8"},
            Row("1", "1+1?", "2"),
        ),
        (
            "math_train",
            {"problem": "1+1?", "solution": r"\boxed{2}", "expected_answer": "2", "id": "a/1"},
            Row("a/1", "1+1?", "2"),
        ),
        (
            "orz_math",
            {
                "0": {"from": "human", "value": "1+1?"},
                "1": {"from": "assistant", "ground_truth": {"value": "2", "pass_at_n": None}},
            },
            Row("1", "1+1?", "2"),
        ),
    ],
)
def test_a_row_as_the_hub_has_it_is_read(tmp_path: Path, name: str, raw: object, row: Row):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(raw))
    assert load_rows(load_data(f"data/{name}.yaml", [f"path={path}"])) == [row]


def test_the_countdown_declaration_gives_puzzles_that_its_verifier_can_judge():
    data = load_data("data/countdown.yaml", ["task.rows=50"])
    for row in load_rows(data):
        assert VERIFIERS["countdown"](row.solution, row.answer).reason == "correct"
        assert all(number in row.problem for number in row.answer.split(" from ")[1].split())
    assert VERIFIERS["countdown"](data.template, row.answer).parsed == "(1 + 2) / 3"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("rollout.engine.max_model_len=4096", "set rollout.max_model_len instead"),
        ("rollout.engine={dtype: float16}", "set model.dtype instead"),
        ("rollout.engine.logprobs_mode=raw_logits", "it cannot be changed, leave it out"),
    ],
)
def test_an_engine_option_that_has_a_key_of_its_own_is_refused_with_it(override: str, said: str):
    with pytest.raises(UserError, match=rf"rollout.*engine sets .*{said}"):
        load_recipe(Path("tiny_cpu"), [override])
