"""Faults that a run meets, and what becomes of it: the same weights as without them, or an end that
says what to do."""

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from signal import SIGKILL, SIGTERM
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from grpo.store import rollbacks
from tests.e2e.test_run import (
    GRPO,
    ROOT,
    STEPS,
    Run,
    alive,
    all_gone,
    recipe,
    relatives,
    serials,
    steps_logged,
)

JOBS = ROOT / "docs" / "howto" / "jobs"
# What depends on the clock, on memory, or on which requests an engine happens to see together.
MEASURED = ("time", "throughput/", "memory/", "sync/", "learn/tflops", "mismatch/")
QUICK = "heal.backoff_s=0.1"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Of the newest checkpoint."""
    return load_file(folder / "run" / "checkpoints" / "latest" / "hf" / "model.safetensors")


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "run" / "metrics.jsonl").open()]


def latest(folder: Path) -> int:
    return int((folder / "run" / "checkpoints" / "latest").resolve().name.removeprefix("step_"))


def is_named(pid: int, name: str) -> bool:
    """Whether its command line holds `name`."""
    try:
        return name in Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:  # gone in the meantime
        return False


def named(pids: set[int], name: str) -> int:
    """The one process of a family."""
    (pid,) = [pid for pid in alive(pids) if is_named(pid, name)]
    return pid


@pytest.fixture(scope="module")
def undisturbed(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    run = Run(recipe(folder, models["tied"]))
    assert run.finish() == 0, run.text()
    return folder


def assert_same_end(folder: Path, undisturbed: Path) -> None:
    """Every step once, every prompt once, and the weights to the last bit."""
    assert steps_logged(folder) == list(range(1, STEPS + 1))
    taken = serials(folder)
    assert taken == list(range(len(taken))) == serials(undisturbed)
    expected, found = weights(undisturbed), weights(folder)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name
    for before, after in zip(lines_of(undisturbed), lines_of(folder), strict=True):
        figures = {key: value for key, value in before.items() if not key.startswith(MEASURED)}
        assert figures == {key: after[key] for key in figures}


# --- signals ---


def scheduled(bin: Path, recipe: Path) -> dict[str, str]:
    """An environment in which job files find a scheduler's programs, and a `grpo` that trains this
    recipe in place of theirs. What `scontrol` is told is in bin/requeued."""
    bin.mkdir()
    programs = {
        "srun": 'exec "$@"',
        "scontrol": f'echo "$@" >> {bin}/requeued',
        "grpo": f'[ "$1" = train ] || exit 3\nshift 2\nexec {GRPO} train {recipe} "$@"',
    }
    for name, text in programs.items():
        (bin / name).write_text(f"#!/bin/bash\n{text}\n")
        (bin / name).chmod(0o755)
    return os.environ | {"PATH": f"{bin}:{os.environ['PATH']}", "SLURM_JOB_ID": "17"}


@pytest.fixture(scope="module")
def stopped(
    models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """A run that gets SIGTERM while it starts, with its whole group; from Slurm, as docs' job file
    asks for it; and from Kubernetes, likewise. Then it is finished."""
    folder = tmp_path_factory.mktemp("stopped")
    path = recipe(folder, models["tied"])
    environment = scheduled(folder / "bin", path)
    facts: dict[str, Any] = {}

    def stop(name: str, run: Run, when: Callable[[], bool], send: Callable[[int], None]) -> None:
        run.wait_until(when)
        family = relatives(run.process.pid)
        began = time.monotonic()
        send(run.process.pid)
        facts[name] = {
            "code": run.finish(),
            "seconds": time.monotonic() - began,
            "gone": all_gone(family),
            "log": run.text(),
            "steps": steps_logged(folder),
            "saved": latest(folder) if (folder / "run" / "checkpoints" / "latest").exists() else 0,
        }

    rare = "checkpoint.every=100"
    run = Run(path, rare)  # `timeout` sends it to the whole group
    stop("start", run, lambda: "starting vLLM" in run.text(), lambda pid: os.killpg(pid, SIGTERM))

    job = Run(path, rare, command=["bash", str(JOBS / "slurm.sh")], environment=environment)
    stop(
        "Slurm", job, lambda: 1 in steps_logged(folder), lambda pid: os.kill(trainer(pid), SIGTERM)
    )
    facts["requeued"] = (folder / "bin" / "requeued").read_text().split()

    container = kubernetes()["containers"][0]
    # Their folder for runs is not here.
    command = [word for word in container["command"] if not word.startswith("output=")]
    pod = Run(path, command=[*command, rare], environment=environment)
    stop("Kubernetes", pod, lambda: 4 in steps_logged(folder), lambda pid: os.kill(pid, SIGTERM))

    run = Run(path, rare)
    assert run.finish() == 0, run.text()
    yield folder, facts


def kubernetes() -> dict[str, Any]:
    """What docs' job says of its pods."""
    return yaml.safe_load((JOBS / "kubernetes.yaml").read_text())["spec"]["template"]["spec"]


