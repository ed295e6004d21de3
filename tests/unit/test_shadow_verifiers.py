"""Shadow verifiers: what they say is compared, and nothing else changes."""

import random
import threading
from concurrent.futures import Future
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo.config.load import load_recipe
from grpo.config.recipe import Recipe
from grpo.config.verifier import VerifierConfig
from grpo.console import Screen
from grpo.data import PromptStream
from grpo.errors import RunError, UserError
from grpo.fleet.weights import UpdateStats
from grpo.preflight.check import check_recipe
from grpo.store.checkpoint import RunFolder
from grpo.store.log import read_metrics, write_rollouts
from grpo.train.collect import Collector
from grpo.train.groups import Collected
from grpo.train.metrics import group_metrics
from grpo.train.shadows import ShadowVerifiers, agreement
from grpo.train.trainer import Trainer
from grpo.train.update import Learned
from grpo.types import Group, Prompt, Row, ScoredGroup, Verdict
from tests.examples import examples
from tests.unit.made_parts import opened
from tests.unit.scripted import SIBLINGS, Engines, Judge, Script, Tokenizer
from tests.unit.test_paid import answer

MODEL = "model: {path: org/m}\ndata: {name: sums, task: {name: arithmetic, rows: 8}}\n"


class Says:
    """A pool whose verdicts are there at once. `fails`: its pool broke down."""

    def __init__(self, reward: float, reason: str = "", fails: bool = False):
        self._verdict, self._fails = Verdict(reward, "", reason), fails
        self.asked: list[str] = []

    def submit(self, text: str, answer: str, **facts: object) -> Future[Verdict]:
        if self._fails:
            raise RunError("the verifier pool failed")
        self.asked.append(text)
        future: Future[Verdict] = Future()
        future.set_result(self._verdict)
        return future


class Never(Says):
    """No verdict comes; they are left in `futures`."""

    def __init__(self):
        super().__init__(0.0)
        self.futures: list[Future[Verdict]] = []

    def submit(self, text: str, answer: str, **facts: object) -> Future[Verdict]:
        self.futures.append(Future())
        return self.futures[-1]


class Full(Says):
    """Has no room until it is told."""

    def __init__(self):
        super().__init__(1.0)
        self.room, self.futures = threading.Event(), list[Future[Verdict]]()

    def submit(self, text: str, answer: str, **facts: object) -> Future[Verdict]:
        self.room.wait()
        self.futures.append(Future())
        return self.futures[-1]


def judged(group: ScoredGroup, timeout_s: float = 60.0, **pools: Any) -> ScoredGroup:
    shadows = ShadowVerifiers(pools, timeout_s)
    shadows.ask(group.group)
    try:
        return shadows.judge([group])[0]
    finally:
        shadows.close()


def test_agreement_by_hand():
    """Ten answers, of which the shadow says nothing usable of three."""
    said = [
        *[(1.0, 0.5, "")] * 3,  # whatever the size of the reward
        (0.0, -1.0, "wrong"),
        (0.0, 1.0, "correct"),
        *[(1.0, 0.0, "wrong")] * 2,
        (1.0, 0.0, "timeout"),
        (0.0, 0.0, "verifier crashed: KeyError"),
    ]
    groups = [
        judged(answer("", reward=paid), strict=Says(reward, reason))
        for paid, reward, reason in said
    ]
    groups.append(judged(answer("", reward=1.0), 0.0, strict=Never()))
    assert agreement(groups, ["strict"]) == pytest.approx(
        {
            "verdict/strict/agreement": 4 / 7,
            "verdict/strict/accepts_more": 1 / 7,
            "verdict/strict/accepts_less": 2 / 7,
            "verdict/strict/missing": 3 / 10,
        }
    )


def test_a_shadow_that_judged_nothing_has_no_agreement():
    values = agreement([judged(answer(""), lost=Says(0.0, fails=True))], ["lost"])
    assert values.pop("verdict/lost/missing") == 1
    assert str(list(values.values())) == "[nan, nan, nan]"
    assert str(agreement([], ["lost"])["verdict/lost/missing"]) == "nan"


def test_shadows_do_not_wait_for_each_other_nor_the_run_for_them():
    never, full, quick = Never(), Full(), Says(1.0, "correct")
    group = judged(answer("x"), 0.2, never=never, full=full, quick=quick)
    assert group.shadows == ({"quick": Verdict(1.0, "", "correct")},)
    assert all(future.cancelled() for future in never.futures), "nobody waits for it any more"
    full.room.set()
    for thread in threading.enumerate():
        if thread.name.startswith("shadow-full"):
            thread.join()
    assert [future.cancelled() for future in full.futures] == [True]


