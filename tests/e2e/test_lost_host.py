"""One of two hosts loses its power in the middle of a run: in the same command the run goes on, on
the host that is left, and ends as a run which only ever had that one."""

import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.hosts import Hosts, why_not
from tests.e2e.test_two_hosts import MEASURED, ROOT, command, metrics, wait_until

pytestmark = pytest.mark.full

STEPS, KILLED_AFTER, SAVED = 6, 3, 2
LONGER = f"schedule.steps={STEPS}"


@dataclass(frozen=True)
class Story:
    """code, told: of the run that lost a host. seconds: from the loss until it is under way again.
    here: the folder of the run on one host"""

    here: Path
    there: Path
    code: int
    told: str
    seconds: float


@pytest.fixture(scope="module")
def story(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    if (reason := why_not()) is not None:
        pytest.skip(reason)
    here, there = tmp_path_factory.mktemp("one-host"), tmp_path_factory.mktemp("lost-host")
    model = models["tied"]
    for_ray = {"PYTHONPATH": str(ROOT)}
    with Hosts(there) as hosts:
        told = for_ray | {"RAY_ADDRESS": hosts.ray_address, "GLOO_SOCKET_IFNAME": "eth0"}
        log = there / "driver.txt"
        hosts.start_ray(for_ray)
        run = hosts.run(0, [*command(there, model), LONGER], log, told, ROOT)
        wait_until(lambda: len(metrics(there)) >= KILLED_AFTER, run, log)
        hosts.kill(1)
        lost = time.monotonic()
        wait_until(lambda: "goes on without" in log.read_text(), run, log)
        seconds = time.monotonic() - lost
        code = run.wait(timeout=300)
    alone = subprocess.run(
        [*command(here, model), LONGER], cwd=ROOT,
        env={**os.environ, **for_ray, "RAY_ADDRESS": "local"},
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert alone.returncode == 0, alone.stdout + alone.stderr
    yield Story(here, there, code, log.read_text(), seconds)


def test_a_run_that_lost_a_host_ends_well_in_the_same_command(story: Story):
    assert story.code == 0, story.told
    assert "Traceback" not in story.told, story.told
    # The host may have had the time for one step more.
    assert any(f"resumed after step {step} " in story.told for step in (SAVED, SAVED + 2))
    assert story.seconds < 240, story.told


def test_it_says_which_host_is_gone_and_where_its_workers_are_now(story: Story):
    assert "the run goes on without 10.77.0.2: its workers are on 10.77.0.1 now" in story.told


def test_every_step_is_there_once_with_the_figures_of_a_run_on_one_host(story: Story):
    pairs = zip(metrics(story.here), metrics(story.there), strict=True)
    for step, (one, two) in enumerate(pairs, start=1):
        assert one["step"] == two["step"] == step
        expected = {k: v for k, v in one.items() if not k.startswith((*MEASURED, "heal/"))}
        found = {key: two[key] for key in expected}
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-6)
