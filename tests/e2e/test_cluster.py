"""Calls to worker processes: any number under way, none in the way of another, late ones named."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from grpo.errors import RunError
from grpo.fleet import stragglers
from grpo.fleet.cluster import Cluster, Worker, gather
from grpo.fleet.engines import RolloutPool, RolloutStream
from grpo.rollout.engine import EngineSpec
from grpo.rollout.sampling import Sampling
from grpo.types import Prompt, Row
from tests.e2e import scripted_worker

SPEC = EngineSpec("none", "float32", 0, 8, 1, "gloo", {})
PATIENCE_S = 60


@pytest.fixture
def start(cluster: Cluster, monkeypatch: pytest.MonkeyPatch):
    """Starts that many scripted workers; they are gone after the test."""
    monkeypatch.setattr("grpo.fleet.cluster._make_rollout_worker", scripted_worker.make)
    started: list[Worker] = []

    def start(count: int) -> list[Worker]:
        started.extend(cluster.rollout_workers(SPEC, count, None))
        return started

    yield start
    for worker in started:
        worker.kill()


def prompts(count: int) -> list[Prompt]:
    return [Prompt(n, Row(str(n), "", ""), (1, 2)) for n in range(count)]


def stream_of(workers: list[Worker], siblings: int = 1) -> RolloutStream:
    return RolloutPool(workers, PATIENCE_S).stream(
        siblings, Sampling(4, 1.0, 1.0, 0), lambda prompt: prompt.serial
    )


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it never came to pass"
        time.sleep(0.02)


def counts(workers: list[Worker]) -> list[tuple[int, int]]:
    return gather([worker.call("counts") for worker in workers], PATIENCE_S)


def test_control_calls_get_through_beside_1500_groups_and_an_abort_ends_them_all(start):
    (worker,) = start(1)
    stream = stream_of([worker])
    stream.submit(prompts(1500))
    wait_until(lambda: counts([worker])[0][0] == 1500)
    assert gather([worker.call("score", [1, 2, 3])], PATIENCE_S) == [[-1.0, -1.0]]
    assert stream.running == 1500
    stream.abort()
    assert stream.running == 0 and counts([worker]) == [(0, 1500)]


def test_what_is_more_than_an_engine_can_be_busy_with_waits_outside_of_it(start):
    workers = start(2)
    stream = stream_of(workers, siblings=16)
    stream.submit(prompts(1000))
    wait_until(lambda: [now for now, _ in counts(workers)] == [256, 256])
    assert stream.running == 1000
    gather([worker.call("release") for worker in workers], PATIENCE_S)
    serials: list[int] = []
    while stream.running:
        serials += [group.prompt.serial for group in stream.finished(1.0)]
    assert sorted(serials) == list(range(1000))
    assert max(most for _, most in counts(workers)) <= 256


def test_an_abort_drops_what_was_not_sent_yet(start):
    workers = start(1)
    stream = stream_of(workers, siblings=16)
    stream.submit(prompts(300))
    wait_until(lambda: counts(workers)[0][0] == 256)
    stream.abort()
    assert stream.running == 0 and stream.finished(0.1) == []
    assert counts(workers) == [(0, 256)]


def test_all_groups_that_are_done_come_in_one_turn(start):
    """One at a time, with a look at all the others each time, cost 1.2 s for 1,024 groups."""
    workers = start(1)
    stream = stream_of(workers)
    stream.submit(prompts(1024))
    wait_until(lambda: counts(workers)[0][0] == 1024)
    gather([workers[0].call("release")], PATIENCE_S)
    wait_until(lambda: counts(workers)[0][0] == 0)
    time.sleep(1)  # for the last answers to arrive here
    turns = 0
    while stream.running:
        stream.finished(1.0)
        turns += 1
    assert turns < 10


def test_a_straggler_is_named_while_the_others_wait_for_it(start, monkeypatch, caplog):
    monkeypatch.setattr(stragglers, "STRAGGLER_S", 0.3)
    one, other = start(2)
    gather([one.call("counts"), other.call("counts")], PATIENCE_S)  # both are up
    gather([one.call("answer_after", 0.0), other.call("answer_after", 1.0)], PATIENCE_S)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2, "after 0.3 s, and after 0.6 s again"
    assert said[0] == (
        f"no answer for 0 s from {other.name} (answer_after); answered: {one.name}. See {other.log}"
    )
    caplog.clear()
    gather([one.call("answer_after", 1.0), other.call("answer_after", 1.0)], PATIENCE_S)
    assert not caplog.records, "what is known to take a second is no straggler"


def test_a_deadline_names_who_missed_it_and_the_key_that_moves_it(start):
    one, other = start(2)
    gather([one.call("counts"), other.call("counts")], PATIENCE_S)
    calls = [one.call("answer_after", 0.0), other.call("answer_after", 30.0)]
    with pytest.raises(RunError) as raised:
        gather(calls, 0.5, "learner.timeout_s")
    assert str(raised.value) == (
        f"no answer within 0 s from {other.name} (answer_after); learner.timeout_s sets this limit"
    )


def test_an_engine_that_does_not_take_a_chunk_of_weights_is_named(start, cluster: Cluster):
    """`push_to` is what the learner calls where it hands the weights over itself."""
    workers = start(2)
    cluster.push_to(workers, PATIENCE_S)({})
    gather([workers[1].call("stall")], PATIENCE_S)
    with pytest.raises(RunError) as raised:
        cluster.push_to(workers, 5.0)({})
    assert str(raised.value) == (
        f"no answer within 5 s from {workers[1].name} (receive); sync.timeout_s sets this limit"
    )


def test_ray_starts_and_ends_without_a_word(tmp_path: Path):
    program = (
        "from pathlib import Path; from grpo.fleet.cluster import Cluster\n"
        f"with Cluster(Path({str(tmp_path)!r})): pass"
    )
    environment = {k: v for k, v in os.environ.items() if k != "RAY_AUTH_MODE"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment | {"HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
