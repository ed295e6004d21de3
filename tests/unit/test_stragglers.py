"""Whoever keeps the others waiting is named after two minutes, not after an hour."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from grpo.fleet import stragglers
from grpo.fleet.stragglers import Patience


@dataclass
class Rank:
    name: str
    log: Path = Path("logs/learner-1.log")


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
        patience.look([Rank("learner-1")], asked=4)
        assert len(caplog.records) == warnings, f"after {now} s"
    assert said(caplog)[0] == (
        "step: no answer for 120 s from learner-1 (3 of 4 have answered). See logs/learner-1.log"
    )


def test_where_nobody_has_answered_all_are_named(clock, caplog):
    patience = Patience("save", {})
    clock.now += 130
    patience.look([Rank("learner-0"), Rank("learner-1"), Rank("learner-1")], asked=3)
    assert said(caplog) == [
        "save: no answer for 130 s from learner-0, learner-1 (2 calls). See logs/learner-1.log"
    ]


def test_what_always_takes_long_is_no_straggler_until_it_takes_twice_as_long(clock, caplog):
    usual: dict[str, float] = {}
    patience = Patience("step", usual)
    clock.now += 300
    patience.end()
    assert usual == {"step": 300}
    patience = Patience("step", usual)
    clock.now += 599
    patience.look([Rank("learner-1")], asked=2)
    assert not caplog.records
    clock.now += 1
    patience.look([Rank("learner-1")], asked=2)
    assert len(caplog.records) == 1
    assert Patience("save", usual).left_s == 120, "another kind of call has its own history"


def test_a_group_that_comes_in_lets_the_wait_begin_anew(clock, caplog):
    patience = Patience("sample", {})
    clock.now += 119
    patience.begin()
    clock.now += 119
    patience.look([Rank("rollout-0")], asked=8)
    assert not caplog.records
