"""When a run starts its workers anew or goes back, and when it gives up."""

import json
from io import StringIO
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest

from grpo import stop as stops
from grpo.config.lasting import HealConfig
from grpo.console import Screen
from grpo.errors import Diverged, RunError, UserError, WorkerFault
from grpo.fleet import nodes
from grpo.stop import StopRequest
from grpo.store import rollbacks
from grpo.store.checkpoint import SKIPPED, RunFolder, TrainState
from grpo.store.disk import PatientDisk
from grpo.store.origin import Branch
from grpo.train.heal import Restarts
from grpo.types import Group, Prompt, Response, Row, ScoredGroup, Verdict, VersionSpan

DEAD = WorkerFault("rollout-0 sample", "rollout-0 died during sample")


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """No wait takes time."""
    monkeypatch.setattr(stops.time, "sleep", lambda _: None)
    now = iter(range(10**6))
    monkeypatch.setattr(stops.time, "monotonic", lambda: float(next(now)))


def restarts(folder: Path, **config: Any) -> tuple[Restarts, StringIO]:
    told = StringIO()
    screen = Screen(StringIO(), told)
    settings = HealConfig.model_validate({"backoff_s": 2, **config})
    stop = StopRequest(screen)
    disk = PatientDisk(0, screen, stop)
    made = Restarts(settings, RunFolder(folder), screen, stop, disk)
    made.has_begun = True
    return made, told


def save(folder: Path, step: int, skipped: int = 0) -> Path:
    run = RunFolder(folder)
    with run.write_checkpoint(step, keep=9) as writing:
        TrainState(step, step, {}, 0, {SKIPPED: skipped}).save(writing)
    return run.checkpoints / f"step_{step:06d}"


def group(serial: int) -> ScoredGroup:
    row = Row(f"row-{serial}", "1+1=", "2")
    numbers = np.zeros(2, np.float32)
    response = Response(
        numbers.astype(np.int32), numbers, "stop", (VersionSpan(0, 0, 2),), "an answer"
    )
    verdict = Verdict(1.0, "2", "correct")
    return ScoredGroup(Group(Prompt(serial, row, (1,)), (response,)), (verdict,), (0.5,))


def test_a_dead_worker_sends_the_run_to_what_is_saved(tmp_path: Path):
    made, told = restarts(tmp_path)
    checkpoint = save(tmp_path, 6)
    assert made.after(DEAD, 6) == checkpoint
    assert made.count == 1
    assert "rollout-0 died during sample" in told.getvalue()
    assert "in 2 s (1 of 3, heal.max_restarts)" in " ".join(told.getvalue().split())


def test_the_wait_before_the_workers_start_anew_is_not_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    made, _ = restarts(tmp_path)
    out = StringIO()
    made.screen = Screen(out, StringIO())
    monkeypatch.setattr("grpo.progress.PLAIN_PROGRESS_EVERY_S", 0.0)

    def wait(seconds: float, stop: object) -> None:
        assert seconds == 2
        for _ in range(3000):  # of ten milliseconds; the clock here stands still
            if "until the workers are started anew: " in out.getvalue():
                return
            Event().wait(0.01)
        raise AssertionError(out.getvalue())

    monkeypatch.setattr("grpo.train.heal.pause", wait)
    made.after(DEAD, 6)


def test_a_run_that_began_from_another_ones_checkpoint_goes_back_to_that(tmp_path: Path):
    origin = save(tmp_path / "other", 8)
    made, _ = restarts(tmp_path / "run")
    made.branch = Branch(origin, 8)
    assert made.after(DEAD, 9) == origin
    assert made.after(Diverged("not finite"), 9) == origin
    own = save(tmp_path / "run", 12)
    assert made.after(DEAD, 13) == own


def test_where_a_run_was_begun_may_be_gone_once_it_has_a_checkpoint_of_its_own(tmp_path: Path):
    made, _ = restarts(tmp_path)
    made.branch = Branch(tmp_path / "gone", 5)
    save(tmp_path, 3)  # of a history that did not lead here
    with pytest.raises(RunError, match="where it was begun, which is gone"):
        made.after(DEAD, 7)
    own = save(tmp_path, 8)
    assert made.after(DEAD, 9) == own
    with pytest.raises(RunError, match="where it was begun, which is gone"):
        made.after(Diverged("collapsed", distrusted=4), 9)


def test_the_machines_that_a_run_has_lost_are_named(tmp_path: Path):
    made, told = restarts(tmp_path)
    made.begun(["10.0.0.1", "10.0.0.2"])
    made.begun(["10.0.0.1", "10.0.0.2"])
    assert told.getvalue() == ""
    made.begun(["10.0.0.1"])
    said = " ".join(told.getvalue().split())
    assert "the run goes on without 10.0.0.2: its workers are on 10.0.0.1 now" in said