def test_rollouts_keep_what_the_shadows_said(tmp_path: Path):
    both = judged(answer("x"), math=Says(1.0, "correct"), exact=Says(0.0, "wrong \ud83d"))
    path = write_rollouts(tmp_path, 1, [both, answer("y")])
    said = pq.read_table(path).column("shadows").to_pylist()
    assert said == [
        [
            {"name": "math", "reward": 1.0, "reason": "correct"},
            {"name": "exact", "reward": 0.0, "reason": "wrong ?"},
        ],
        [],
    ]


# --- beside a run ---


def collected(k: int, seed: int, flat: set[int], shadows: ShadowVerifiers | None) -> list[Any]:
    """What three steps consist of, as the learner gets it."""
    recipe = Recipe.model_validate(
        {
            "name": "test",
            "model": {"path": "somewhere", "dtype": "float32"},
            "data": {"name": "numbers", "path": "rows.jsonl"},
            "rollout": {"prompts": 3, "group_size": SIBLINGS},
            "schedule": {"max_staleness": k, "steps": 3},
        }
    )
    tokenizer: Any = Tokenizer()
    rows = [Row(str(n), str(n), "") for n in range(7)]
    stream = PromptStream(rows, recipe.data, tokenizer, seed=0, longest_prompt=10)
    script = Script(random.Random(seed), flat=flat, ends={1: ["stale"], 3: ["abort"]})
    engines, judge = Engines(script), Judge(script.dice)
    stand_ins: Any = (engines, judge)
    collector = Collector(recipe, stream, *stand_ins, shadows)
    collector.begin(1)
    steps: list[Any] = []
    for step in (1, 2, 3):
        collector.ask(step)
        while not collector.is_complete(step):
            collector.turn()
            judge.catch_up(1)
        taken = collector.take(step, Screen(StringIO(), StringIO()))
        engines.version = step
        collector.finish(step)
        if shadows is not None:
            said = shadows.judge(taken.sampled)
            assert all(set(one) == {"other"} for group in said for one in group.shadows)
        steps.append((engines.seeds[:], *numbers(taken)))
    return steps


def numbers(taken: Collected) -> tuple[Any, ...]:
    groups = [
        (g.group.prompt.serial, g.rewards, [r.text for r in g.group.responses])
        for part in (taken.sampled, taken.used)
        for g in part
    ]
    return groups, str(group_metrics(taken.sampled)), taken.stale_tokens, taken.aborted_tokens


@examples(30)
@given(k=st.integers(0, 2), seed=st.integers(0, 2**32), flat=st.sets(st.integers(0, 9), max_size=4))
def test_a_run_with_shadows_is_the_run_without_them(k: int, seed: int, flat: set[int]):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("grpo.train.collect.VERDICT_POLL_S", 0.0)
        pool: Any = Says(0.0)
        shadows = ShadowVerifiers({"other": pool}, 60.0)
        try:
            beside = collected(k, seed, flat, shadows)
        finally:
            shadows.close()
        assert beside == collected(k, seed, flat, None)


def test_what_is_thrown_away_is_not_shadowed():
    pool: Any = Says(0.0)
    shadows = ShadowVerifiers({"other": pool}, 60.0)
    steps = collected(0, 1, set(), shadows)
    shadows.close()
    assert len(pool.asked) == sum(len(groups) for _, groups, *_ in steps) / 2 * SIBLINGS
    assert len(steps[-1][0]) > 9, "some were sampled twice"


# --- the recipe ---


def recipe(tmp_path: Path, verifier: str, *overrides: str) -> Recipe:
    path = tmp_path / "r.yaml"
    path.write_text(f"name: r\n{MODEL}verifier: {verifier}\n")
    return load_recipe(path, overrides)


def shadows_of(recipe: Recipe) -> list[tuple[str, str, dict[str, Any]]]:
    return [(one.shown_as, one.name, one.options) for one in recipe.verifier.shadows]


def test_shadows_are_named_in_a_recipe_and_on_the_command_line(tmp_path: Path):
    lax = "{name: math, options: {marked: preferred}, label: lax}"
    written = recipe(tmp_path, f"{{name: math, shadows: [exact, {lax}]}}")
    two = [("exact", "exact", {}), ("lax", "math", {"marked": "preferred"})]
    assert shadows_of(written) == two
    assert dict(check_recipe(written).facts)["shadow verifiers"] == "exact, lax"
    given = recipe(tmp_path, "math", "verifier.shadows=[exact]")
    assert (given.verifier.name, shadows_of(given)) == ("math", two[:1])
    other = recipe(tmp_path, "{name: math, shadows: [exact]}", "verifier=countdown")
    assert (other.verifier.name, shadows_of(other)) == ("countdown", two[:1])


