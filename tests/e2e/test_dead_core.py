"""vLLM's core is a process of its own, which may die while the engine waits for its answer."""

import os
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
