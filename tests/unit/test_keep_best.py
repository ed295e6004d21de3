"""The checkpoints at which an evaluation was best stay, whatever happens to the run."""

import json
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from grpo.config.lasting import KeepBestConfig
from grpo.config.load import load_recipe
from grpo.config.recipe import Recipe
from grpo.console import Screen
from grpo.errors import UserError
from grpo.eval import run as evaluate
from grpo.eval.result import BenchmarkResult, save
from grpo.eval.scores import Score
from grpo.preflight.check import check_recipe
from grpo.store.checkpoint import RunFolder
from grpo.store.log import MetricsLog
from grpo.train.best import best_steps
from grpo.train.groups import Collected
from grpo.train.resume import eval_path, knows_evaluation, starting_point
from grpo.train.trainer import Progress, Trainer
from grpo.train.unreported import Unreported
from tests.examples import examples
from tests.unit.made_parts import opened

SUMS = {
    "name": "sums",
    "data": {"name": "sums", "task": {"name": "arithmetic", "rows": 8}},
    "samples": 2,
}
BASE: dict[str, Any] = {
    "name": "run",
    "model": {"path": "org/model"},
    "data": {"name": "sums", "task": {"name": "arithmetic", "rows": 8}},
    "logging": {"samples_every": 0, "rollouts": False},
}
AVG = "eval/sums/avg"


def result(value: float) -> list[BenchmarkResult]:
    scores = {n: Score(n, value, value, value) for n in ("avg@2", "best@2")}
    return [BenchmarkResult("sums", 8, scores, 5.0, 0.0, 0.0)]


def recipe(
    steps: int, *, every: int, eval_every: int, keep: int = 1, k: int = 1, at_start: bool = False
) -> Recipe:
    return Recipe.model_validate(
        BASE
        | {
            "schedule": {"steps": steps},
            "checkpoint": {"every": every, "keep": keep, "keep_best": {"metric": AVG, "k": k}},
            "eval": {"suite": SUMS, "every": eval_every, "at_start": at_start, "at_end": False},
        }
    )


class Killed(BaseException):
    """Nothing catches it, as nothing does a SIGKILL."""


class Life:
    """A process that lives for `moves` moves, each a step or a checkpoint being written."""

    def __init__(self, moves: int = 10**6):
        self._left = moves

    def move(self, *_: Any) -> None:
        self._left -= 1
        if self._left < 0:
            raise Killed


class Scripted(Trainer):
    """Its steps take no engine; what it learns is written into its cursor."""

    life = Life()

    def train_step(self, step: int) -> None:
        self.life.move()
        self.progress, self.cursor = Progress(step, step, 0), {"learned": step}
        metrics = {"reward/mean": 0.5, "time/step_s": 1.0}
        self.unreported = Unreported(step, metrics, Collected([], []))


def run(under_test: Recipe, folder: Path, life: Life | None = None) -> str:
    """Begins the run, or goes on with it, until its end or its death; what it said."""
    said, part, run_folder = StringIO(), Mock(), RunFolder(folder)
    part.policy_update.state_dict.return_value = {}
    part.policy_update.is_under_way = False
    part.learner.num_not_finite.return_value = 0
    screen = Screen(said, said)
    checkpoint = starting_point(under_test, run_folder, screen, "auto")
    parts = opened(
        folder,
        part,
        learner=part.learner,
        collector=part.collector,
        policy_update=part.policy_update,
    )
    trainer = Scripted(under_test, run_folder, screen, part.stop, parts)
    part.stop.return_value = False
    part.collector.cursor.return_value = {"learned": 0}
    trainer.life = life or Life()
    part.learner.save.side_effect = trainer.life.move
    if checkpoint is not None:
        trainer.restore(checkpoint)
        trainer.cursor = json.loads((checkpoint / "state.json").read_text())["cursor"]
    try:
        trainer.run()
    except Killed:
        return "killed"
    return " ".join(said.getvalue().split())


@pytest.fixture
def scores(monkeypatch: pytest.MonkeyPatch) -> dict[int, float]:
    """What an evaluation after each step finds; 0.1 where nothing is said."""
    by_step: dict[int, float] = {}

    def run_suite(_: Any, bench: evaluate.Bench) -> list[BenchmarkResult]:
        return result(by_step.get(int(bench.out.stem.removeprefix("step_")), 0.1))

    monkeypatch.setattr(evaluate, "run_suite", run_suite)
    return by_step


def steps_of(folder: Path) -> list[int]:
    return RunFolder(folder).checkpoint_steps()


def learned(folder: Path, step: int) -> int:
    path = RunFolder(folder).checkpoints / f"step_{step:06d}" / "state.json"
    return json.loads(path.read_text())["cursor"]["learned"]


def test_the_best_one_stays_beside_the_newest(tmp_path: Path, scores: dict[int, float]):
    scores |= {2: 0.3, 4: 0.9, 6: 0.5, 8: 0.4}
    run(recipe(8, every=2, eval_every=2), tmp_path)
    assert steps_of(tmp_path) == [4, 8]


def test_an_evaluation_after_a_step_without_a_checkpoint_saves_one_if_it_is_the_best(
    tmp_path: Path, scores: dict[int, float]
):
    scores |= {3: 0.7, 6: 0.6, 9: 0.2}
    said = run(recipe(10, every=10, eval_every=3), tmp_path)
    assert steps_of(tmp_path) == [3, 10]
    assert learned(tmp_path, 3) == 3
    assert said.count("is among the best") == 1 and "step 3 is among the best" in said