def trainer(pid: int) -> int:
    """The process of `grpo train` below a script: the first of its family that is not bash."""
    return min(p for p in relatives(pid) if "bash" not in Path(f"/proc/{p}/cmdline").read_text())


@pytest.mark.parametrize("moment", ["start", "Slurm", "Kubernetes"])
def test_sigterm_ends_with_143_and_leaves_no_process(stopped, moment: str):
    fact = stopped[1][moment]
    assert fact["code"] == 143, fact["log"]
    assert fact["gone"], "a process outlived its driver"
    assert "Traceback" not in fact["log"] and "the same command goes on" in fact["log"]
    assert fact["seconds"] < 60


def test_sigterm_while_a_run_starts_saves_nothing(stopped):
    fact = stopped[1]["start"]
    assert fact["saved"] == 0 and fact["steps"] == []


def test_sigterm_saves_the_last_finished_step(stopped):
    """In a checkpoint of its own: none was due."""
    for moment in ("Slurm", "Kubernetes"):
        fact = stopped[1][moment]
        assert fact["saved"] == fact["steps"][-1] >= 1, fact["log"]


def test_a_job_under_slurm_puts_itself_into_the_queue_again(stopped):
    assert stopped[1]["requeued"] == ["requeue", "17"]


def test_a_pod_has_time_to_save_and_its_end_is_no_failure():
    job = yaml.safe_load((JOBS / "kubernetes.yaml").read_text())["spec"]
    pod = kubernetes()
    grace_s = float(pod["containers"][0]["command"][-1].removeprefix("stop.grace_s="))
    assert grace_s + 20 <= pod["terminationGracePeriodSeconds"]
    codes = {
        code: rule["action"]
        for rule in job["podFailurePolicy"]["rules"]
        if "onExitCodes" in rule
        for code in rule["onExitCodes"]["values"]
    }
    assert codes == {143: "Ignore", 2: "FailJob"}


def test_a_run_that_was_stopped_three_times_ends_as_one_that_never_was(stopped, undisturbed: Path):
    assert_same_end(stopped[0], undisturbed)


# --- workers that die ---


@pytest.fixture(scope="module")
def healed(
    models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, str]]:
    """One command whose engine, learner rank and vLLM core are killed, one after the other: while
    it samples an engine is started anew alone, and with the learner everything is."""
    folder = tmp_path_factory.mktemp("healed")
    run = Run(recipe(folder, models["tied"]), QUICK)
    for step, name in ((2, "ray::_AsyncHost"), (4, "ray::_Host"), (6, "EngineCore")):
        run.wait_until(lambda step=step: step in steps_logged(folder))
        os.kill(named(relatives(run.process.pid), name), SIGKILL)
    family = relatives(run.process.pid)
    assert run.finish() == 0, run.text()
    assert all_gone(family), "a process outlived its driver"
    yield folder, run.text()


def test_a_run_whose_workers_were_killed_ends_as_one_whose_were_not(healed, undisturbed: Path):
    assert_same_end(healed[0], undisturbed)


def test_every_restart_is_told_and_counted(healed):
    folder, log = healed
    for restart in (1, 2, 3):
        assert f"({restart} of 3, heal.max_restarts)" in log
    assert lines_of(folder)[-1]["heal/restarts"] == 3.0
    assert "heal/restarts" not in lines_of(folder)[0]
    assert "Traceback" not in log


def test_what_the_learner_had_finished_since_the_last_checkpoint_is_taken_again(healed):
    log = healed[1]
    assert any(f"resumed after step {step} " in log for step in (2, 4))


@pytest.mark.full
def test_one_engine_of_two_that_dies_while_it_samples_comes_back_and_nothing_else_stops(
    models: dict[str, Path], tmp_path: Path
):
    """Most of a step is sampling here, so that is where it dies."""
    run = Run(
        recipe(tmp_path, models["tied"]), QUICK, "rollout.engines=2", "rollout.max_tokens=200",
        "rollout.prompts=64", "rollout.temperature=2.0", "learner.micro_batch_tokens=4096",
    )  # fmt: skip
    run.wait_until(lambda: 2 in steps_logged(tmp_path))
    engines = [pid for pid in relatives(run.process.pid) if is_named(pid, "ray::_AsyncHost")]
    learners = [pid for pid in relatives(run.process.pid) if is_named(pid, "ray::_Host")]
    os.kill(max(engines), SIGKILL)
    run.wait_until(lambda: "samples again" in run.text())
    assert alive(set(learners)) == set(learners), "the learner went on"
    assert run.finish() == 0, run.text()
    log = run.text()
    assert "groups are sampled again" in log and log.count("starting vLLM") == 1
    assert steps_logged(tmp_path) == list(range(1, STEPS + 1))
    taken = serials(tmp_path)
    assert sorted(taken) == list(range(len(taken))), "every prompt once"