def test_after_a_restart_the_gpus_are_counted_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With one of two machines gone, engines and ranks may have to share what is left."""
    address = "10.0.0.1:6379"
    up = [nodes.Node("a", "10.0.0.1", 1), nodes.Node("b", "10.0.0.2", 1)]
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(nodes, "connect", lambda: None)
    monkeypatch.setattr(nodes, "alive", lambda: list(up))
    monkeypatch.setattr(nodes.ray, "shutdown", lambda: None)
    nodes.forget_machines()
    assert nodes.gpus_at(address) == (1, 1)
    up.pop()
    made, _ = restarts(tmp_path)
    save(tmp_path, 6)
    made.after(DEAD, 6)
    assert nodes.gpus_at(address) == (1,)
    nodes.forget_machines()


def test_the_wait_doubles(tmp_path: Path):
    made, told = restarts(tmp_path, max_restarts=5)
    for step in range(4):
        made.after(DEAD, step)
    text = " ".join(told.getvalue().split())
    for seconds in (2, 4, 8, 16):
        assert f"in {seconds} s" in text


def test_the_same_fault_at_the_same_place_is_no_accident(tmp_path: Path):
    made, _ = restarts(tmp_path)
    made.after(DEAD, 6)
    with pytest.raises(
        RunError, match=r"same place .*\(after step 6\), so that is no accident"
    ) as ended:
        made.after(DEAD, 6)
    assert not isinstance(ended.value, WorkerFault)


def test_another_fault_or_another_step_is_a_new_accident(tmp_path: Path):
    made, _ = restarts(tmp_path)
    made.after(DEAD, 6)
    made.after(WorkerFault("learner-0 step", "learner-0 died"), 6)
    made.after(DEAD, 7)
    assert made.count == 3


def test_a_budget_that_is_spent_ends_the_run(tmp_path: Path):
    made, _ = restarts(tmp_path, max_restarts=2)
    made.after(DEAD, 1)
    made.after(DEAD, 2)
    with pytest.raises(RunError, match=r"ends after 2 restarts \(heal.max_restarts\)"):
        made.after(DEAD, 3)


def test_a_start_that_fails_is_not_tried_again(tmp_path: Path):
    made, _ = restarts(tmp_path)
    made.has_begun = False
    with pytest.raises(WorkerFault, match="died during sample"):
        made.after(DEAD, 0)
    with pytest.raises(Diverged, match="the learner itself scores nan"):
        made.after(Diverged("the learner itself scores nan: look at the model's files"), 0)
    assert not (tmp_path / "rollbacks").exists()


def test_a_run_goes_back_to_the_newest_healthy_checkpoint_and_leaves_the_groups_out(tmp_path: Path):
    made, told = restarts(tmp_path)
    healthy = save(tmp_path, 4)
    save(tmp_path, 6, skipped=2)
    fault = Diverged("step 7: not finite", [group(13), group(11), group(13)])
    assert made.after(fault, 6) == healthy
    (written,) = rollbacks.read(tmp_path / "rollbacks")
    assert (written.step, written.to, written.left_out) == (6, 4, (11, 13))
    assert written.why == "step 7: not finite"
    assert rollbacks.left_out(tmp_path / "rollbacks") == {11, 13}
    assert (tmp_path / "rollbacks" / "001" / "step_000006.parquet").is_file()
    assert "left out: 11, 13" in " ".join(told.getvalue().split())


def test_a_collapse_makes_the_steps_before_it_suspect(tmp_path: Path):
    made, _ = restarts(tmp_path)
    sound = save(tmp_path, 20)
    save(tmp_path, 30)
    assert made.after(Diverged("the reward is gone", distrusted=15), 36) == sound


def test_a_run_without_a_checkpoint_goes_back_to_its_start(tmp_path: Path):
    made, told = restarts(tmp_path)
    assert made.after(Diverged("step 3: not finite"), 2) is None
    assert "goes back to the start, once" in told.getvalue()


def test_a_run_does_not_begin_again_because_its_checkpoints_are_no_place_to_go_back_to(
    tmp_path: Path,
):
    made, _ = restarts(tmp_path)
    save(tmp_path, 990)
    save(tmp_path, 1000)
    with pytest.raises(RunError, match=r"checkpoints of steps 990, 1000 only,\s+and trusts none"):
        made.after(Diverged("the reward is gone", distrusted=20), 1005)
    assert not (tmp_path / "rollbacks").exists() and made.count == 0


def test_what_the_folder_has_of_an_earlier_step_than_the_named_checkpoint_is_another_branch(
    tmp_path: Path,
):
    origin = save(tmp_path / "other", 80)
    made, _ = restarts(tmp_path / "run")
    save(tmp_path / "run", 50)
    made.branch = Branch(origin, 80)
    assert made.after(DEAD, 81) == origin
    assert made.after(Diverged("not finite"), 85) == origin
    own = save(tmp_path / "run", 90)
    assert made.after(DEAD, 91) == own


def test_it_goes_back_to_one_checkpoint_once_in_whatever_process(tmp_path: Path):
    made, _ = restarts(tmp_path)
    checkpoint = save(tmp_path, 4)
    made.after(Diverged("step 7: not finite"), 6)
    another, _ = restarts(tmp_path)
    with pytest.raises(RunError, match=r"gone back to step 4 .* lower learner\.lr") as ended:
        another.after(Diverged("step 8: not finite"), 7)
    assert str(checkpoint) in str(ended.value)
    later = save(tmp_path, 10)
    assert another.after(Diverged("step 11: not finite"), 10) == later


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"step": 1}', json.dumps({"left_out": ["x"], "step": 1, "to": 0})],
)
def test_a_damaged_account_of_a_rollback_is_named(tmp_path: Path, content: str):
    (tmp_path / "001").mkdir()
    (tmp_path / "001" / "why.json").write_text(content)
    with pytest.raises(UserError, match=r"001/why\.json cannot be read"):
        rollbacks.left_out(tmp_path)
