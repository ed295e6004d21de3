"""What `grpo plan` proposes is accepted by the command line, can be placed, and fits."""

from pathlib import Path
from typing import Any

import pytest

from grpo.config.load import load_recipe
from grpo.config.recipe import Recipe
from grpo.config.shipped import shipped
from grpo.learner.flops import ModelShape
from grpo.learner.shapes import model_shape
from grpo.preflight.advice import changed, changes_that_fit, fits, smallest_card
from grpo.preflight.layout import Machine, fault
from grpo.preflight.plan import GIB, plan

ROOT = Path(__file__).parents[2]
SHARED = ("placement=colocated", "rollout.engines=1", "learner.ranks=1")
# One recipe of every model and layout.
NAMES = ["qwen3_1p7b_ba", "qwen2p5_math_7b_ba", "qwen3_8b_math_grpo", "qwen2p5_3b_math_delta_l"]


@pytest.fixture(autouse=True)
def in_the_root(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)


def shape_of(recipe: Recipe) -> ModelShape:
    return model_shape(recipe)[0]


@pytest.mark.parametrize(
    "machine",
    [
        Machine("cuda", 24, gpus=1),
        Machine("cuda", 80, gpus=1),
        Machine("cuda", 40, gpus=4),
        Machine("cuda", 16, gpus=8, nodes=2),
        Machine("cuda", 40),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", NAMES)
def test_every_change_that_is_named_makes_it_fit_there(name: str, machine: Machine):
    recipe = load_recipe(name)
    for change in changes_that_fit(recipe, shape_of(recipe), machine):
        with_it = load_recipe(name, change.split())  # as a shell splits it
        assert fault(with_it, shape_of(recipe), machine) is None, change
        assert fits(with_it, shape_of(recipe), machine), change


def advice(name: str, machine: Machine, *overrides: str) -> list[str]:
    recipe = load_recipe(name, overrides)
    return changes_that_fit(recipe, shape_of(recipe), machine)


def test_on_a_shared_gpu_nothing_is_proposed_that_breaks_the_pairs():
    found = advice("qwen2p5_math_7b_ba", Machine("cuda", 80, gpus=1), *SHARED)
    # The weights, masters and moments of 7.6 G parameters are 113 GiB.
    assert found == ["learner.offload_optimizer=true", "learner.lora.rank=32"]


def test_one_gpu_is_shared_where_the_recipe_wants_eight():
    found = advice("qwen3_1p7b_ba", Machine("cuda", 80, gpus=1))
    assert found == ["placement=colocated rollout.engines=1 learner.ranks=1"]


def test_a_layout_that_keeps_the_recipes_shares_comes_first():
    # A quarter of the GPUs are engines'.
    found = advice("qwen3_1p7b_ba", Machine("cuda", 80, gpus=4))
    assert found == ["rollout.engines=1 learner.ranks=3"]


def test_where_the_number_of_gpus_is_not_known_more_of_them_are_proposed():
    share = "rollout.engine.gpu_memory_utilization=0.85"
    # A rank of four is at 24.1 GiB in a layer's backward, 16.9 of it all the time.
    found = advice("qwen3_4b_math_grpo", Machine("cuda", 24), share)
    assert "learner.ranks=8" in found
    assert not any("placement" in change for change in found)
    (larger,) = advice("qwen3_8b_math_grpo", Machine("cuda", 24))
    assert "rollout.tensor_parallel=2" in larger  # 15.3 GiB of weights and as much cache as is left


def test_a_smaller_share_is_proposed_where_only_an_update_is_too_full():
    recipe = load_recipe("qwen3_1p7b_ba")
    machine = Machine("cuda", 24, gpus=8)
    crowded = [phase.name for phase in plan(recipe, shape_of(recipe), machine) if not phase.fits]
    assert crowded == ["sync"]
    found = changes_that_fit(recipe, shape_of(recipe), machine)
    # 24 GiB less 1 of context and 1.74 of buckets and module leave 0.886, and a forward pass.
    assert found[0] == "rollout.engine.gpu_memory_utilization=0.85"


def test_weights_rest_where_they_leave_an_engine_too_little():
    # Forward passes of 262,144 tokens take 11.2 GiB. A share of 0.74 of 20 GiB (the learner's
    # weights take 3.2, both contexts 2) does not hold them, 0.9 does.
    base = (*SHARED, "rollout.engine.max_num_batched_tokens=262144", "learner.lora.rank=8")
    assert advice("qwen3_1p7b_ba", Machine("cuda", 20, gpus=1), *base) == [
        "learner.offload_weights=true"
    ]


def test_a_micro_batch_shorter_than_the_longest_sequence_is_never_proposed():
    for name in NAMES:
        longest = load_recipe(name).rollout.max_model_len
        for change in advice(name, Machine("cuda", 24, gpus=8)):
            assert "max_model_len" not in change
            for word in change.split():
                key, value = word.split("=")
                assert key != "learner.micro_batch_tokens" or int(value) >= (longest or 0)


def test_what_every_second_layer_keeps_is_counted_and_can_be_given_up():
    every = load_recipe("qwen3_1p7b_ba", ["rollout.engine.gpu_memory_utilization=0.5"])
    sparse = changed(every, {"model.checkpoint_every": 2})
    assert sparse is not None
    shape, machine = shape_of(every), Machine("cuda", 80)

    def backward(recipe: Recipe) -> Any:
        return next(p for p in plan(recipe, shape, machine) if p.name == "layer backward")

    # 14 layers keep everything, not their input of 16,384 x 2,048 values of two bytes alone.
    kept = backward(sparse).parts["activations"] - backward(every).parts["activations"]
    assert kept > 14 * 16_384 * 2048 * 2
    tight = Machine("cuda", backward(every).total / GIB)
    assert "model.checkpoint_every=1" in changes_that_fit(sparse, shape, tight)


def test_where_nothing_helps_nothing_is_named():
    recipe = load_recipe("qwen3_1p7b_ba")
    shape = shape_of(recipe)
    assert changes_that_fit(recipe, shape, Machine("cuda", 0.5)) == []
    assert smallest_card(recipe, shape, Machine("cuda", 0.5, gpus=8)) == 16
    assert smallest_card(recipe, shape, Machine("cuda", 288, gpus=8)) is None


def test_a_change_that_the_recipe_refuses_is_none():
    recipe = load_recipe("qwen3_1p7b_ba")
    assert changed(recipe, {"learner.ranks": 0}) is None
    ahead = load_recipe("qwen3_1p7b_ba", ["schedule.max_staleness=1"])
    assert changed(ahead, {"placement": "colocated"}) is None
    adapted = changed(recipe, {"learner.lora.rank": 8})
    assert adapted == load_recipe("qwen3_1p7b_ba", ["learner.lora.rank=8"])


def test_a_recipe_is_the_same_after_a_change_that_changes_nothing():
    for name in shipped("recipes"):
        recipe = load_recipe(name)
        assert changed(recipe, {"learner.ranks": recipe.learner.ranks}) == recipe
