"""Signs of a collapsed run: when they are there, what they say, and what follows."""

import json
import math
from collections.abc import Iterable
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from grpo.config.health import HealthConfig
from grpo.config.recipe import Recipe
from grpo.console import Screen
from grpo.errors import Collapsed, Diverged
from grpo.store.checkpoint import RunFolder
from grpo.train.collapse import CollapseGuards, Finding, diagnosis
from grpo.train.failures import with_example
from grpo.train.groups import Collected
from grpo.train.trainer import Progress, Trainer
from grpo.train.unreported import Unreported
from grpo.types import Group, Prompt, Response, Row, ScoredGroup, Verdict
from tests.examples import examples
from tests.unit.made_parts import opened

CRASHED, TIMEOUT = "verdict/verifier crashed/share", "verdict/timeout/share"
SIGNS = {  # by metric: its key, and a value that is a sign of it
    "reward/mean": ("reward_share", 0.1),
    "groups/flat_share": ("flat_steps", 1.0),
    "truncated/share": ("truncated_share", 1.0),
    "learn/entropy": ("entropy", 0.001),
    "mismatch/kl": ("mismatch_rise", 0.5),
    TIMEOUT: ("verifier_failures", 0.02),
    CRASHED: ("verifier_failures", 0.02),
}
HEALTHY = {
    "reward/mean": 0.5,
    "groups/flat_share": 0.25,
    "groups/all_right_share": 0.0,
    "truncated/share": 0.0,
    "learn/entropy": 0.3,
    "mismatch/kl": 0.001,
}
Seen = list[tuple[int, str]]


def guards(lowest_reward: float = 0.0, **config: Any) -> CollapseGuards:
    return CollapseGuards(HealthConfig(**config), lowest_reward)


def seen(under_test: CollapseGuards, steps: Iterable[dict[str, Any]]) -> list[Finding]:
    return [f for step, metrics in enumerate(steps, 1) for f in under_test.look(step, metrics)]


def when(under_test: CollapseGuards, steps: Iterable[dict[str, Any]]) -> Seen:
    """Each step at which something was found, and of which metric."""
    return [
        (step, finding.metric)
        for step, metrics in enumerate(steps, 1)
        for finding in under_test.look(step, metrics)
    ]


def values(metric: str, *numbers: float | None) -> list[dict[str, Any]]:
    return [{metric: number} for number in numbers]


# --- the reward ---


def test_a_reward_that_has_fallen_below_half_of_its_best_is_found_once_it_is_beyond_chance():
    """Means over 4 steps: .8, .65, .5, .35 and .2. The fourth is below .4, but its variance is
    .0675, so that a difference of two such means has an error of sqrt(2 x .0675 / 4) = .18, and
    five of these are more than the .45 that it fell."""
    steps = values("reward/mean", *[0.8] * 4, *[0.2] * 4)
    (finding,) = seen(guards(window=4), steps)
    assert (finding.metric, finding.key) == ("reward/mean", "health.reward_share")
    assert (finding.value, finding.threshold) == (0.2, pytest.approx(0.4))
    assert finding.warning == (
        "step 8: reward/mean averages 0.2 over the last 4 steps, below 0.4, which is 0.5 of its "
        "best (health.reward_share). What was learned is being lost: go on from a checkpoint "
        "before it, with a lower learner.lr (name=NAME --resume DIR)"
    )


def test_a_reward_that_falls_less_or_only_wobbles_is_none():
    assert when(guards(window=4), values("reward/mean", *[0.8] * 4, *[0.41] * 9)) == []
    # Hard data: means of .03, then .01, each with a standard error of .0087.
    hard = (0.04, 0.0, 0.04, 0.04, 0.0, 0.0, 0.04, 0.0)
    assert when(guards(window=4), values("reward/mean", *hard)) == []
    assert when(guards(window=4), values("reward/mean", *[0.0] * 20)) == [], "it never learned"


def test_rewards_are_measured_from_the_lowest_one():
    """Of -1 to 1: .8 above the lowest at best, then .3."""
    steps = values("reward/mean", *[-0.2] * 4, *[-0.7] * 4)
    assert seen(guards(window=4), steps) == [], "nothing above 0 was there to lose"
    (finding,) = seen(guards(lowest_reward=-1.0, window=4), steps)
    assert (finding.value, finding.threshold) == (pytest.approx(-0.7), pytest.approx(-0.6))


def test_a_step_without_a_reward_is_no_fall():
    steps = values("reward/mean", *[0.8] * 4, *[math.nan, None] * 9)
    assert when(guards(window=4), [*steps, *[{"time/eval_s": 3.0}] * 9]) == []


# --- streaks ---


