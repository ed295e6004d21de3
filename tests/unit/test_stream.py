"""What engines say of groups that are under way: nobody waits for it, and nothing depends on it."""

from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import RayActorError, RayError

from grpo.errors import WorkerFault
from grpo.fleet import engines
from grpo.fleet.cluster import Call
from grpo.fleet.engines import RolloutPool, RolloutStream
from grpo.rollout.outlook import SoFar
from grpo.rollout.sampling import Sampling
from grpo.types import Group, Prompt, Row


class Engine:
    """Answers when the test says so."""

    def __init__(self, name: str):
        self.name, self.log = name, Path(f"logs/{name}.log")
        self.usual: dict[str, float] = {}
        self.calls: dict[str, list[Future[Any]]] = {"sample": [], "progress": []}

    def call(self, method: str, *args: Any) -> Call:
        future: Future[Any] = Future()
        self.calls[method].append(future)
        me: Any = self
        return Call(me, method, future)

    @property
    def asked(self) -> int:
        return len(self.calls["progress"])


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    made = Clock()
    monkeypatch.setattr(engines, "time", made)
    yield made


def prompts(count: int) -> list[Prompt]:
    return [Prompt(n, Row(str(n), "", ""), (1, 2)) for n in range(count)]


def stream_of(*workers: Engine) -> RolloutStream:
    """Seeds are 100 times the serial."""
    there: Any = list(workers)
    sampling = Sampling(4, 1.0, 1.0, 0)
    return RolloutStream(there, 2, sampling, lambda p: 100 * p.serial, 3600.0, "")


def test_an_engine_is_asked_every_two_seconds_and_never_waited_for(clock: Clock):
    engine = Engine("rollout-0")
    stream = stream_of(engine)
    assert stream.so_far() == {} and engine.asked == 0, "it has nothing to do"
    clock.now += 2
    stream.submit(prompts(3))
    assert stream.so_far() == {} and engine.asked == 1
    clock.now += 10
    assert stream.so_far() == {} and engine.asked == 1, "it has not answered yet"
    engine.calls["progress"][0].set_result({(0, 0): SoFar(1, 7), (2, 200): SoFar(0, 3)})
    told = {0: SoFar(1, 7), 2: SoFar(0, 3)}
    assert stream.so_far() == told and engine.asked == 1
    clock.now += 1.9
    assert stream.so_far() == told and engine.asked == 1
    clock.now += 0.1
    assert stream.so_far() == told and engine.asked == 2


def test_groups_of_somebody_else_and_groups_that_are_back_are_left_out(clock: Clock):
    """An evaluation beside the run has prompts with the same serials."""
    engine = Engine("rollout-0")
    stream = stream_of(engine)
    stream.submit(prompts(2))
    stream.so_far()
    engine.calls["progress"][0].set_result(
        {(0, 0): SoFar(1, 7), (1, 100): SoFar(1, 5), (1, 999): SoFar(2, 50), (8, 800): SoFar(1, 1)}
    )
    assert stream.so_far() == {0: SoFar(1, 7), 1: SoFar(1, 5)}
    engine.calls["sample"][0].set_result(Group(prompts(1)[0], ()))
    assert len(stream.finished(0.0)) == 1
    assert stream.so_far() == {1: SoFar(1, 5)}


def test_what_a_lost_engine_has_said_counts_no_more_and_its_successor_is_asked(clock: Clock):
    dead, other = Engine("rollout-0"), Engine("rollout-1")
    stream = stream_of(dead, other)
    stream.submit(prompts(2))
    stream.so_far()
    dead.calls["progress"][0].set_result({(0, 0): SoFar(1, 7)})
    other.calls["progress"][0].set_result({(1, 100): SoFar(0, 3)})
    assert stream.so_far() == {0: SoFar(1, 7), 1: SoFar(0, 3)}
    clock.now += 2
    stream.so_far()
    dead.calls["sample"][0].set_exception(RayError("gone"))
    stream.finished(0.0)
    assert set(stream.lost) == {"rollout-0"}
    assert stream.so_far() == {1: SoFar(0, 3)}, "the prompt begins anew elsewhere"
    again = Engine("rollout-0")
    workers: Any = stream._workers
    workers[0] = again
    dead.calls["progress"][1].set_exception(RayActorError())
    stream.found("rollout-0")
    stream.submit([Prompt(9, Row("9", "", ""), (1, 2))])
    clock.now += 2
    stream.so_far()
    assert again.asked == 1


def test_an_engine_that_cannot_say_is_asked_once_and_samples_on(clock: Clock, caplog):
    engine = Engine("rollout-0")
    stream = stream_of(engine)
    stream.submit(prompts(2))
    with caplog.at_level("INFO"):
        stream.so_far()
        engine.calls["progress"][0].set_exception(RayError("no such method"))
        for _ in range(3):
            clock.now += 2
            assert stream.so_far() == {}
    assert engine.asked == 1
    assert [record.getMessage() for record in caplog.records] == [
        "rollout-0 cannot say how far it is: its answers are counted a group at a time. "
        "See logs/rollout-0.log"
    ]
    engine.calls["sample"][0].set_result(Group(prompts(1)[0], ()))
    assert len(stream.finished(0.0)) == 1 and not stream.lost


def test_a_dead_engine_is_told_by_the_call_that_needs_it(clock: Clock, caplog, monkeypatch):
    engine = Engine("rollout-0")
    monkeypatch.setattr(Engine, "log_tail", lambda self: "its last words", raising=False)
    pool: Any = [engine]
    rollouts = RolloutPool(pool, 3600.0)
    heard: list[SoFar] = []

    def watch(so_far: SoFar) -> None:
        heard.append(so_far)
        clock.now += 2
        if len(heard) == 1:
            engine.calls["progress"][0].set_result({(0, 0): SoFar(1, 7), (1, 100): SoFar(0, 2)})
        if len(heard) == 3:
            for call in (*engine.calls["sample"], engine.calls["progress"][-1]):
                call.set_exception(RayActorError())

    with caplog.at_level("INFO"), pytest.raises(WorkerFault, match="rollout-0 died during sample"):
        list(rollouts.sample(prompts(2), 2, Sampling(4), lambda p: 100 * p.serial, watch=watch))
    assert heard[:3] == [SoFar(0, 0), SoFar(1, 9), SoFar(1, 9)]
    assert not caplog.records
