"""Machines that are described on the command line, and where engines and ranks are on them."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from grpo.config.recipe import Recipe
from grpo.errors import UserError
from grpo.preflight.advice import changes_that_fit
from grpo.preflight.layout import Machine, by_node, decided, described, fault
from tests.unit.planned import SHAPE
from tests.unit.test_layout import recipe


@pytest.fixture(autouse=True)
def no_gpu_here(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def two_nodes() -> Machine:
    return Machine("cuda", 80, gpus=8, nodes=2)


def test_gpus_are_meant_where_any_is_described():
    assert described(None, gpus=8, gpu_gib=80) == Machine("cuda", 80, 8)
    assert described(None, gpus=8, gpu_gib=80, nodes=2, host_gib=500) == Machine(
        "cuda", 80, 8, 2, 500
    )
    assert described("cuda", gpu_gib=80) == Machine("cuda", 80, None)
    assert described(None).kind == "cpu"
    assert described(None, host_gib=12) == Machine("cpu", 12)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"gpus": 8}, "give --gpu-gib, say 80"),
        ({"gpu_gib": 80.0, "nodes": 2}, "give --gpus"),
    ],
)
def test_what_a_description_lacks_is_asked_for(arguments: dict[str, Any], said: str):
    with pytest.raises(UserError, match=said):
        described(None, **arguments)


def test_what_is_not_described_is_this_machine(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    card: Any = type("Card", (), {"total_memory": 48 << 30})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: card)
    here = described(None)
    assert (here.kind, here.gib, here.gpus, here.nodes) == ("cuda", 48, 4, 1)
    assert here.host_gib is not None
    # Another machine's cards say nothing of its host.
    assert described(None, gpu_gib=80) == Machine("cuda", 80, 4)


@pytest.mark.parametrize(
    ("asked", "machine", "said"),
    [
        (recipe("disaggregated", 1, 12, 1), two_nodes(), "no machine has more than 8 GPUs"),
        # Each node has room for one engine of five.
        (recipe("disaggregated", 3, 5, 1), two_nodes(), "2 of 5 GPUs each can be placed"),
        (recipe("disaggregated", 8, 1, 9), two_nodes(), "needs 17 GPUs, and there are 16"),
        (recipe("colocated", 1, 1, 2), Machine("cuda", 80), "engines as many as learner.ranks, 2"),
        (recipe("auto", 1, 1, 1), Machine("cuda", 2, gpus=1), "too small to be shared"),
    ],
)
def test_a_layout_that_a_machine_has_no_room_for_is_refused(
    asked: Recipe, machine: Machine, said: str
):
    assert said in str(fault(asked, SHAPE, machine))


@pytest.mark.parametrize(
    ("asked", "machine"),
    [
        (recipe("disaggregated", 2, 4, 8), two_nodes()),
        (recipe("auto", 16, 1, 16), two_nodes()),
        (recipe("disaggregated", 99, 8, 99), Machine("cuda", 80)),
    ],
)
def test_a_layout_that_there_is_room_for_is_not(asked: Recipe, machine: Machine):
    assert fault(asked, SHAPE, machine) is None


@pytest.mark.parametrize("machine", [two_nodes(), Machine("cuda", 80), Machine("cpu", 80)], ids=str)
def test_heads_that_an_engines_gpus_cannot_divide_are_refused_with_the_numbers_that_do(
    machine: Machine,
):
    """16 of queries and 8 of keys; vLLM raises at its start."""
    why = fault(recipe("disaggregated", 1, 3, 1), SHAPE, machine)
    assert str(why).startswith("rollout.tensor_parallel is 3, among which the model's 16 attention")
    assert str(why).endswith("set it to one of 1, 2, 4, 8, 16")
    # Three key heads are neither shared out nor copied among two GPUs, though queries are.
    odd = replace(SHAPE, heads=12, kv_heads=3)
    why = fault(recipe("disaggregated", 1, 2, 1), odd, machine)
    assert str(why).endswith("12 attention heads (3 of keys) cannot be divided: set it to one of "
                             "1, 3, 6, 12")  # fmt: skip
    assert fault(recipe("disaggregated", 1, 3, 1), odd, machine) is None


@pytest.mark.parametrize("gpus", [None, 8])
def test_no_layout_is_proposed_that_the_heads_do_not_allow(gpus: int | None):
    """Two, four or eight GPUs of five GiB do for an engine, but not for 14 heads, 7 of keys."""
    asked, machine = recipe("disaggregated", 1, 1, 2), Machine("cuda", 5, gpus=gpus)
    (change,) = changes_that_fit(asked, SHAPE, machine)
    assert "rollout.tensor_parallel=4" in change
    assert changes_that_fit(asked, replace(SHAPE, heads=14, kv_heads=7), machine) == []


def test_ray_elsewhere_adds_nothing_to_a_machine_that_is_described(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    why = fault(recipe("disaggregated", 8, 1, 8), SHAPE, Machine("cuda", 80, gpus=8))
    assert "needs 16 GPUs, and there are 8" in str(why)


def test_the_learner_has_as_few_nodes_as_will_do_and_an_engine_stays_within_one():
    # Six ranks leave room for one engine of two beside them; the four others are on node 2.
    machine = Machine("cuda", 80, gpus=8, nodes=2)
    assert by_node(recipe("disaggregated", 5, 2, 6), machine) == [(1, 6), (4, 0)]
    assert by_node(recipe("disaggregated", 2, 5, 4), machine) == [(1, 3), (1, 1)]
    assert by_node(recipe("auto", 12, 1, 12), machine) == [(8, 8), (4, 4)]


def test_a_line_says_how_it_is_placed_and_how_many_gpus_that_takes():
    assert decided(recipe("auto", 1, 1, 1), Machine("cuda", 80, gpus=1)) == (
        "colocated, engines: 1, learner ranks: 1, taking turns (placement: auto); 1 of 1 GPUs used"
    )
    assert decided(recipe("disaggregated", 2, 2, 4), Machine("cuda", 80)) == (
        "disaggregated, engines: 2 of 2 GPUs each, learner ranks: 4; 8 GPUs"
    )
    assert decided(recipe("disaggregated", 4, 2, 4), two_nodes()) == (
        "disaggregated, engines: 4 of 2 GPUs each, learner ranks: 4; node 1: engines 0, ranks 4; "
        "node 2: engines 4, ranks 0; 12 of 16 GPUs used"
    )
