"""A run over two hosts, which lose their power at once, and go on: its figures are those of a run
on one."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.hosts import Hosts, why_not

pytestmark = pytest.mark.full

ROOT = Path(__file__).parents[2]
GRPO = Path(sys.executable).with_name("grpo")
STEPS, KILLED_AFTER = 5, 3
# What depends on the clock or on memory, by its beginning; all else is computed.
MEASURED = ("time", "throughput/", "goodput/", "memory/", "sync/bytes", "learn/tflops")


def command(folder: Path, model: Path) -> list[str]:
    """The demo, small: two engines, two ranks, weights by gloo wherever they are."""
    return [
        str(GRPO), "train", "recipes/tiny_cpu.yaml", "name=run", f"output={folder}",
        f"model.path={model}", "plugins=[tests.e2e.rewards]", "verifier={name: even_length}",
        "rollout.prompts=8", "rollout.group_size=4", "rollout.max_tokens=24",
        "rollout.engines=2", "learner.ranks=2", "sync.transport=gloo", "eval.suite=null",
        f"schedule.steps={STEPS}", "checkpoint.every=2", "logging.wandb=off",
    ]  # fmt: skip


def metrics(folder: Path) -> list[dict[str, float]]:
    path = folder / "run" / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def wait_until(condition: Callable[[], bool], run: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 600
    while not condition():
        assert run.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


@dataclass(frozen=True)
class Story:
    """here: the run on one host. seen: commands of the processes on the second of two hosts"""

    here: Path
    there: Path
    seen: list[str]
    told: str


@pytest.fixture(scope="module")
def story(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    if (reason := why_not()) is not None:
        pytest.skip(reason)
    here, there = tmp_path_factory.mktemp("one-host"), tmp_path_factory.mktemp("two-hosts")
    model = models["tied"]
    for_ray = {"PYTHONPATH": str(ROOT)}
    with Hosts(there) as hosts:
        # Only the driver is told the interface: the workers hear of it from the driver.
        told = for_ray | {"RAY_ADDRESS": hosts.ray_address, "GLOO_SOCKET_IFNAME": "eth0"}
        log = there / "driver.txt"
        hosts.start_ray(for_ray)
        run = hosts.run(0, command(there, model), log, told, ROOT)
        wait_until(lambda: len(metrics(there)) >= KILLED_AFTER, run, log)
        seen = list(hosts.processes(1).values())
        hosts.kill()
        run.wait()
        log = there / "resumed.txt"
        hosts.start_ray(for_ray)
        run = hosts.run(0, command(there, model), log, told, ROOT)
        wait_until(lambda: len(metrics(there)) >= STEPS, run, log)
        assert run.wait(timeout=120) == 0, log.read_text()
        hosts.kill()
    alone = subprocess.run(
        command(here, model), cwd=ROOT, env={**os.environ, **for_ray, "RAY_ADDRESS": "local"},
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert alone.returncode == 0, alone.stdout + alone.stderr
    yield Story(here, there, seen, log.read_text())


def test_the_second_host_has_a_learner_rank_and_an_engine(story: Story):
    assert any("ray::_Host" in process for process in story.seen), story.seen
    assert any("ray::_AsyncHost" in process for process in story.seen), story.seen


def test_a_run_over_two_hosts_that_lost_their_power_goes_on(story: Story):
    assert "resumed after step 2 " in story.told
    assert [line["step"] for line in metrics(story.there)] == list(range(1, STEPS + 1))


def test_its_figures_are_those_of_a_run_on_one_host(story: Story):
    def computed(line: dict[str, Any]) -> dict[str, float]:
        return {key: value for key, value in line.items() if not key.startswith(MEASURED)}

    pairs = zip(metrics(story.here), metrics(story.there), strict=True)
    for one, two in pairs:
        expected = computed(one)
        assert {"reward/mean", "learn/loss", "learn/grad_norm", "mismatch/mean_abs"} <= set(
            expected
        )
        assert computed(two) == pytest.approx(expected, rel=1e-6, abs=1e-6)
