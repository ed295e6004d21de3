"""A run as a user meets it: killed, interrupted, resumed, evaluated, on real rows."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from grpo.cli.commands import app
from grpo.store.checkpoint import RunFolder

ROOT = Path(__file__).parents[2]
REAL = ROOT.parent / "shared" / "data" / "train" / "dapo_math_17k.jsonl"
GRPO = Path(sys.executable).with_name("grpo")
STEPS, PROMPTS = 9, 4


def recipe(folder: Path, model: Path) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(f"""
name: run
output: {folder}
plugins: [tests.e2e.rewards]
model: {{path: {model}, dtype: float32, gradient_checkpointing: false}}
data: data/arithmetic.yaml
rollout: {{prompts: {PROMPTS}, group_size: 4, max_tokens: 24}}
verifier: {{name: even_length, workers: 1}}
flat_groups: {{mode: replace, max_rounds: 4}}
difficulty: {{kind: kalman, window: 3}}
learner: {{lr: 1.0e-3, micro_batch_tokens: 512}}
schedule: {{steps: {STEPS}}}
checkpoint: {{every: 2}}
logging: {{wandb: "off", samples_every: 0}}
""")
    return path


class Run:
    """`grpo train` in a process of its own, or a `command` that comes to it."""

    def __init__(
        self,
        recipe: Path,
        *overrides: str,
        log_in: Path | None = None,
        command: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ):
        self.log = (log_in or recipe.parent) / f"log-{time.monotonic_ns()}.txt"
        self.process = subprocess.Popen(
            command or [str(GRPO), "train", str(recipe), *overrides],
            cwd=ROOT,
            env=environment,
            stdout=self.log.open("w"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def wait_until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 240
        while not condition():
            assert self.process.poll() is None, f"the run ended early:\n{self.text()}"
            assert time.monotonic() < deadline, f"waited too long:\n{self.text()}"
            time.sleep(0.01)

    def finish(self) -> int:
        return self.process.wait(timeout=300)

    def text(self) -> str:
        return self.log.read_text()


def relatives(pid: int) -> set[int]:
    """A process and all that it started, directly or not. Ray's own agents are left out: after a
    kill -9 they need minutes to notice that their raylet is gone."""
    parents: dict[int, int] = {}
    agents: set[int] = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:  # gone in the meantime
                continue
            parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
            if "(ray::Dashboard" in stat or "(ray::RuntimeEnv" in stat:
                agents.add(int(entry.name))
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - agents


def alive(pids: set[int]) -> set[int]:
    states = {}
    for pid in pids:
        try:
            states[pid] = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
    return {pid for pid, state in states.items() if state != "Z"}


def all_gone(pids: set[int], within_s: float = 60) -> bool:
    deadline = time.monotonic() + within_s
    while alive(pids) and time.monotonic() < deadline:
        time.sleep(0.2)
    return not alive(pids)


def steps_logged(folder: Path) -> list[int]:
    metrics = folder / "run" / "metrics.jsonl"
    if not metrics.exists():
        return []
    return [
        json.loads(line)["step"] for line in metrics.read_text().splitlines() if line.endswith("}")
    ]


def serials(folder: Path) -> list[int]:
    """Prompt serials of every step in order, from the stored rollouts."""
    out: list[int] = []
    for path in sorted((folder / "run" / "rollouts").glob("step_*.parquet")):
        column = pq.read_table(path, columns=["serial"])["serial"].to_pylist()
        out += sorted(set(column))
    return out


@pytest.fixture(scope="module")
def survived(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory):
    """A run that is killed in step 7, killed in a checkpoint write, and finished. Ctrl-C is tried
    where sampling runs ahead, with the same code and more under way."""
    folder = tmp_path_factory.mktemp("survivor")
    path = recipe(folder, models["tied"])
    facts: dict[str, object] = {}

    run = Run(path)
    run.wait_until(lambda: 6 in steps_logged(folder))
    time.sleep(0.2)
    family = relatives(run.process.pid)
    run.process.send_signal(signal.SIGKILL)
    run.finish()
    facts["killed in step 7"] = all_gone(family)

    run = Run(path)
    checkpoints = folder / "run" / "checkpoints"
    run.wait_until(lambda: any(checkpoints.glob(".writing_step_000008*")))
    family = relatives(run.process.pid)
    run.process.send_signal(signal.SIGKILL)
    run.finish()
    facts["killed while writing"] = all_gone(family)
    facts["resumed after"] = [s for s in (2, 4, 6) if f"after step {s} " in run.text()]

    run = Run(path)
    assert run.finish() == 0, run.text()
    return folder, facts


def test_a_killed_run_ends_with_every_prompt_once_and_every_step_once(survived):
    folder, _ = survived
    assert steps_logged(folder) == list(range(1, STEPS + 1))
    taken = serials(folder)
    assert taken == list(range(len(taken))) and len(taken) >= STEPS * PROMPTS


def test_flat_groups_were_replaced_in_every_step(survived):
    folder, _ = survived
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").open()]
    assert [line["groups/used"] for line in lines] == [PROMPTS] * STEPS
    assert sum(line["groups/sampled"] for line in lines) == len(serials(folder))


def test_the_difficulty_anchor_goes_through_checkpoints(survived):
    """Its history after nine steps, in three processes, is that of the nine accuracies."""
    folder, _ = survived
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").open()]
    state = json.loads((folder / "run" / "checkpoints" / "latest" / "state.json").read_text())
    anchor = state["extra"]["anchor"]
    assert anchor["steps"] == STEPS
    assert anchor["accuracies"] == [line["difficulty/accuracy"] for line in lines[-3:]]


def test_no_process_outlives_a_killed_driver(survived):
    _, facts = survived
    assert facts["killed in step 7"]
    assert facts["killed while writing"]


def test_a_half_written_checkpoint_is_never_picked(survived):
    _, facts = survived
    assert facts["resumed after"] == [6]


def said_by_train(recipe: Path, *overrides: str) -> Result:
    """`grpo train` in this process: for what ends before anything is started."""
    return CliRunner().invoke(app, ["train", str(recipe), *overrides])


def test_a_finished_run_does_no_work_again(survived):
    folder, _ = survived
    result = said_by_train(folder / "recipe.yaml")
    assert result.exit_code == 0
    assert "finished already" in result.output


def test_resume_with_another_recipe_lists_the_keys_and_allows_harmless_ones(survived):
    folder, _ = survived
    path = folder / "recipe.yaml"
    result = said_by_train(path, "learner.lr=0.5", "seed=4", "checkpoint.every=3")
    assert result.exit_code == 2
    assert "learner.lr: was 0.001, now 0.5" in result.output
    assert "seed: was 0, now 4" in result.output
    assert "checkpoint.every" not in result.output
    assert "Traceback" not in result.output
    assert said_by_train(path, "checkpoint.every=3", "logging.samples=1").exit_code == 0


def test_two_runs_on_one_folder_are_refused(survived):
    folder, _ = survived
    with RunFolder(folder / "run").lock():
        result = said_by_train(folder / "recipe.yaml")
    assert result.exit_code == 2
    assert str(os.getpid()) in result.output


def test_a_checkpoint_is_evaluated_and_the_scores_are_saved(survived, tmp_path: Path):
    folder, _ = survived
    out = tmp_path / "scores.json"
    done = subprocess.run(
        [
            str(GRPO), "eval", str(folder / "run"), "--suite", "eval/arithmetic.yaml",
            "--out", str(out), "benchmarks.0.data.rows=4", "benchmarks.0.samples=4",
        ],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (result,) = json.loads(out.read_text())
    assert result["num_problems"] == 4
    assert set(result["scores"]) == {"avg@4", "pass@1", "pass@2", "pass@4", "best@4", "maj@4"}
    assert "avg@4" in done.stdout


@pytest.mark.skipif(not REAL.exists(), reason="../shared/data is not here")
def test_the_demo_model_trains_two_steps_on_the_real_dapo_rows(
    models: dict[str, Path], tmp_path: Path
):
    run = Run(
        ROOT / "recipes" / "tiny_cpu.yaml",
        f"output={tmp_path}", f"model.path={models['tied']}",
        "data=data/dapo_math_17k.yaml", f"data.path={REAL}",
        "schedule.steps=2", "rollout.prompts=4", "eval.suite=null", "logging.wandb=off",
        log_in=tmp_path,
    )  # fmt: skip
    assert run.finish() == 0, run.text()
    lines = (tmp_path / "tiny_cpu" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]
