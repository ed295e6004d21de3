"""What a recipe may ask of the estimators, and what is refused before anything starts."""

from pathlib import Path

import pytest

from grpo.config.load import load_recipe
from grpo.config.recipe import Recipe
from grpo.errors import UserError
from grpo.preflight.check import check_recipe

MINIMAL = """
name: mine
model: {path: org/model}
data: {name: sums, task: {name: arithmetic, rows: 8}}
"""


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "recipe.yaml"
    path.write_text(MINIMAL)

    def loaded(*overrides: str) -> Recipe:
        recipe = load_recipe(path, overrides)
        check_recipe(recipe)
        return recipe

    return loaded


def test_the_correction_is_off_on_policy_in_float32_and_on_in_bfloat16(load):
    assert load("model.dtype=float32").correction_name() == "none"
    assert load("model.dtype=bfloat16").correction_name() == "truncated_token"
    assert load("correction=none").correction_name() == "none"
    assert load("model.dtype=float32", "correction=masked_token").correction_name() == (
        "masked_token"
    )


def test_options_alone_are_those_of_the_correction_in_force(load):
    recipe = load("correction={high: 3.0}")
    assert (recipe.correction_name(), recipe.correction.options) == (
        "truncated_token",
        {"high": 3.0},
    )


@pytest.mark.parametrize("override", ["rollout.top_p=0.9", "rollout.top_k=50"])
def test_a_cut_distribution_cannot_be_corrected(load, override: str):
    with pytest.raises(UserError, match=r"truncated_token needs .* correction: none"):
        load(override)
    load(override, "correction=none")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["correction=truncated_tokens"], "did you mean 'truncated_token'"),
        (["correction={name: masked_token, lo: 1}"], "did you mean 'low'"),
        (["regularization.aggregate=tokn_mean"], "did you mean 'token_mean'"),
        (["regularization.kl=-1"], "regularization.kl"),
        (["regularization.kl_estimator=k4"], "regularization.kl_estimator"),
        (["overlong.buffer=9000"], "overlong.buffer is 9000, longer than rollout.max_tokens"),
        (["difficulty={reward_low: 1.0}"], "reward_low is 1.0, reward_high 1.0"),
        (["difficulty={kind: soft}"], "difficulty.kind"),
        (["difficulty={window: 0}"], "difficulty.window"),
        (["advantage={name: pass_at_k, k: 20}"], "a group has only 16 answers: lower k"),
    ],
)
def test_a_mistake_is_named_before_anything_starts(load, overrides: list[str], message: str):
    with pytest.raises(UserError) as error:
        load(*overrides)
    assert message in str(error.value)


def test_check_says_what_the_estimator_comes_to(load):
    recipe = load(
        "difficulty={kind: kalman}", "regularization.kl=0.01", "surrogate=gspo", "advantage=rloo"
    )
    facts = dict(check_recipe(recipe).facts)
    assert facts["estimator"] == "rloo, gspo, balanced, HA-DW (kalman), truncated_token, 0.01 KL"
