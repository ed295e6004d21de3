"""Recipes: typed overrides, one way to reuse files, errors with key, place, value and cure."""

from pathlib import Path

import pytest

from grpo.config.load import load_recipe, resolved
from grpo.config.recipe import Recipe
from grpo.errors import UserError

MINIMAL = """
name: mine
model: {path: some/model}
data: {name: numbers, path: rows.jsonl}
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "recipe.yaml"
    path.write_text(MINIMAL)
    return path


def refused(path: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as error:
        load_recipe(path, overrides)
    return str(error.value)


def test_an_override_is_typed_like_the_file(recipe: Path):
    loaded = load_recipe(recipe, ["learner.lr=5e-5", "data.shuffle=false", "rollout.engine={a: 1}"])
    assert loaded.learner.lr == 5e-5
    assert loaded.data.shuffle is False
    assert loaded.rollout.engine == {"a": 1}


def test_off_is_a_word_and_false_is_not(recipe: Path):
    loaded = load_recipe(recipe, ["logging.wandb=off", "data.chat=true"])
    assert (loaded.logging.wandb, loaded.data.chat) == ("off", True)


def test_an_unknown_key_names_the_nearest_with_file_and_line(recipe: Path):
    recipe.write_text(MINIMAL + "learner:\n  learning_rat: 1\n")
    message = refused(recipe)
    assert "recipe.yaml:6" in message
    assert "unknown key 'learner.learning_rat'" in message
    assert "did you mean 'roll'" not in message
    assert "did you mean 'prompts'" in refused(recipe, "rollout.prompt=3", "learner={lr: 1}")


def test_a_wrong_type_shows_the_value_and_what_was_expected(recipe: Path):
    message = refused(recipe, "schedule.steps=many")
    assert "schedule.steps" in message
    assert "integer" in message
    assert "'many'" in message
    assert "command line" in message
    assert "3.7" in refused(recipe, "schedule.steps=3.7")


def test_a_group_of_one_is_refused_with_the_reason(recipe: Path):
    assert "group_size is 1; advantages compare siblings: use >= 2" in refused(
        recipe, "rollout.group_size=1"
    )


def test_an_override_without_a_value_is_refused(recipe: Path):
    assert "expected key=value" in refused(recipe, "learner.lr")


def test_a_key_that_appears_twice_is_refused(recipe: Path):
    recipe.write_text(MINIMAL + "seed: 1\nseed: 2\n")
    assert "'seed' appears twice" in refused(recipe)


def test_a_missing_key_is_named(recipe: Path):
    recipe.write_text("name: mine\nmodel: {path: x}\n")
    assert "key 'data' is missing" in refused(recipe)


def test_a_file_extends_another_and_its_own_keys_win(recipe: Path):
    child = recipe.parent / "child.yaml"
    child.write_text("extends: recipe.yaml\nname: child\nlearner: {lr: 0.5}\n")
    loaded = load_recipe(child)
    assert (loaded.name, loaded.learner.lr, loaded.model.path) == ("child", 0.5, "some/model")


def test_files_that_extend_each_other_in_a_circle_are_refused(recipe: Path):
    recipe.write_text("extends: other.yaml\n")
    (recipe.parent / "other.yaml").write_text("extends: recipe.yaml\n")
    assert "in a circle" in refused(recipe)


def test_a_missing_file_says_where_it_was_looked_for(recipe: Path):
    message = refused(recipe, "data=data/nowhere.yaml")
    assert "no data set 'data/nowhere.yaml', neither as a file nor in the package" in message
    assert str(recipe.parent) in message


def test_a_data_file_can_be_named_and_then_changed(recipe: Path):
    (recipe.parent / "other.yaml").write_text("name: other\nhub: some/set\n")
    loaded = load_recipe(recipe, ["data=other.yaml", "data.path=/tmp/rows.jsonl"])
    assert (loaded.data.hub, loaded.data.path) == ("some/set", "/tmp/rows.jsonl")


def test_another_estimator_leaves_the_options_of_the_first_behind(recipe: Path):
    recipe.write_text(MINIMAL + "aggregate: {name: delta_l, alpha: 1.0}\n")
    assert load_recipe(recipe, ["aggregate.alpha=0.5"]).aggregate.options == {"alpha": 0.5}
    assert load_recipe(recipe, ["aggregate=balanced"]).aggregate.options == {}


def test_a_list_is_reached_by_position_and_no_further(recipe: Path):
    suite = "eval: {suite: {name: s, benchmarks: [{name: b, data: {name: d, path: x}}]}}\n"
    recipe.write_text(MINIMAL + suite)
    loaded = load_recipe(recipe, ["eval.suite.benchmarks.0.samples=4"])
    assert loaded.eval.suite is not None
    assert loaded.eval.suite.benchmarks[0].samples == 4
    assert "expected a position below 1, got 3" in refused(
        recipe, "eval.suite.benchmarks.3.samples=4"
    )


def test_what_is_resolved_reads_back_as_the_same_recipe(recipe: Path):
    loaded = load_recipe(recipe, ["aggregate={name: delta_l, alpha: 1.0}"])
    assert Recipe.model_validate(resolved(loaded)) == loaded


@pytest.mark.parametrize("value", ['"3"', "3.0", "true", "010", "1:30", "1_000"])
def test_only_an_integer_is_an_integer(recipe: Path, value: str):
    assert "command line: schedule.steps: Input should be a valid integer" in refused(
        recipe, f"schedule.steps={value}"
    )


def test_a_quoted_number_is_no_number_and_one_is_not_true(recipe: Path):
    assert "got '1e-5'" in refused(recipe, 'learner.lr="1e-5"')
    assert "valid boolean, got 1" in refused(recipe, "data.shuffle=1")


def test_a_pair_of_numbers_is_written_as_a_list(recipe: Path):
    assert load_recipe(recipe, ["learner.betas=[0, 0.9]"]).learner.betas == (0.0, 0.9)
    assert "got '0.8'" in refused(recipe, 'learner.betas=["0.8", 0]')


def test_a_file_is_found_from_inside_the_folder_of_the_recipe(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
):
    (recipe.parent / "recipes").mkdir()
    (recipe.parent / "data").mkdir()
    (recipe.parent / "data/n.yaml").write_text("name: n\nhub: some/set\n")
    (recipe.parent / "recipes/r.yaml").write_text("name: r\nmodel: {path: m}\ndata: data/n.yaml\n")
    monkeypatch.chdir(recipe.parent / "recipes")
    assert load_recipe("r.yaml").data.hub == "some/set"


def test_what_an_override_sets_is_blamed_on_the_command_line(recipe: Path):
    recipe.write_text(MINIMAL + "learner:\n  lr: 0.1\n")
    assert "command line: learner.lr" in refused(recipe, "learner={lr: -1}")


@pytest.mark.parametrize(
    "line", ["seed: !mine 3", "seed: !!int abc", "rollout: {engine: &a {x: *a}}", "? [a]\n: 3"]
)
def test_yaml_that_is_no_plain_data_is_refused_with_its_line(recipe: Path, line: str):
    recipe.write_text(MINIMAL + line + "\n")
    assert "recipe.yaml:" in refused(recipe)


def test_a_file_that_is_no_text_is_refused(recipe: Path):
    recipe.write_bytes(b"name: \xff\xfe")
    assert "cannot read" in refused(recipe)


def test_the_engines_own_words_are_not_taken_for_files(recipe: Path):
    recipe.write_text(MINIMAL + "rollout: {engine: {data: hello, benchmarks: [x]}}\n")
    assert load_recipe(recipe).rollout.engine == {"data": "hello", "benchmarks": ["x"]}


def test_an_override_can_put_a_benchmark_file_into_a_suite(recipe: Path):
    suite = "eval: {suite: {name: s, benchmarks: [{name: b, data: {name: d, path: x}}]}}\n"
    recipe.write_text(MINIMAL + suite)
    (recipe.parent / "b.yaml").write_text("name: other\ndata: {name: d, path: y}\n")
    loaded = load_recipe(recipe, ["eval.suite.benchmarks.0=b.yaml"])
    assert loaded.eval.suite is not None
    assert loaded.eval.suite.benchmarks[0].name == "other"


def test_an_override_with_an_empty_part_is_refused(recipe: Path):
    assert "expected key=value" in refused(recipe, "learner..lr=3")


def test_another_data_file_takes_the_place_of_the_first_and_is_not_mixed_with_it(
    recipe: Path, tmp_path: Path
):
    (tmp_path / "other.yaml").write_text("name: other\nhub: org/rows\n")
    loaded = load_recipe(recipe, ["data.template='{problem} ?'", "data=other.yaml", "data.rows=3"])
    assert (loaded.data.hub, loaded.data.path, loaded.data.rows) == ("org/rows", None, 3)
    assert loaded.data.template == "{problem}"
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("extends: recipe.yaml\ndata: {extends: other.yaml, rows: 2}\n")
    assert load_recipe(overlay).data == loaded.data.model_copy(update={"rows": 2})
    overlay.write_text("extends: recipe.yaml\ndata: {rows: 2}\n")
    assert load_recipe(overlay).data.path == "rows.jsonl"