def test_flat_groups_are_found_after_five_steps_in_a_row():
    flat, mixed = {"groups/flat_share": 1.0}, {"groups/flat_share": 0.98}
    assert when(guards(), [flat] * 4 + [mixed] + [flat] * 4) == []
    assert when(guards(), [flat] * 9) == [(5, "groups/flat_share")]
    assert when(guards(flat_steps=2), [flat] * 9) == [(2, "groups/flat_share")]


def test_groups_that_nobody_could_judge_teach_as_little_as_flat_ones():
    step = {"groups/flat_share": 0.25, "groups/unjudged_share": 0.75}
    assert when(guards(), [step] * 5) == [(5, "groups/flat_share")]


def test_a_run_that_gets_everything_right_has_not_collapsed():
    solved = {"groups/flat_share": 1.0, "groups/all_right_share": 1.0}
    assert when(guards(), [solved] * 20) == []
    half = {"groups/flat_share": 1.0, "groups/all_right_share": 0.5}
    assert when(guards(), [half] * 5) == [(5, "groups/flat_share")]


@pytest.mark.parametrize(
    ("metric", "there", "not_there"),
    [("truncated/share", 0.98, 0.97), ("learn/entropy", 0.0049, 0.005)],
)
def test_others_are_found_after_three_steps_in_a_row(metric: str, there: float, not_there: float):
    assert when(guards(), values(metric, *[there] * 2, not_there, *[there] * 2)) == []
    assert when(guards(), values(metric, *[there] * 9)) == [(3, metric)]
    assert when(guards(patience=1), values(metric, there)) == [(1, metric)]


def test_a_step_that_says_nothing_of_a_sign_neither_breaks_nor_feeds_its_streak():
    steps = values("learn/entropy", 0.001, None, math.nan, 0.001, None, 0.001)
    assert when(guards(), steps) == [(6, "learn/entropy")]


# --- the mismatch ---


def test_a_mismatch_must_be_far_above_its_usual_and_above_the_floor():
    usual = [0.001] * 5
    assert when(guards(), values("mismatch/kl", *usual, *[0.03] * 9)) == [], "not above the floor"
    (finding,) = seen(guards(), values("mismatch/kl", *usual, *[0.05] * 9))
    assert (finding.value, finding.threshold) == (0.05, 0.03)
    assert finding.warning.startswith(
        "step 8: mismatch/kl is 0.05, above 0.03 for 3 steps: sampler and learner part "
        "(health.mismatch_rise). "
    )
    high = [0.02] * 5  # ten times as much is 0.2
    assert when(guards(), values("mismatch/kl", *high, *[0.19] * 9)) == []
    assert when(guards(), values("mismatch/kl", *high, *[0.21] * 3)) == [(8, "mismatch/kl")]


def test_a_mismatch_that_rises_slowly_does_not_take_its_measure_along():
    """Half as much again at every step: its own median of 5 steps is never 10 times smaller."""
    steps = [0.001 * 1.5**n for n in range(12)]  # the lowest median is that of the first 5
    found = when(guards(window=5, mismatch_floor=0.0), values("mismatch/kl", *steps))
    assert 0.001 * 1.5**8 > 10 * 0.001 * 1.5**2, "the ninth is the first above"
    assert found == [(11, "mismatch/kl")]


def test_a_mismatch_of_exactly_nothing_is_a_usual_one():
    steps = values("mismatch/kl", *[0.0] * 5, *[0.05] * 3)
    assert when(guards(), steps) == [(8, "mismatch/kl")]


# --- the verifier ---


def test_failures_of_the_verifier_are_found_at_once_and_each_kind_by_itself():
    step = {"groups/flat_share": 0.0}
    assert when(guards(), [step | {CRASHED: 0.01}]) == [], "not above"
    assert when(guards(), [step | {CRASHED: 0.011, TIMEOUT: 0.5}]) == [(1, TIMEOUT), (1, CRASHED)]


def test_what_comes_and_goes_is_told_once_and_what_was_gone_for_a_window_is_news():
    """One crash in a few steps is the rule where a verifier has a gap."""
    step = {"groups/flat_share": 0.0}
    failed = step | {CRASHED: 0.5}
    now_and_then = [failed, step, step, failed, failed, step, step, failed]
    assert when(guards(window=3), now_and_then) == [(1, CRASHED)]
    assert when(guards(window=2), now_and_then) == [(1, CRASHED), (4, CRASHED), (8, CRASHED)]
    assert when(guards(window=2), [failed, {}, {}, {}, failed]) == [(1, CRASHED)], "no evidence"


@pytest.mark.parametrize("action", ["stop", "rollback"])
def test_failures_of_the_verifier_end_no_run(action: str):
    """Another policy does not mend a verifier, and its failures teach nothing."""
    step = {"groups/flat_share": 1.0, CRASHED: 0.5}
    found = seen(guards(on_collapse=action, flat_steps=2), [step] * 3)
    assert [(f.metric, f.action) for f in found] == [
        (CRASHED, "warn"),
        ("groups/flat_share", action),
        ("groups/flat_share", action),
    ]