def test_of_equals_the_earlier_stays_and_the_start_has_nothing_to_save(
    tmp_path: Path, scores: dict[int, float]
):
    scores |= {0: 0.9, 2: 0.5, 4: 0.5}
    run(recipe(5, every=5, eval_every=2, at_start=True), tmp_path)
    assert steps_of(tmp_path) == [2, 5]


def test_without_keep_best_nothing_is_saved_for_an_evaluation(
    tmp_path: Path, scores: dict[int, float]
):
    scores |= {2: 0.9}
    plain = recipe(5, every=5, eval_every=2)
    plain = plain.model_copy(
        update={"checkpoint": plain.checkpoint.model_copy(update={"keep_best": None})}
    )
    run(plain, tmp_path)
    assert steps_of(tmp_path) == [5]


def test_an_evaluation_that_did_not_get_into_the_metrics_is_in_them_after_a_resume(
    tmp_path: Path, scores: dict[int, float], monkeypatch: pytest.MonkeyPatch
):
    """Killed between the two files."""
    scores |= {2: 0.7}
    well = MetricsLog.log

    def log(self: MetricsLog, step: int, metrics: dict[str, float]) -> None:
        if AVG in metrics:
            raise Killed
        well(self, step, metrics)

    chosen, folder = recipe(3, every=2, eval_every=2), RunFolder(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(MetricsLog, "log", log)
        assert run(chosen, tmp_path) == "killed"
    assert eval_path(folder, 2).exists() and not knows_evaluation(folder, 2)
    run(chosen, tmp_path)
    lines = [json.loads(line) for line in folder.metrics.open()]
    assert [(line["step"], line.get(AVG)) for line in lines] == [
        (1, None),
        (2, None),
        (2, 0.7),
        (3, None),
    ]
    assert knows_evaluation(folder, 2)


@examples(60)
@given(data=st.data())
def test_a_run_that_is_killed_at_any_moment_ends_with_the_same_best(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
):
    folder = tmp_path_factory.mktemp("run")
    steps = data.draw(st.integers(1, 12))
    every, eval_every = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 4))
    keep, k = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    found = data.draw(st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.4]), min_size=13, max_size=13))
    deaths = data.draw(st.lists(st.integers(0, 15), max_size=3))
    chosen = recipe(steps, every=every, eval_every=eval_every, keep=keep, k=k)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            evaluate,
            "run_suite",
            lambda _, bench: result(found[int(bench.out.stem.removeprefix("step_"))]),
        )
        for moves in deaths:
            run(chosen, folder, Life(moves))
        assert run(chosen, folder) != "killed"
    evaluated = range(eval_every, steps + 1, eval_every)
    best = sorted(evaluated, key=lambda step: (-found[step], step))[:k]
    there = steps_of(folder)
    assert {*best, steps} <= set(there)
    assert all(learned(folder, step) == step for step in there)
    # What an evaluation has just displaced may stay until the next one is saved.
    assert len(there) <= keep + k + 1


def test_going_back_sets_the_best_aside_with_its_evaluation(
    tmp_path: Path, scores: dict[int, float]
):
    """It was found by a policy that the run has left; nothing is deleted."""
    scores |= {2: 0.5, 4: 0.9, 6: 0.3}
    run(recipe(6, every=2, eval_every=2, keep=3), tmp_path)
    folder, keep_best = RunFolder(tmp_path), KeepBestConfig(metric=AVG)
    assert steps_of(tmp_path) == [2, 4, 6] and best_steps(folder, keep_best, 6) == {4}
    aside = folder.rewind(2)
    assert aside is not None and (aside / "checkpoints" / "step_000004").is_dir()
    assert best_steps(folder, keep_best, 2) == {2}


def test_a_step_that_was_not_evaluated_is_not_among_the_best(tmp_path: Path):
    folder = RunFolder(tmp_path)
    folder.evaluations.mkdir(parents=True)
    save(result(0.9), eval_path(folder, 4))
    keep_best = KeepBestConfig(metric=AVG, k=2)
    assert best_steps(folder, keep_best, 5) == set(), "what 4 had is gone"
    assert best_steps(folder, keep_best, 4) == {4}
    assert best_steps(folder, None, 4) == set()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ("eval.every=0", "eval.every is 0, so that only the start and the end"),
        (
            "checkpoint.keep_best.metric=eval/sum/avg",
            "'eval/sum/avg' is none that the suite 'sums' gives; did you mean 'eval/sums/avg'? "
            "It gives: eval/sums/avg, eval/sums/best",
        ),
        ("checkpoint.keep_best.metric=reward/mean", "It gives: eval/sums/avg, eval/sums/best"),
        ("eval.suite=null", "nothing is evaluated: set eval.suite and eval.every"),
    ],
)
def test_a_metric_that_the_suite_does_not_give_is_refused_before_anything_starts(
    tmp_path: Path, changes: str, message: str
):
    path = tmp_path / "mine.yaml"
    chosen = BASE | {
        "eval": {"suite": SUMS, "every": 5},
        "checkpoint": {"keep_best": {"metric": AVG}},
    }
    path.write_text(json.dumps(chosen))
    check_recipe(load_recipe(path))
    with pytest.raises(UserError) as error:
        check_recipe(load_recipe(path, [changes]))
    assert message in str(error.value)


def test_keeping_none_is_said_by_leaving_it_out():
    with pytest.raises(ValidationError):
        KeepBestConfig(metric=AVG, k=0)
    assert Recipe.model_validate(BASE).checkpoint.keep_best is None
