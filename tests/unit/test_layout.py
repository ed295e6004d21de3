"""Which layouts of engines and ranks can be placed on so many GPUs, before anything starts."""

from typing import Any

import pytest

from grpo.config.recipe import Recipe
from grpo.fleet import placement
from grpo.fleet.placement import is_colocated, layout_fault


def recipe(kind: str, engines: int, parallel: int, ranks: int, staleness: int = 0) -> Recipe:
    keys: dict[str, Any] = {
        "name": "r",
        "model": {"path": "m"},
        "data": {"name": "d", "path": "d.jsonl"},
        "placement": kind,
        "rollout": {"engines": engines, "tensor_parallel": parallel},
        "learner": {"ranks": ranks},
        "schedule": {"steps": 1, "max_staleness": staleness},
    }
    return Recipe.model_validate(keys)


@pytest.fixture(autouse=True)
def no_ray_elsewhere(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.mark.parametrize(
    ("kind", "engines", "parallel", "ranks", "gpus", "shares"),
    [
        ("auto", 1, 1, 1, None, False),  # on CPU
        ("auto", 1, 1, 4, None, False),
        ("auto", 1, 1, 1, 1, True),
        ("auto", 1, 1, 1, 2, False),
        ("auto", 8, 1, 8, 8, True),
        ("auto", 4, 1, 4, 8, False),
        ("auto", 2, 2, 4, 8, False),
        ("disaggregated", 6, 1, 2, 8, False),
        ("disaggregated", 1, 4, 4, 8, False),
        ("colocated", 8, 1, 8, 8, True),
        ("colocated", 2, 1, 2, 8, True),
    ],
)
def test_a_layout_that_fits_is_placed_as_it_says(
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    engines: int,
    parallel: int,
    ranks: int,
    gpus: int | None,
    shares: bool,
):
    asked = recipe(kind, engines, parallel, ranks)
    assert layout_fault(asked, gpus) is None
    monkeypatch.setattr(placement, "gpus_here", lambda: gpus)
    assert is_colocated(asked) == shares


@pytest.mark.parametrize(
    ("kind", "engines", "parallel", "ranks", "gpus", "said"),
    [
        ("auto", 1, 1, 4, 4, "auto on 4 GPUs is colocated and shares each GPU between one engine"),
        ("auto", 4, 2, 4, 8, "tensor_parallel must be 1, and engines as many as learner.ranks, 4"),
        ("auto", 4, 1, 4, 2, "needs a GPU for each of 4 engines and ranks, and there are 2"),
        ("colocated", 1, 1, 2, 8, "rollout.engines is 1"),
        ("colocated", 2, 1, 2, 1, "set rollout.engines and learner.ranks to 1 at most"),
        ("colocated", 1, 1, 2, None, "learner.ranks, 2"),
        ("disaggregated", 6, 1, 4, 8, "placement disaggregated needs 10 GPUs, and there are 8"),
        ("disaggregated", 1, 8, 1, 8, "rollout.tensor_parallel is 8"),
    ],
)
def test_a_layout_that_does_not_fit_is_refused_with_what_would(
    kind: str, engines: int, parallel: int, ranks: int, gpus: int | None, said: str
):
    assert said in str(layout_fault(recipe(kind, engines, parallel, ranks), gpus))


def test_work_that_overlaps_cannot_share():
    fault = layout_fault(recipe("auto", 1, 1, 1, staleness=1), 1)
    assert "need 2 GPUs, but there are 1. Set it to 0" in str(fault)
    assert layout_fault(recipe("auto", 1, 1, 1, staleness=1), 2) is None
    # Before what else would be wrong with sharing.
    fault = layout_fault(recipe("auto", 2, 1, 4, staleness=1), 4)
    assert "need 6 GPUs, but there are 4. Set it to 0" in str(fault)


def test_other_machines_of_ray_may_have_what_this_one_lacks(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert layout_fault(recipe("disaggregated", 8, 1, 8), 8) is None
    assert layout_fault(recipe("colocated", 1, 1, 2), 8) is not None