def answers(reason: str, *texts: str) -> ScoredGroup:
    responses = [
        Response(np.ones(1, np.int32), np.zeros(1, np.float32), "stop", (), text) for text in texts
    ]
    row = Row("0", "What is 2+2?", "4")
    verdicts = tuple(Verdict(0.0, "", reason) for _ in texts)
    return ScoredGroup(Group(Prompt(0, row, (1,)), tuple(responses)), verdicts)


def test_a_failure_is_shown_with_its_most_common_reason_and_an_answer_cut_to_200_characters():
    groups = [
        answers("verifier crashed: ValueError: no", "rare"),
        answers("verifier crashed: KeyError: 'x'", "a" * 100 + "bb" + "c" * 100, "other"),
        answers("timeout", "slow"),
        answers("wrong", "5"),
    ]
    crashed, timeout = (Finding("", name, 0.5, 0.01, "warn", "said") for name in (CRASHED, TIMEOUT))
    assert with_example(crashed, groups) == (
        "said\n"
        """  2 of 3: "verifier crashed: KeyError: 'x'", for example on the answer\n"""
        f"    '{'a' * 100} [... 2 characters ...] {'c' * 100}'\n"
        "  to 'What is 2+2?'"
    )
    assert "1 of 1: 'timeout', for example on the answer\n    'slow'\n" in with_example(
        timeout, groups
    )
    other = Finding("", "learn/entropy", 0.0, 0.0, "warn", "said")
    assert with_example(other, groups) == "said"


# --- all of them ---


def bad(metric: str, value: float) -> dict[str, float]:
    return HEALTHY | {metric: value}


def run_with(metric: str, value: float) -> list[dict[str, float]]:
    return [HEALTHY] * 25 + [bad(metric, value)] * 25


@pytest.mark.parametrize("metric", SIGNS)
def test_each_sign_says_its_metric_value_threshold_key_and_what_to_do(metric: str):
    key, value = SIGNS[metric]
    (finding,) = seen(guards(), run_with(metric, value))
    for part in (metric, f"{finding.value:.3g}", f"(health.{key}). "):
        assert part in finding.warning
    if key != "flat_steps":  # whose threshold is its number of steps
        assert f"{finding.threshold:.3g}" in finding.warning
    _, advice = finding.warning.split(f"(health.{key}). ")
    assert any(word in advice for word in ("learner.lr", "rollout.", "verifier."))


@pytest.mark.parametrize("metric", SIGNS)
def test_a_threshold_that_is_null_turns_its_sign_off(metric: str):
    key, value = SIGNS[metric]
    assert seen(guards(**{key: None}), run_with(metric, value)) == []


@pytest.mark.parametrize("metric", SIGNS)
def test_a_sign_is_warned_of_once_until_it_was_gone_and_any_other_action_while_it_is_there(
    metric: str,
):
    _, value = SIGNS[metric]
    steps = run_with(metric, value) + [HEALTHY] * 25 + [bad(metric, value)] * 25
    assert len(when(guards(), steps)) == 2
    if metric not in (CRASHED, TIMEOUT):
        assert len(when(guards(on_collapse="stop"), steps)) > 10


@pytest.mark.parametrize(
    "config", [{"reward_share": 1.0}, {"flat_steps": 0}, {"entropy": 0.0}, {"max_skipped": 0}]
)
def test_thresholds_that_make_no_sense_are_refused(config: dict[str, Any]):
    with pytest.raises(ValidationError):
        HealthConfig(**config)
    assert HealthConfig().max_skipped == 3


METRICS = st.fixed_dictionaries(
    {},
    optional={
        name: st.one_of(
            st.none(), st.just(math.nan), st.sampled_from([0.0, 0.5, 1.0]), st.floats(0, 1)
        )
        for name in (*HEALTHY, "groups/unjudged_share", CRASHED, TIMEOUT)
    },
)


@examples(60)
@given(
    steps=st.lists(METRICS, max_size=30),
    cut=st.integers(0, 30),
    action=st.sampled_from(["warn", "stop"]),
)
def test_a_resumed_run_finds_what_the_uninterrupted_one_does(
    steps: list[dict[str, Any]], cut: int, action: str
):
    config: dict[str, Any] = {"on_collapse": action, "window": 3, "patience": 2, "flat_steps": 2}
    before = guards(**config)
    seen(before, steps[:cut])
    after = guards(**config)
    after.load_state_dict(json.loads(json.dumps(before.state_dict())))
    assert seen(after, steps[cut:]) == seen(before, steps[cut:])
    assert after.state_dict() == before.state_dict()


