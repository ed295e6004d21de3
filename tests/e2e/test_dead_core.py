"""vLLM's core is a process of its own, which may die while the engine waits for its answer."""

import os
import subprocess
import sys
import time
from pathlib import Path
from signal import SIGKILL, SIGSTOP

import pytest

from grpo.errors import WorkerFault
from grpo.fleet.cluster import Cluster, gather
from tests.e2e.conftest import start_engines
from tests.e2e.test_faults import is_named
from tests.e2e.test_run import relatives


def cores() -> set[int]:
    return {pid for pid in relatives(os.getpid()) if is_named(pid, "EngineCore")}


def test_a_call_whose_core_dies_over_it_fails_within_seconds(
    cluster: Cluster, models: dict[str, Path]
):
    """It has taken the call, and vLLM itself would wait for its answer for ever."""
    before = cores()
    (engine,) = start_engines(cluster, models["tied"]).workers
    (core,) = cores() - before
    os.kill(core, SIGSTOP)
    call = engine.call("pause")
    time.sleep(2)
    assert not call.future.done()
    os.kill(core, SIGKILL)
    with pytest.raises(WorkerFault, match="rollout-0 failed in pause: EngineDeadError"):
        gather([call], 60)
    engine.kill()


FROZEN = """
import os, signal, sys
from pathlib import Path
from grpo.fleet.cluster import Cluster
from tests.e2e.conftest import start_engines
from tests.e2e.test_dead_core import cores
with Cluster(Path(sys.argv[2])) as cluster:
    start_engines(cluster, Path(sys.argv[1]))
    (core,) = cores()
    engine = int(Path(f"/proc/{core}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(engine, signal.SIGSTOP)
print("core", core)
"""


def test_a_core_ends_with_an_engine_that_is_frozen_when_its_run_ends(
    models: dict[str, Path], tmp_path: Path
):
    """The engine cannot tell it, and nobody else would: it would stay, with all its memory."""
    command = [sys.executable, "-c", FROZEN, str(models["tied"]), str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    core = int(ended.stdout.split()[-1])
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and is_named(core, "EngineCore"):
        time.sleep(0.1)
    assert not is_named(core, "EngineCore")
