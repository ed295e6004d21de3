"""Sampling ahead of the learner: nothing too old is learned from, nothing is lost, none is doubled.

The engines follow a script: answers grow token by token under whatever weights there are, and
finish in any order. No thread runs unless a test says so: `turn` is what the feeder repeats.
"""

import random
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from io import StringIO
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo.config.data import DataConfig
from grpo.config.recipe import Recipe
from grpo.console import Screen
from grpo.data import PromptStream
from grpo.errors import Interrupted, RunError
from grpo.train.collect import Collector
from grpo.train.groups import Collected
from grpo.types import Group, Row, Verdict
from tests.examples import examples
from tests.unit.scripted import SIBLINGS, Engines, Judge, Script, Tokenizer


@pytest.fixture(scope="module", autouse=True)
def impatient() -> Iterator[None]:
    """Nobody waits in real time for verdicts that a script holds back."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("grpo.train.collect.VERDICT_POLL_S", 0.0)
        yield


def recipe(k: int = 1, mode: str = "replace", *, max_rounds: int = 10, **changes: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "test",
            "model": {"path": "somewhere", "dtype": "float32"},
            "data": {"name": "numbers", "path": "rows.jsonl"},
            "rollout": {"prompts": 3, "group_size": SIBLINGS},
            "flat_groups": {"mode": mode, "max_rounds": max_rounds},
            "schedule": {"max_staleness": k, "steps": 6},
        }
        | changes
    )


def prompts(cursor: dict[str, Any] | None = None) -> PromptStream:
    rows = [Row(str(n), str(n), "") for n in range(7)]
    tokenizer: Any = Tokenizer()
    config = DataConfig.model_validate({"name": "numbers", "path": "rows.jsonl"})
    stream = PromptStream(rows, config, tokenizer, seed=0, longest_prompt=10)
    if cursor is not None:
        stream.load_state_dict(cursor)
    return stream


@dataclass
class Ahead:
    """A Collector without its thread, and everything around it."""

    collector: Collector
    engines: Engines
    judge: Judge
    stream: PromptStream

    def collect(self, step: int) -> Collected:
        self.collector.ask(step)
        for _ in range(10_000):
            if self.collector.is_complete(step):
                return self.collector.take(step, Screen(StringIO(), StringIO()))
            self.turn()
        raise AssertionError(f"step {step} is never complete")

    def turn(self, count: int = 1) -> None:
        for _ in range(count):
            self.collector.turn()
            self.judge.catch_up(self.engines.script.dice.randint(0, 3))

    def finish(self, step: int) -> None:
        self.engines.version = step
        self.collector.finish(step)


def ahead(
    recipe: Recipe, script: Script, step: int = 1, cursor: dict[str, Any] | None = None
) -> Ahead:
    engines, judge, stream = Engines(script, step - 1), Judge(script.dice), prompts(cursor)
    rollouts: Any = engines
    verifier: Any = judge
    collector = Collector(recipe, stream, rollouts, verifier)
    collector.begin(step)
    return Ahead(collector, engines, judge, stream)


def serials(groups: Sequence[Any]) -> list[int]:
    return [group.group.prompt.serial for group in groups]


def versions(collected: Collected) -> set[int]:
    responses = [r for group in collected.sampled for r in group.group.responses]
    return {span.version for response in responses for span in response.versions}


SCRIPTS = st.builds(
    Script,
    dice=st.integers(0, 2**32).map(random.Random),
    flat=st.sets(st.integers(0, 20).map(lambda n: 2 * n)),
    ends=st.dictionaries(
        st.integers(0, 30), st.lists(st.sampled_from(["stop", "stale", "abort"]), max_size=3)
    ),
    pace=st.floats(0.1, 1),
)


@examples(50)
@given(
    script=SCRIPTS,
    k=st.integers(0, 3),
    mode=st.sampled_from(["replace", "drop", "keep"]),
    max_rounds=st.integers(1, 3),
    idle=st.lists(st.integers(0, 12), min_size=6, max_size=6),
    crashes=st.dictionaries(st.integers(1, 5), st.integers(0, 12), max_size=2),
)
def test_nothing_too_old_is_learned_from_and_every_prompt_is_settled_once(
    script: Script, k: int, mode: str, max_rounds: int, idle: list[int], crashes: dict[int, int]
):
    """Whatever the order and delay, with flat groups, thrown away answers and restarts: after
    step n the run may die, some turns into the next, and goes on from the cursor of step n."""
    plan = recipe(k, mode, max_rounds=max_rounds)
    run = ahead(plan, script)
    settled: list[int] = []
    for step in range(1, 7):
        try:
            collected = run.collect(step)
        except RunError:  # every group of the step was flat
            assert mode == "replace"
            return
        assert min(versions(collected)) >= step - 1 - k
        assert max(versions(collected)) <= step - 1
        assert serials(collected.sampled) == sorted(serials(collected.sampled))
        settled += serials(collected.sampled)
        run.turn(idle[step - 1])  # the learner works
        run.finish(step)
        if step in crashes:
            cursor = run.collector.cursor()
            run.turn(crashes[step])
            run = ahead(plan, script, step + 1, cursor)
    assert sorted(settled) == list(range(len(settled)))
    assert run.engines.running == 0, "nothing is sampled past the last step"
    assert run.collector.cursor()["returned"] == []
    assert run.collector.cursor()["serial"] == len(settled)


def test_later_steps_are_sampled_while_the_learner_works_and_no_further():
    run = ahead(recipe(k=2, mode="keep"), Script(random.Random(0)))
    run.turn(200)
    assert [run.collector.is_complete(step) for step in (1, 2, 3, 4)] == [True, True, True, False]
    assert run.engines.running == 0 and len(run.engines.seeds) == 9
    run.collect(1)
    run.turn(200)
    assert not run.collector.is_complete(4), (
        "step 1 is collected, but its weights are not there yet"
    )
    assert run.collector.take(2, Screen(StringIO(), StringIO())).rollout_s == 0, "nothing to sample"
    run.finish(1)
    run.turn(200)
    assert run.collector.is_complete(4) and not run.collector.is_complete(5)
    assert serials(run.collect(4).sampled) == [9, 10, 11]


def test_an_answer_goes_on_through_a_weight_update_and_says_so():
    run = ahead(recipe(mode="keep"), Script(random.Random(1), pace=0.05))
    run.collect(1)
    run.finish(1)
    assert versions(run.collect(2)) == {0, 1}


def test_the_prompts_and_seeds_of_a_step_are_those_of_sampling_on_policy():
    """Where no flat group is replaced; then only the weights that sampled them differ."""
    plan = recipe(mode="drop")
    run = ahead(plan, Script(random.Random(2)))
    for step in (1, 2, 3):
        run.collect(step)
        run.finish(step)
    on_policy = ahead(recipe(k=0, mode="drop"), Script(random.Random(3)))
    for step in (1, 2, 3):
        on_policy.collect(step)
        on_policy.finish(step)
    assert run.engines.seeds[:9] == on_policy.engines.seeds


def test_on_policy_nothing_is_under_way_between_two_steps():
    run = ahead(recipe(k=0, mode="keep"), Script(random.Random(0)))
    assert serials(run.collect(1).sampled) == [0, 1, 2]
    run.turn(20)  # the learner works
    run.finish(1)
    run.turn(20)  # a checkpoint is written, an evaluation uses the engines
    assert run.engines.running == 0 and len(run.engines.seeds) == 3
    assert run.collector.cursor() == run.stream.state_dict(), "nothing taken that is not settled"
    second = run.collect(2)
    assert serials(second.sampled) == [3, 4, 5] and versions(second) == {1}


def _now(verdict: Verdict) -> Future[Verdict]:
    future: Future[Verdict] = Future()
    future.set_result(verdict)
    return future


def test_flat_groups_are_replaced_within_their_step():
    run = ahead(recipe(), Script(random.Random(4), flat={0, 4}))
    first, _ = run.collect(1), run.finish(1)
    second = run.collect(2)
    assert len(first.sampled) == 4 and serials(first.used) == [1, 2, max(serials(first.used))]
    assert len(second.sampled) == 4 and serials(second.used)[:2] == [3, 5]
    assert {max(serials(first.used)), max(serials(second.used))} == {6, 7}


def test_what_is_thrown_away_is_sampled_again_for_the_same_step_and_counted():
    script = Script(random.Random(5), ends={0: ["stale"], 2: ["abort", "stale"]}, pace=1.0)
    run = ahead(recipe(mode="keep"), script)
    collected = run.collect(1)
    assert serials(collected.sampled) == [0, 1, 2]
    asked = [serial for serial, _ in run.engines.seeds if serial <= 2]
    assert sorted(asked) == [0, 0, 1, 2, 2, 2]
    assert collected.stale_tokens > 0 and collected.aborted_tokens > 0
    run.turn(100)
    rest = run.collector.take(2, Screen(StringIO(), StringIO()))
    assert collected.num_tokens + rest.num_tokens == run.engines.back_tokens
    assert collected.rollout_tokens + rest.rollout_tokens == run.engines.back_tokens


def test_a_cursor_holds_what_was_taken_and_not_learned_in_order():
    run = ahead(recipe(k=1, mode="replace"), Script(random.Random(6), flat={1, 4}))
    run.collect(1)
    run.turn(100)  # step 2 is ready, with one more prompt for its flat group
    assert run.collector.is_complete(2)
    taken = run.stream.state_dict()["serial"]
    first_step = set(serials(run.collector.take(1, Screen(StringIO(), StringIO())).sampled))
    run.finish(1)
    cursor = run.collector.cursor()
    assert [serial for serial, _ in cursor["returned"]] == sorted(set(range(taken)) - first_step)
    again = prompts(cursor).take(len(cursor["returned"]) + 1)
    assert [prompt.serial for prompt in again][-1] == taken, "then the data goes on"
    resumed = prompts(cursor)
    assert resumed.state_dict(resumed.take(1)) == cursor, "stopped again, the rest still in line"


# --- with the thread ---


class Quick(Engines):
    """Finishes everything at once; fails where it is told to."""

    error: Exception | None = None

    def finished(self, wait_s: float) -> list[Group]:
        if self.error is not None:
            raise self.error
        return super().finished(wait_s)


def threaded(error: Exception | None = None) -> tuple[Collector, Quick]:
    engines = Quick(Script(random.Random(7), pace=1.0))
    engines.error = error
    judge: Any = Judge(random.Random(8))
    judge.submit = lambda text, answer, **facts: _now(Verdict(float(text), text, ""))
    rollouts: Any = engines
    return Collector(recipe(), prompts(), rollouts, judge), engines


def test_the_feeder_serves_a_run_and_ends_with_it():
    collector, engines = threaded()
    settled: list[int] = []
    for step in range(1, 7):
        collected = collector.collect(step, Screen(StringIO(), StringIO()), lambda: False)
        settled += serials(collected.used)
        engines.version = step
        collector.finish(step)
    collector.close()
    assert settled == list(range(18))
    assert "rollout-feeder" not in [thread.name for thread in threading.enumerate()]


def test_what_fails_in_the_feeder_is_raised_where_the_step_is_waited_for():
    collector, _ = threaded(RunError("rollout-0 died"))
    with pytest.raises(RunError, match="rollout-0 died"):
        collector.collect(1, Screen(StringIO(), StringIO()), lambda: False)
    collector.close()


def test_a_stop_leaves_the_step_and_its_prompts_come_first_again():
    collector, engines = threaded()
    engines.script.pace = 0.0  # nothing ever finishes
    with pytest.raises(Interrupted):
        collector.collect(1, Screen(StringIO(), StringIO()), lambda: engines.running == 6)
    collector.close()
    assert [serial for serial, _ in collector.cursor()["returned"]] == list(range(6))


def test_the_line_of_a_step_tells_waiting_from_sampling_beside_the_learner():
    seconds = {"time/learn_s": 8.0, "time/sync_s": 0.5, "time/step_s": 9.7}
    for rollout_s, wait_s, shown in (
        (9.0, 1.2, "wait 1.2s"),
        (9.0, 9.0, "rollout 9.0s"),
        (0.0, 0.1, "wait 0.1s"),  # everything had come back before
    ):
        out = StringIO()
        now = {"time/rollout_s": rollout_s, "time/wait_s": wait_s}
        Screen(out).step_line(1, 2, seconds | now)
        assert f"9.7s ({shown} + learn 8.0s + sync 0.5s)" in out.getvalue()


# --- the recipe ---


def test_stale_tokens_are_corrected_also_where_both_sides_agree_to_the_last_digit():
    for k, correction in ((0, "none"), (1, "truncated_token")):
        assert recipe(k).correction_name() == correction


def test_engines_that_share_their_gpu_with_the_learner_cannot_run_ahead():
    with pytest.raises(ValueError, match="max_staleness is 1, but with placement colocated"):
        recipe(1, placement="colocated")
    assert recipe(0, placement="colocated").placement == "colocated"