@pytest.mark.parametrize(
    ("shadows", "message"),
    [
        ("[exactly]", "unknown verifier 'exactly'; did you mean 'exact'"),
        ("[{name: math, options: {makred: preferred}}]", "did you mean 'marked'"),
        ("[{name: math, marked: preferred}]", "unknown key 'verifier.shadows.0.marked'"),
        ("[exact, math, exact]", "two shadows are called 'exact': give one of them a label"),
        ("[{name: math, label: a/b}]", "verifier.shadows.0.label"),
        ("exact", "verifier.shadows: "),
        ("[code]", "verifier.timeout_s"),
    ],
)
def test_a_shadow_with_a_mistake_is_refused_before_anything_starts(
    tmp_path: Path, shadows: str, message: str
):
    with pytest.raises(UserError) as refused:
        check_recipe(recipe(tmp_path, f"{{name: math, shadows: {shadows}}}"))
    assert message in str(refused.value)


def test_a_run_may_go_on_with_other_shadows(tmp_path: Path):
    folder = RunFolder(tmp_path / "run")
    begun = recipe(tmp_path, "{name: math, shadows: [exact]}")
    folder.begin(begun.model_dump(mode="json"), {})
    for verifier in ("math", "{name: math, shadows: [countdown, {name: exact, label: x}]}"):
        now = recipe(tmp_path, verifier).model_dump(mode="json")
        assert folder.recipe_conflicts(now) == []


def test_the_pool_of_nothing_starts_no_thread():
    before = threading.active_count()
    group = Group(Prompt(0, Row("", "", ""), (1,)), ())
    shadows = ShadowVerifiers({}, 1.0)
    shadows.ask(group)
    assert shadows.judge([ScoredGroup(group, ())]) == [ScoredGroup(group, ())]
    shadows.close()
    assert threading.active_count() == before
    assert VerifierConfig().shadows == []


# --- a step of a run ---


def step_of(tmp_path: Path, *shadows: str) -> tuple[dict[str, Any], str, list[dict[str, Any]]]:
    """(its line in metrics.jsonl, what was warned of, its rollouts), all of it echoes."""
    groups = [
        answer(
            rf"So \boxed{{{n} + 11}}",
            f"{n} + 11",
            f"What is {n} + 11?",
            str(n + 11),
            reward=float(n % 3 > 0),
            serial=n,
        )
        for n in range(20, 44)  # a third of them not rewarded
    ]
    learned = Learned(Collected(groups, groups), 1, {"learn/loss": 0.0})
    part = Mock()
    part.collect.return_value = learned.collected
    part.learn.return_value = learned
    part.update.return_value = UpdateStats(1.0, 8)
    part.canary_due.return_value = False
    pools: Any = {name: Says(float(name == "gullible")) for name in shadows}
    beside = ShadowVerifiers(pools, 60.0)
    config = {
        "name": "run",
        "output": str(tmp_path),
        "model": {"path": "org/model"},
        "data": {"name": "sums", "task": {"name": "arithmetic", "rows": 8}},
        "verifier": {"name": "math", "shadows": list(shadows)},
        "logging": {"samples_every": 0},
    }
    folder, err = RunFolder(tmp_path), StringIO()
    parts = opened(tmp_path, part, shadows=beside)
    run = Trainer(Recipe.model_validate(config), folder, Screen(StringIO(), err), part, parts)
    for step in (1, 2):
        for group in groups:
            beside.ask(group.group)
        run.train_step(step)
        run.report()
    beside.close()
    path = folder.rollouts / "step_000002.parquet"
    return read_metrics(folder.metrics)[1], err.getvalue(), pq.read_table(path).to_pylist()


def test_a_step_logs_signs_and_agreement_and_is_else_the_step_without_shadows(tmp_path: Path):
    line, warned, rollouts = step_of(tmp_path / "with", "gullible", "strict")
    assert line["reward/echo_share"] == 1.0 and line["reward/truncated_share"] == 0.0
    assert warned.count("16 of 16 rewarded answers (reward/echo_share 1.00)") == 1, "over two steps"
    assert line["verdict/gullible/agreement"] == 16 / 24 == line["verdict/strict/accepts_less"]
    assert [entry["name"] for entry in rollouts[0]["shadows"]] == ["gullible", "strict"]
    plain, same, without = step_of(tmp_path / "without")
    assert same == warned
    ours = ("verdict/gullible/", "verdict/strict/", "time/shadow_s")
    clocks = ("time", "throughput/", "sync/bytes")
    assert {key for key in line if key.startswith(ours)} == line.keys() - plain.keys()
    assert {key: line[key] for key in plain if not key.startswith(clocks)} == {
        key: plain[key] for key in plain if not key.startswith(clocks)
    }
    assert [row | {"shadows": []} for row in rollouts] == without
