"""Whoever keeps the others waiting is named after two minutes, not after an hour."""

from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from grpo.errors import RunError
from grpo.fleet import engines, stragglers
from grpo.fleet.engines import RolloutStream
from grpo.fleet.stragglers import Patience
from grpo.rollout.sampling import Sampling
from grpo.types import Prompt, Row


@dataclass
class Worker:
    """One that never answers."""

    name: str
    log: Path
    usual: dict[str, float] = field(default_factory=dict)

    def call(self, method: str, *args: Any) -> "Call":
        return Call(self, method)


@dataclass
class Call:
    worker: Worker
    method: str
    future: Future[Any] = field(default_factory=Future)

    def when_done(self, tell: Any) -> None: ...


def call(name: str, method: str = "step") -> Call:
    return Call(Worker(name, Path(f"logs/{name}.log")), method)


class Clock:
    """Two minutes pass when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(stragglers, "time", made)
    return made


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_a_straggler_is_named_after_two_minutes_and_each_time_the_wait_has_doubled(clock, caplog):
    patience = Patience("step", {})
    assert patience.left_s == 120
    for now, warnings in ((119, 0), (120, 1), (200, 1), (240, 2), (479, 2), (480, 3)):
        clock.now = 1000 + now
        patience.look([call("learner-1")], [call("learner-0"), call("learner-2")])
        assert len(caplog.records) == warnings, f"after {now} s"
    assert said(caplog)[0] == (
        "no answer for 120 s from learner-1 (step); answered: learner-0, learner-2. "
        "See logs/learner-1.log"
    )


def test_each_straggler_is_named_with_the_call_that_it_was_given(clock, caplog):
    patience = Patience("send", {})
    clock.now += 120
    patience.look([call("learner-1", "send"), call("rollout-0", "receive")])
    assert said(caplog) == [
        "no answer for 120 s from learner-1 (send), rollout-0 (receive). See logs/learner-1.log"
    ]


def test_of_many_workers_that_have_answered_only_the_number_is_given(clock, caplog):
    patience = Patience("step", {})
    clock.now += 120
    patience.look([call("learner-9")], [call(f"learner-{rank}") for rank in range(9)])
    assert "learner-9 (step); answered: 9 others. See" in said(caplog)[0]


def stream_of(count: int, timeout_s: float) -> RolloutStream:
    """Two answers each to `count` prompts, from one engine."""
    worker: Any = Worker("rollout-0", Path("logs/rollout-0.log"))
    sampling = Sampling(4, 1.0, 1.0, 0)
    stream = RolloutStream([worker], 2, sampling, lambda _: 0, timeout_s, "rollout.timeout_s")
    stream.submit([Prompt(n, Row(str(n), "", ""), (1, 2)) for n in range(count)])
    return stream


def test_the_deadline_of_a_group_names_the_engines_and_the_key_that_sets_it():
    with pytest.raises(RunError) as raised:
        stream_of(3, timeout_s=0.0).finished(0.0)
    assert str(raised.value) == (
        "no group from rollout-0 within 0 s; rollout.timeout_s sets this limit"
    )


def test_prompts_that_still_wait_in_the_driver_do_not_count_as_answered(clock, caplog, monkeypatch):
    monkeypatch.setattr(engines, "_MOST_ANSWERS", 4)
    stream = stream_of(5, timeout_s=3600.0)
    clock.now += 120
    assert stream.finished(0.0) == [] and stream.running == 5
    assert said(caplog) == [
        "no answer for 120 s from rollout-0 (sample, 2 calls). See logs/rollout-0.log"
    ]


def test_where_nobody_has_answered_all_are_named(clock, caplog):
    patience = Patience("save", {})
    clock.now += 130
    saves = [call("learner-0", "save"), call("learner-1", "save"), call("learner-1", "save")]
    patience.look(saves)
    assert said(caplog) == [
        "no answer for 130 s from learner-0 (save), learner-1 (save, 2 calls). "
        "See logs/learner-0.log"
    ]


def test_what_always_takes_long_is_no_straggler_until_it_takes_twice_as_long(clock, caplog):
    usual: dict[str, float] = {}
    patience = Patience("step", usual)
    clock.now += 300
    patience.end()
    assert usual == {"step": 300}
    patience = Patience("step", usual)
    clock.now += 599
    patience.look([call("learner-1")])
    assert not caplog.records
    clock.now += 1
    patience.look([call("learner-1")])
    assert len(caplog.records) == 1
    assert Patience("save", usual).left_s == 120, "another kind of call has its own history"


def test_a_group_that_comes_in_lets_the_wait_begin_anew(clock, caplog):
    patience = Patience("sample", {})
    clock.now += 119
    patience.begin()
    clock.now += 119
    patience.look([call("rollout-0", "sample")])
    assert not caplog.records


def test_engines_that_do_not_even_stop_hold_nobody_up_who_wants_to_stop(caplog, monkeypatch):
    """After Ctrl-C the steps that are finished must be saved, whatever the engines do."""
    monkeypatch.setattr(engines, "ABORT_S", 0.05)
    stream = stream_of(3, timeout_s=3600.0)
    stream.abort()
    assert stream.running == 0
    assert said(caplog)[-1].startswith(
        "sampling could not be stopped, and ends with the engines: no answer within 0 s from "
        "rollout-0 (abort)"
    )