def test_a_run_from_before_the_guards_and_one_with_other_thresholds_go_on():
    under_test = guards()
    under_test.load_state_dict({})
    assert seen(under_test, run_with("learn/entropy", 0.001))
    few = guards(entropy=None)
    seen(few, [HEALTHY] * 25)
    under_test = guards(reward_share=None)
    under_test.load_state_dict(few.state_dict())
    assert when(under_test, [bad("learn/entropy", 0.001)] * 3) == [(3, "learn/entropy")]


def test_the_demo_raises_no_alarm():
    """Its metrics as they were logged, with its entropy falling to a tenth."""
    lines = (Path(__file__).parent / "demo_health.jsonl").read_text().splitlines()
    steps = [json.loads(line) for line in lines]
    assert len(steps) >= 100 and min(step["learn/entropy"] for step in steps) < 0.02
    assert seen(guards(), steps) == []


# --- in a run ---


def trainer(tmp_path: Path, **health: Any) -> tuple[Trainer, StringIO]:
    part = Mock()
    part.policy_update.state_dict.return_value = {}
    part.policy_update.is_under_way = False
    part.num_not_finite.return_value = 0
    part.collector.cursor.return_value = {}
    folder, err = RunFolder(tmp_path), StringIO()
    parts = opened(tmp_path, part, collector=part.collector, policy_update=part.policy_update)
    config = {
        "name": "run",
        "model": {"path": "org/model"},
        "data": {"name": "sums", "task": {"name": "arithmetic", "rows": 8}},
        "logging": {"samples_every": 0, "rollouts": False},
        "checkpoint": {"keep": 1},
        "health": health,
    }
    run = Trainer(Recipe.model_validate(config), folder, Screen(StringIO(), err), part, parts)
    return run, err


def reported(run: Trainer, step: int, **more: float) -> list[Finding]:
    group = answers("verifier crashed: KeyError", "what broke it")
    metrics = HEALTHY | {"time/step_s": 1.0} | more
    run.progress = Progress(step)
    run.unreported = Unreported(step, metrics, Collected([group], []))
    return run.report()


def test_a_run_warns_of_a_sign_and_shows_what_broke_its_verifier(tmp_path: Path):
    run, err = trainer(tmp_path)
    for step in range(1, 5):
        assert reported(run, step, **{CRASHED: 1.0, "learn/entropy": 0.001}) == []
    said = " ".join(err.getvalue().split())
    assert said.count("learn/entropy is 0.001, below 0.005 for 3 steps") == 1
    assert said.count("verdict/verifier crashed/share is 1, above 0.01") == 1
    assert said.count("'what broke it'") == 1


@pytest.mark.parametrize("action", ["stop", "rollback"])
def test_a_run_that_must_not_go_on_ends_with_the_diagnosis_and_stop_saves_it(
    tmp_path: Path, action: str
):
    run, err = trainer(tmp_path, on_collapse=action, patience=1)
    run.progress = Progress(1)
    run.save()
    findings = reported(run, 2, **{"learn/entropy": 0.001})
    with pytest.raises(Collapsed if action == "stop" else Diverged) as error:
        run.end_if_collapsed(findings)
    assert str(error.value) == diagnosis(findings)
    assert "learn/entropy is 0.001" in str(error.value) and "learn/entropy" not in err.getvalue()
    saved = {path.name for path in run.folder.checkpoints.glob("step_*")}
    kept = {"step_000001", "step_000002"} if action == "stop" else {"step_000001"}
    assert saved == kept, "the one before it stays, though keep is 1"


def test_what_a_run_has_seen_goes_with_its_checkpoint(tmp_path: Path):
    run, _ = trainer(tmp_path)
    for step in (1, 2):
        reported(run, step, **{"learn/entropy": 0.001})
    run.save()
    resumed, err = trainer(tmp_path)
    resumed.restore(run.folder.checkpoints / "step_000002")
    reported(resumed, 3, **{"learn/entropy": 0.001})
    assert "learn/entropy is 0.001" in err.getvalue()


def test_the_guards_may_change_within_a_run_and_what_a_failure_gets_may_not(tmp_path: Path):
    base = {
        "name": "run",
        "model": {"path": "org/model"},
        "data": {"name": "sums", "task": {"name": "arithmetic", "rows": 8}},
    }
    folder = RunFolder(tmp_path)
    folder.begin(Recipe.model_validate(base).model_dump(mode="json"), {})
    changed = base | {"health": {"on_collapse": "stop", "entropy": None}}
    assert folder.recipe_conflicts(Recipe.model_validate(changed).model_dump(mode="json")) == []
    changed = base | {"verifier": {"name": "math", "on_failure": "lowest", "lowest_reward": -1.0}}
    assert folder.recipe_conflicts(Recipe.model_validate(changed).model_dump(mode="json")) == [
        "verifier.lowest_reward: was None, now -1.0",
        "verifier.on_failure: was 'drop', now 'lowest'",
    ]
