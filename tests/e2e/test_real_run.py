"""`grpo train`, `export` and `eval` of a real model, as a user calls them."""

import json
import math
import signal
import subprocess
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import load_file
from typer.testing import CliRunner

from grpo.cli.commands import app
from tests.e2e import real
from tests.e2e.real import END, STOP
from tests.e2e.test_faults import MEASURED, lines_of, weights
from tests.e2e.test_run import GRPO, ROOT, Run, all_gone, relatives, serials, steps_logged

STEPS, PROMPTS, SIBLINGS, MOST = 2, 4, 4, 16


def recipe(folder: Path, model: Path, dtype: str = "float32") -> Path:
    """Half of the answers are paid, as half of them have an even number of characters."""
    keys = {
        "name": "run",
        "output": str(folder),
        "plugins": ["tests.e2e.rewards"],
        "model": {"path": str(model), "dtype": dtype},
        "data": real.declaration(folder),
        "rollout": {"prompts": PROMPTS, "group_size": SIBLINGS, "max_tokens": MOST},
        "verifier": {"name": "even_length", "workers": 1},
        "flat_groups": {"mode": "drop"},
        "learner": {"lr": 2e-5, "warmup_steps": 0, "micro_batch_tokens": 1024},
        "schedule": {"steps": STEPS},
        "checkpoint": {"every": 1, "keep": STEPS},
        "logging": {"wandb": "off", "samples_every": 0},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(keys))
    return path


def suite(folder: Path) -> Path:
    path = folder / "suite.yaml"
    keys = {
        "name": "chats",
        "plugins": ["tests.e2e.rewards"],
        "data": real.declaration(folder),
        "samples": 4,
        "max_tokens": MOST,
        "verifier": "even_length",
    }
    path.write_text(yaml.safe_dump(keys))
    return path


