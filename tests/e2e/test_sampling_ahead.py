"""A run that samples ahead of its learner: bounded, interrupted, resumed, finished."""

import json
import signal
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.e2e.test_run import (
    PROMPTS,
    STEPS,
    Run,
    all_gone,
    recipe,
    relatives,
    serials,
    steps_logged,
)


@pytest.fixture(scope="module")
def ahead(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory):
    """A run with max_staleness 1 that is interrupted and finished."""
    folder = tmp_path_factory.mktemp("ahead")
    path = recipe(folder, models["tied"])
    facts: dict[str, Any] = {}

    run = Run(path, "schedule.max_staleness=1", "rollout.temperature=1.3")
    run.wait_until(lambda: 3 in steps_logged(folder))
    family = relatives(run.process.pid)
    run.process.send_signal(signal.SIGINT)
    facts["exit code"] = run.finish()
    facts["interrupted"] = all_gone(family)
    facts["steps"] = steps_logged(folder)
    facts["latest"] = (folder / "run" / "checkpoints" / "latest").resolve().name

    run = Run(path, "schedule.max_staleness=1", "rollout.temperature=1.3")
    assert run.finish() == 0, run.text()
    facts["log"] = run.text()
    return folder, facts


def test_every_prompt_and_every_step_is_there_once(ahead):
    folder, facts = ahead
    assert facts["exit code"] == 130
    assert facts["interrupted"], "a process outlived its driver"
    assert steps_logged(folder) == list(range(1, STEPS + 1))
    taken = serials(folder)
    assert sorted(taken) == list(range(len(taken))) and len(taken) >= STEPS * PROMPTS


def test_ctrl_c_saves_the_last_finished_step(ahead):
    """In a checkpoint of its own: every second step has one anyway."""
    _, facts = ahead
    assert facts["latest"] == f"step_{facts['steps'][-1]:06d}"


def test_answers_are_one_update_old_and_never_older(ahead):
    folder, _ = ahead
    ages: set[int] = set()
    for path in (folder / "run" / "rollouts").glob("step_*.parquet"):
        columns = ["step", "policy_version_min", "policy_version_max"]
        for row in pq.read_table(path, columns=columns).to_pylist():
            assert row["policy_version_max"] < row["step"]
            ages.add(row["step"] - 1 - row["policy_version_min"])
    assert ages == {0, 1}, "0: the first steps of each process"


def test_what_is_stale_is_corrected_and_told(ahead):
    folder, facts = ahead
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").open()]
    assert {line["staleness/max"] for line in lines} == {0, 1}
    for line in lines:
        assert 0 <= line["staleness/mean"] <= line["staleness/max"]
        assert line["mismatch/correction"] <= 2
        causes = ("flat", "truncated", "stale", "aborted")
        lost = sum(line[f"goodput/lost_{cause}"] for cause in causes)
        assert line["goodput/share"] + lost == pytest.approx(1)
        assert line["groups/used"] == PROMPTS
    assert "(wait " in facts["log"], "the step's line tells waiting from sampling"
