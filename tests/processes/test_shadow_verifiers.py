"""Shadow verifiers in processes of their own: what they say, and that none of them is left."""

import os
from typing import Any

import pytest

from grpo.config.recipe import Recipe
from grpo.train.shadows import agreement, open_shadows
from grpo.types import ScoredGroup
from grpo.verify import pool as pool_module
from tests.processes.test_verifier_pool import PLUGINS, descendants, is_gone, until
from tests.unit.test_paid import answer

LATE = {"name": "hostile", "label": "late"}


def recipe(timeout_s: float, *shadows: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "test",
            "plugins": list(PLUGINS),
            "model": {"path": "somewhere"},
            "data": {"name": "numbers", "path": "rows.jsonl"},
            "verifier": {
                "name": "math",
                "workers": 1,
                "timeout_s": timeout_s,
                "shadows": list(shadows),
            },
        }
    )


def test_two_shadows_say_what_they_think_and_leave_no_process():
    lax = {"name": "exact", "options": {"marked": "preferred"}, "label": "lax"}
    groups = [
        answer("So 4", reference="4", reward=0.0),
        answer(r"So \boxed{4}", reference="4", reward=1.0),
        answer("4", reference="4", reward=0.0),
    ]
    before = descendants(os.getpid())
    with open_shadows(recipe(60.0, "exact", lax)) as shadows:
        started = descendants(os.getpid()) - before
        said: list[ScoredGroup] = []
        for group in groups:
            shadows.ask(group.group)
            said += shadows.judge([group])
    rewards = [{name: v.reward for name, v in group.shadows[0].items()} for group in said]
    assert rewards == [{"exact": 0, "lax": 0}, {"exact": 1, "lax": 1}, {"exact": 0, "lax": 1}]
    values = agreement(said, ["exact", "lax"])
    assert values["verdict/exact/agreement"] == 1
    assert values["verdict/lax/accepts_more"] == 1 / 3
    assert len(started) == 6  # each a fork server, a worker, and one that stands by
    assert until(lambda: all(map(is_gone, started)))


def test_a_shadow_that_fails_at_answers_is_silent_about_them_and_goes_on():
    said: list[ScoredGroup] = []
    with open_shadows(recipe(5.0, LATE)) as shadows:
        for text in ("raise", "die", "spin", "worth 1"):
            shadows.ask(answer(text).group)
            said += shadows.judge([answer(text)])
    values = agreement(said, ["late"])
    assert values["verdict/late/missing"] == 0.75
    assert values["verdict/late/agreement"] == 1


def test_a_run_that_ends_while_shadows_are_behind_leaves_nothing(monkeypatch: pytest.MonkeyPatch):
    """More is asked than the pool has room for, and nobody waits for it."""
    monkeypatch.setattr(pool_module, "_MOST_ANSWERS", 2)
    before = descendants(os.getpid())
    started: set[int] = set()
    with pytest.raises(KeyboardInterrupt), open_shadows(recipe(600.0, LATE)) as shadows:
        for _ in range(8):
            shadows.ask(answer("hang").group)
        started = descendants(os.getpid()) - before
        raise KeyboardInterrupt
    assert len(started) >= 3
    assert until(lambda: all(map(is_gone, started)))
