"""What is saved of a run in which something fails, and what must not be."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any, cast
from unittest.mock import Mock

import pytest

from grpo.config.recipe import Recipe
from grpo.console import Screen
from grpo.errors import Diverged, Interrupted, RunError, WorkerFault
from grpo.fleet.weights import UpdateStats
from grpo.store.checkpoint import RunFolder
from grpo.store.log import read_metrics
from grpo.train.groups import Collected
from grpo.train.pace import Pace
from grpo.train.trainer import Trainer
from grpo.train.update import PolicyUpdate
from tests.unit.made_parts import opened
from tests.unit.test_skipped import Ill
from tests.unit.test_step import group

GROUPS = [group(serial, [1.0, 0.0], [3, 4]) for serial in range(4)]


class Steady(Ill):
    """Takes every step, and writes nothing."""

    def num_not_finite(self) -> int:
        return 0

    def answers_within(self, seconds: float) -> None: ...

    def save(self, folder: Path) -> None: ...


class Scene:
    """A run of six steps whose parts do what a test tells them to; the policy update is real."""

    def __init__(self, folder: Path, **changes: Any):
        config = {
            "name": "run",
            "model": {"path": "org/model"},
            "data": {"name": "sums", "task": {"name": "arithmetic", "rows": 8}},
            "rollout": {"prompts": 4, "group_size": 2, "max_tokens": 10},
            "logging": {"samples_every": 0, "rollouts": False},
            "difficulty": {"window": 5},
            "schedule": {"steps": 6},
            "checkpoint": {"every": 100},
        }
        recipe = Recipe.model_validate(config | changes)
        self.folder, self.told, self.part = RunFolder(folder), StringIO(), Mock()
        self.learner = Steady(set())
        part, learner = self.part, cast(Any, self.learner)
        part.collector.collect.return_value = Collected(GROUPS, GROUPS)
        part.collector.cursor.side_effect = lambda learned=0: {"learned": learned}
        part.sync.update.return_value = UpdateStats(1.0, 8)
        part.sync.canary_due.return_value = False
        part.stop.check.side_effect = None
        parts = opened(
            folder,
            part,
            learner=learner,
            sync=part.sync,
            collector=part.collector,
            policy_update=PolicyUpdate(recipe, learner),
        )
        screen = Screen(self.told, self.told)
        self.trainer = Trainer(recipe, self.folder, screen, part.stop, parts)

    def run_until(self, error: type[BaseException]) -> None:
        with pytest.raises(error):
            self.trainer.run()

    @property
    def saved(self) -> dict[str, Any] | None:
        path = self.folder.latest_checkpoint()
        return None if path is None else json.loads((path / "state.json").read_text())

    @property
    def logged(self) -> list[int]:
        return [line["step"] for line in read_metrics(self.folder.metrics)]


def at(call: int, error: BaseException, otherwise: Any) -> Any:
    """A side effect that raises in its `call`-th call."""
    calls = iter(range(1, 10**6))

    def effect(*_: Any, **__: Any) -> Any:
        if next(calls) == call:
            raise error
        return otherwise

    return effect


def test_a_step_that_the_learner_took_is_finished_though_no_engine_has_its_weights(tmp_path: Path):
    scene = Scene(tmp_path)
    dead = WorkerFault("rollout-0 receive", "rollout-0 died")
    scene.part.sync.update.side_effect = at(3, dead, UpdateStats(1.0, 8))
    scene.run_until(WorkerFault)
    assert scene.logged == [1, 2, 3]
    assert scene.saved is not None
    assert scene.saved["step"] == 3 and scene.saved["cursor"] == {"learned": 3}
    assert scene.saved["extra"]["optimizer_steps"] == 3


def test_a_step_that_failed_before_the_learner_began_leaves_the_one_before_as_it_was(
    tmp_path: Path,
):
    """The anchor has seen the failed step's groups already; what is saved has not."""
    scene = Scene(tmp_path)
    collected = Collected(GROUPS, GROUPS)
    wrong = [group(9, [5.0, 0.0], [3, 4])]  # no accuracy
    scene.part.collector.collect.side_effect = [collected, collected, Collected(wrong, wrong)]
    scene.run_until(RunError)
    assert scene.saved is not None and scene.saved["step"] == 2
    assert scene.saved["extra"]["anchor"]["steps"] == 2


def test_the_anchor_counts_a_step_once_where_its_advantages_fail(tmp_path: Path):
    scene = Scene(tmp_path)
    scene.learner.load = at(3, WorkerFault("learner-0 load", "no memory"), None)
    scene.run_until(WorkerFault)
    assert scene.saved is not None and scene.saved["step"] == 2
    assert scene.saved["extra"]["anchor"]["steps"] == 2