@pytest.mark.full
def test_without_a_budget_a_dead_engine_ends_the_run_and_the_finished_steps_are_saved(
    models: dict[str, Path], tmp_path: Path
):
    run = Run(recipe(tmp_path, models["tied"]), "heal.max_restarts=0", "checkpoint.every=100")
    run.wait_until(lambda: 2 in steps_logged(tmp_path))
    os.kill(named(relatives(run.process.pid), "ray::_AsyncHost"), SIGKILL)
    assert run.finish() == 1, run.text()
    assert latest(tmp_path) == steps_logged(tmp_path)[-1] >= 2
    assert "heal.max_restarts" in run.text() and "Traceback" not in run.text()


# --- numbers that are not finite ---


def sick(folder: Path, model: Path, illness: str, *overrides: str, mark: Path | None = None) -> Run:
    os.environ["GRPO_TEST_SICK"] = illness
    os.environ["GRPO_TEST_SICK_MARK"] = str(mark or folder / "fell_ill")
    try:
        plugins = "plugins=[tests.e2e.rewards, tests.e2e.sick]"
        return Run(recipe(folder, model), plugins, QUICK, *overrides)
    finally:
        del os.environ["GRPO_TEST_SICK"], os.environ["GRPO_TEST_SICK_MARK"]


def evaluated(folder: Path) -> subprocess.CompletedProcess[str]:
    """What the run left, by the reward that it learns from; the figures are in folder/eval.json."""
    changes = ["samples=2", "data.task.rows=8", "max_tokens=24", "verifier=even_length"]
    return subprocess.run(
        [
            str(GRPO), "eval", str(folder / "run"), "--out", str(folder / "eval.json"),
            "plugins=[tests.e2e.rewards]", *(f"benchmarks.0.{change}" for change in changes),
        ],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def accuracy(folder: Path) -> float:
    told = evaluated(folder)
    assert told.returncode == 0, told.stdout + told.stderr
    (benchmark,) = json.loads((folder / "eval.json").read_text())
    return benchmark["scores"]["avg@2"]["value"]


@pytest.mark.full
def test_a_step_whose_gradient_is_infinite_is_not_taken_and_the_run_goes_on(
    models: dict[str, Path], tmp_path: Path
):
    run = sick(
        tmp_path,
        models["tied"],
        "gradient:5",
        "surrogate={name: sick_clip}",
        "health.max_skipped=3",
    )
    assert run.finish() == 1, run.text()
    lines = {line["step"]: line for line in lines_of(tmp_path)}
    assert lines[4]["learn/skipped"] == 0.0
    log = run.text()
    # The optimizer's fifth step is tried in steps 5, 6 and 7, since it was not taken.
    assert "step 7: 3 optimizer steps in a row had gradients that are not finite" in log
    (made,) = rollbacks.read(tmp_path / "run" / "rollbacks")
    assert made.to == 4 and len(made.left_out) == 3
    assert "an optimizer step was not taken" in log and "(-inf)" in log
    assert latest(tmp_path) == 4, "what was healthy stays"
    assert "Traceback" not in log
    assert 0.0 < accuracy(tmp_path) < 1.0


@pytest.mark.full
def test_a_weight_that_is_nan_sends_the_run_back_to_its_last_checkpoint_once(
    models: dict[str, Path], tmp_path: Path, undisturbed: Path
):
    run = sick(tmp_path, models["tied"], "weight:5")
    assert run.finish() == 0, run.text()
    (made,) = rollbacks.read(tmp_path / "run" / "rollbacks")
    assert made.to == 4 and made.left_out == ()
    assert "goes back to step 4, once" in run.text()
    assert "failed in" not in run.text(), "it is no fault of a worker"
    assert_same_end(tmp_path, undisturbed)
    assert 0.0 < accuracy(tmp_path) == accuracy(undisturbed) < 1.0


@pytest.mark.full
def test_a_learning_rate_of_1e25_ends_with_a_diagnosis_and_no_checkpoint(
    models: dict[str, Path], tmp_path: Path
):
    run = Run(recipe(tmp_path, models["tied"]), "learner.lr=1e25", "learner.warmup_steps=0", QUICK)
    assert run.finish() == 1, run.text()
    log = run.text()
    assert "goes back to the start, once" in log and "a lower learner.lr" in log
    assert "Traceback" not in log
    assert not (tmp_path / "run" / "checkpoints" / "latest").exists()
    told = evaluated(tmp_path)
    assert told.returncode == 2 and "no checkpoint" in told.stderr, told.stdout + told.stderr
