"""No number of a recipe, a data set's declaration or a suite is endless or not a number."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from grpo.algo import ADVANTAGES
from grpo.config.data import Choice
from grpo.config.load import load_recipe, load_suite
from grpo.config.recipe import Recipe
from grpo.config.suite import SuiteConfig
from grpo.errors import UserError

MINIMAL = """
name: mine
model: {path: some/model}
data: {name: numbers, path: rows.jsonl}
eval: {suite: {name: s, benchmarks: [{name: b, data: {name: d, path: x}}]}}
difficulty: {kind: hard}
learner: {lora: {rank: 8}}
"""
# Sections that the recipe above leaves out; they are written whole, in YAML's own words.
WHOLE = {
    "model.build.": "{alphabet: ab}",
    "model.build.warm_start.": "{data: {name: d, path: x}}",
    "checkpoint.keep_best.": "{metric: eval/b/avg}",
}


def numbers(model: type[BaseModel], at: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and annotation of every key that takes a number."""
    for key, field in model.model_fields.items():
        kinds = [field.annotation, *get_args(field.annotation)]
        inner = [k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)]
        if float in kinds or int in kinds:
            yield f"{at}{key}", field.annotation
        for section in inner:
            if section is not Choice and section.__name__ != "Copy":
                many = "0." if kinds[0] not in inner and "list" in str(kinds[0]) else ""
                yield from numbers(section, f"{at}{key}.{many}")


FLOATS = sorted(
    key
    for key, kind in numbers(Recipe)
    if float in (kind, *get_args(kind)) and "shadows" not in key
)
INTEGERS = sorted(
    key for key, kind in numbers(Recipe) if int in (kind, *get_args(kind)) and "shadows" not in key
)


def refused(tmp_path: Path, key: str, value: str) -> str:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(MINIMAL)
    changes = [f"{at[:-1]}={text}" for at, text in WHOLE.items() if key.startswith(at)]
    with pytest.raises(UserError) as error:
        load_recipe(recipe, [*changes, f"{key}={value}"])
    return str(error.value)


def test_all_keys_with_numbers_are_found():
    assert {"learner.lr", "learner.betas", "sync.canary.tolerance", "learner.lora.alpha"} <= set(
        FLOATS
    )
    assert {"eval.suite.benchmarks.0.judge_timeout_s", "model.build.warm_start.lr"} <= set(FLOATS)
    assert {"seed", "data.rows", "eval.suite.benchmarks.0.data.rows"} <= set(INTEGERS)


@pytest.mark.parametrize(("value", "shown"), [(".inf", "inf"), ("-.inf", "-inf"), (".nan", "nan")])
@pytest.mark.parametrize("key", FLOATS)
def test_a_number_that_is_not_finite_is_refused_by_its_key(
    tmp_path: Path, key: str, value: str, shown: str
):
    said = refused(tmp_path, key, f"[0.9, {value}]" if key == "learner.betas" else value)
    assert f"{key}" in said and f"finite number, got {shown}" in said


@pytest.mark.parametrize("key", INTEGERS)
def test_an_integer_beyond_32_bits_is_refused_by_its_key(tmp_path: Path, key: str):
    said = refused(tmp_path, key, str(10**30))
    assert key.rsplit(".", 1)[-1] in said and str(10**30) in said


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("learner.betas", "[0.9, 1]", "use numbers from 0 to below 1"),
        ("learner.betas", "[2, 3]", "use numbers from 0 to below 1"),
        ("learner.betas", "[-0.1, 0.9]", "use numbers from 0 to below 1"),
        ("rollout.temperature", "0.001", "greater than or equal to 0.01"),
        ("rollout.temperature", "2.5", "less than or equal to 2"),
        ("rollout.group_size", "70000", "less than or equal to 65536"),
        ("rollout.timeout_s", "1e300", "less than or equal to"),
        ("eval.suite.benchmarks.0.temperature", "0.001", "use 0, or 0.01 at least"),
        ("rollout.engine", "{gpu_memory_utilization: .nan}", "a number that is finite"),
        ("rollout.engine", "{hf_overrides: {rope: [.inf]}}", "a number that is finite"),
        ("model.build", "{alphabet: a, heads: 4, kv_heads: 3}", "must divide heads"),
    ],
)
def test_a_number_that_nothing_can_work_with_is_refused(
    tmp_path: Path, key: str, value: str, said: str
):
    assert said in refused(tmp_path, key, value)


def test_an_option_of_a_part_is_finite_as_well():
    with pytest.raises(UserError, match=r"option 'eps'.*finite number, got inf"):
        ADVANTAGES.bind("group_norm", {"eps": math.inf})


def test_a_suite_is_held_to_the_same(tmp_path: Path):
    suite = tmp_path / "s.yaml"
    suite.write_text("{name: s, data: {name: d, path: x}, judge_timeout_s: .inf}")
    with pytest.raises(UserError, match=r"judge_timeout_s: .*finite number, got inf"):
        load_suite(suite)
    assert SuiteConfig.model_config.get("allow_inf_nan") is False