def rollouts(folder: Path) -> list[dict[str, Any]]:
    files = sorted((folder / "run" / "rollouts").glob("step_*.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def finished(folder: Path, model: Path, dtype: str) -> Path:
    run = Run(recipe(folder, model, dtype))
    assert run.finish() == 0, run.text()
    return folder


@pytest.fixture(scope="module")
def float32(wide: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(tmp_path_factory.mktemp("float32"), wide, "float32")


@pytest.fixture(scope="module")
def bfloat16(wide: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(tmp_path_factory.mktemp("bfloat16"), wide, "bfloat16")


# --- a run ---

RUNS = ["bfloat16", pytest.param("float32", marks=pytest.mark.full)]


@pytest.mark.parametrize("dtype", RUNS)
def test_every_step_updates_the_weights_and_its_check_passes(
    dtype: str, request: pytest.FixtureRequest
):
    folder: Path = request.getfixturevalue(dtype)
    assert steps_logged(folder) == [1, 2]
    assert serials(folder) == list(range(STEPS * PROMPTS))
    most, mean = (1e-4, 1e-4) if dtype == "float32" else (math.inf, 0.1)
    for line in lines_of(folder):
        print(
            f"{dtype}: canary {line['sync/canary_max_abs']:.1e} nats at most, "
            f"{line['sync/canary_mean_abs']:.1e} on average; "
            f"mismatch {line['mismatch/mean_abs']:.1e} on average"
        )
        assert line["groups/used"] >= 1 and line["learn/grad_norm"] > 0
        assert line["learn/skipped"] == 0
        assert line["sync/canary_max_abs"] <= most and line["sync/canary_mean_abs"] <= mean
        assert line["mismatch/mean_abs"] <= mean
    checkpoints = folder / "run" / "checkpoints"
    first, second = (
        load_file(checkpoints / f"step_{step:06d}" / "hf" / "model.safetensors") for step in (1, 2)
    )
    assert not any(torch.equal(first[name], second[name]) for name in first if "norm" not in name)


@pytest.mark.parametrize("dtype", RUNS)
def test_answers_of_a_run_end_where_the_model_says(dtype: str, request: pytest.FixtureRequest):
    """At <|im_end|>, which no text shows, or at a full stop, which stays."""
    rows = rollouts(request.getfixturevalue(dtype))
    assert len(rows) == STEPS * PROMPTS * SIBLINGS
    for row in rows:
        assert "<|im_end|>" not in row["response"]
        assert (row["finish_reason"] == "length") <= (row["length"] == MOST)
        assert row["reward"] == float(len(row["response"]) % 2 == 0)
        assert row["policy_version_max"] == row["step"] - 1
    assert any(row["response"].endswith(".") and row["finish_reason"] == "stop" for row in rows)


# --- a kill ---


@pytest.fixture(scope="module")
def resumed(wide: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bool, str]:
    """A run whose driver is killed in step 2, and the command given again: its folder, whether the
    first command left no process, and what the second said."""
    folder = tmp_path_factory.mktemp("resumed")
    path = recipe(folder, wide)
    run = Run(path)
    run.wait_until((folder / "run" / "checkpoints" / "step_000001").exists)
    family = relatives(run.process.pid)
    run.process.send_signal(signal.SIGKILL)
    run.finish()
    gone = all_gone(family)
    assert steps_logged(folder) == [1]
    run = Run(path)
    assert run.finish() == 0, run.text()
    return folder, gone, run.text()


@pytest.mark.full
def test_a_killed_run_goes_on_and_ends_with_the_weights_of_one_that_was_not(
    resumed: tuple[Path, bool, str], float32: Path
):
    folder, gone, said = resumed
    assert gone, "a process outlived its driver"
    assert "resumed after step 1 " in said
    assert steps_logged(folder) == [1, 2]
    assert serials(folder) == list(range(STEPS * PROMPTS))
    assert [row["response"] for row in rollouts(folder)] == [
        row["response"] for row in rollouts(float32)
    ]
    for before, after in zip(lines_of(float32), lines_of(folder), strict=True):
        figures = {key: value for key, value in before.items() if not key.startswith(MEASURED)}
        assert figures == {key: after[key] for key in figures}
    expected, found = weights(float32), weights(folder)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name


# --- export and evaluation ---


def test_the_exported_model_is_the_checkpoint_and_has_what_the_first_one_had(
    bfloat16: Path, wide: Path, tmp_path: Path
):
    """Whose head is the embedding, so that there is no tensor for it."""
    out = tmp_path / "model"
    result = CliRunner().invoke(app, ["export", str(bfloat16 / "run"), str(out)])
    assert result.exit_code == 0, result.output
    assert "after step 2" in " ".join(result.output.split())
    expected, found = weights(bfloat16), load_file(out / "model.safetensors")
    assert found.keys() == expected.keys() == load_file(wide / "model.safetensors").keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is True
    told = json.loads((out / "generation_config.json").read_text())
    assert told["eos_token_id"] == [END, STOP]
    assert (out / "chat_template.jinja").read_text() == (wide / "chat_template.jinja").read_text()


def evaluated(target: Path, folder: Path, out: Path | None = None) -> tuple[dict[str, Any], str]:
    """The result of the one benchmark, and what was said."""
    command = [str(GRPO), "eval", str(target), "--suite", str(suite(folder))]
    command += ["--out", str(out)] if out else []
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (result,) = json.loads((out or target / "eval" / "chats.json").read_text())
    return result, done.stdout


def assert_scores_are_those_of_the_answers(result: dict[str, Any], answers: Path):
    """Of 8 problems with 4 answers each: the share of answers that have an even number of
    characters, and that of problems with at least one of them."""
    rows = pq.read_table(answers).to_pylist()
    assert [(row["serial"], row["index"]) for row in rows] == [
        (serial, index) for serial in range(8) for index in range(4)
    ]
    even = [len(row["response"]) % 2 == 0 for row in rows]
    best = [any(even[4 * problem : 4 * problem + 4]) for problem in range(8)]
    assert result["num_problems"] == 8
    for name, value in (("avg@4", sum(even) / 32), ("best@4", sum(best) / 8)):
        score = result["scores"][name]
        assert score["value"] == pytest.approx(value, abs=1e-12)
        assert 0 <= score["low"] <= value <= score["high"] <= 1
    assert result["scores"]["avg@4"]["low"] < result["scores"]["avg@4"]["high"]


@pytest.fixture(scope="module")
def of_the_run(bfloat16: Path) -> tuple[dict[str, Any], str]:
    return evaluated(bfloat16 / "run", bfloat16)


def test_a_run_is_evaluated_with_answers_and_intervals(bfloat16: Path, of_the_run):
    result, said = of_the_run
    assert_scores_are_those_of_the_answers(result, bfloat16 / "run" / "eval" / result["answers"])
    assert "95 % interval" in said and "avg@4" in said


@pytest.mark.full
def test_its_last_checkpoint_has_the_same_scores_and_the_first_model_has_others(
    bfloat16: Path, of_the_run, wide: Path, tmp_path: Path
):
    """Each is loaded by an engine of its own."""
    checkpoint = bfloat16 / "run" / "checkpoints" / "step_000002"
    same, _ = evaluated(checkpoint, tmp_path)
    assert same["scores"] == of_the_run[0]["scores"]
    assert same["length_mean"] == of_the_run[0]["length_mean"]
    first, _ = evaluated(wide, tmp_path, tmp_path / "first.json")
    assert_scores_are_those_of_the_answers(first, tmp_path / first["answers"])
    answers = [
        pq.read_table(path)["response"].to_pylist()
        for path in (
            bfloat16 / "run" / "eval" / of_the_run[0]["answers"],
            checkpoint / "eval" / same["answers"],
            tmp_path / first["answers"],
        )
    ]
    assert answers[0] == answers[1] != answers[2]