def test_weights_in_the_middle_of_a_step_are_not_saved(tmp_path: Path):
    scene = Scene(tmp_path, schedule={"steps": 6, "minibatches": 2})
    step = scene.learner.step
    fails = at(6, WorkerFault("learner-0 step", "learner-0 died"), None)

    def takes(index: int, number: int) -> dict[str, float]:
        fails()
        return step(index, number)

    scene.learner.step = takes  # the second optimizer step of step 3
    scene.run_until(WorkerFault)
    assert scene.saved is None and scene.logged == [1, 2]


def test_sick_weights_are_not_saved_and_what_there_is_stays(tmp_path: Path):
    scene = Scene(tmp_path, checkpoint={"every": 2})
    counts = iter([0, 7])
    scene.learner.num_not_finite = lambda: next(counts)
    scene.run_until(Diverged)
    assert scene.saved is not None and scene.saved["step"] == 2


def test_where_the_learner_is_gone_the_metrics_are_saved_all_the_same(tmp_path: Path):
    scene = Scene(tmp_path)
    gone = WorkerFault("learner-0 num_weight_bytes", "learner-0 died")
    scene.learner.answers_within = at(1, gone, None)
    scene.part.sync.update.side_effect = at(2, WorkerFault("x", "dead"), UpdateStats(1.0, 8))
    scene.run_until(WorkerFault)
    assert scene.logged == [1, 2] and scene.saved is None
    assert "a checkpoint could not be saved: learner-0 died" in scene.told.getvalue()


def test_a_clean_stop_saves_and_one_at_once_does_not(tmp_path: Path):
    for at_once, step in ((True, None), (False, 2)):
        scene = Scene(tmp_path / str(at_once))
        stopped = Interrupted(15, at_once=at_once)
        collected = Collected(GROUPS, GROUPS)
        scene.part.collector.collect.side_effect = [collected, collected, stopped]
        scene.run_until(Interrupted)
        assert (scene.saved and scene.saved["step"]) == step


def test_the_clock_brings_a_checkpoint_where_no_step_does(tmp_path: Path):
    scene = Scene(tmp_path, checkpoint={"every": 100, "every_minutes": 1})
    scene.trainer.saved_at -= 61
    scene.part.collector.collect.side_effect = [Collected(GROUPS, GROUPS), RuntimeError("bug")]
    scene.learner.answers_within = at(1, WorkerFault("x", "gone"), None)
    scene.run_until(RuntimeError)
    assert scene.saved is not None and scene.saved["step"] == 1


# --- what is shown meanwhile ---


class Titled(Screen):
    """Keeps the titles of what is waited for, and how long that is said to take."""

    def __init__(self, told: StringIO):
        super().__init__(told, told)
        self.titles: list[tuple[str, float | None]] = []

    @contextmanager
    def waiting(self, title: str, usual_s: float | None = None) -> Iterator[Any]:
        self.titles.append((title, usual_s))
        yield self


def test_every_part_of_a_step_that_takes_long_is_named_while_it_lasts(tmp_path: Path):
    scene = Scene(tmp_path, schedule={"steps": 2})
    scene.trainer.screen = screen = Titled(scene.told)
    scene.trainer.run()
    titles = [title for title, _ in screen.titles]
    assert titles == [
        "step 1: learning",
        "step 1: weights to the engines",
        "step 1: shadow verifiers",
        "step 1: writing it down",
        "step 2: learning",
        "step 2: weights to the engines",
        "step 2: shadow verifiers",
        "step 2: writing it down",
        "saving the checkpoint of step 2",
    ]
    usual = dict(screen.titles)
    assert usual["step 1: learning"] is None
    assert usual["step 2: learning"] == scene.trainer.learning._first


def test_the_first_weights_are_named_while_they_travel(tmp_path: Path):
    scene = Scene(tmp_path)
    scene.trainer.screen = screen = Titled(scene.told)
    scene.part.sync.check_canary.return_value = Mock(mean=0.0, largest=0.0)
    scene.trainer.begin()
    assert screen.titles == [("first weights to the engines", None)]


def test_what_is_left_of_a_run_is_told_by_the_usual_step(tmp_path: Path):
    """Seven seconds each, whatever the last one took."""

    class Fixed(Pace):
        def took(self, seconds: float) -> None: ...

        @property
        def usual_s(self) -> float:
            return 7.0

    scene = Scene(tmp_path)
    scene.trainer.pace = Fixed()
    scene.trainer.run()
    told = [line.split("ETA ")[1] for line in scene.told.getvalue().splitlines() if "ETA" in line]
    assert told == ["35.0s", "28.0s", "21.0s", "14.0s", "7.0s", "0.0s"]
