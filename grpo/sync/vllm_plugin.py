"""vLLM loads this in each of its processes (entry point group `vllm.general_plugins`)."""

import multiprocessing
import os
from contextlib import suppress

from grpo.parent import die_with_parent
from grpo.rollout.engine import OURS
from grpo.sync.transport import BACKENDS


def register() -> None:
    """Makes our transports known to vLLM's weight-transfer factory. The core of an engine of ours,
    and its workers, are made to end with the process that started them: vLLM's own way is to be
    told by it. Safe to call twice."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    for transport in ("gloo", "shm"):
        with suppress(ValueError):  # registered already
            WeightTransferEngineFactory.register_engine(
                BACKENDS[transport], "grpo.sync.vllm_host", "HostWeightTransferEngine"
            )
    starter = multiprocessing.parent_process()
    if OURS in os.environ and starter is not None and starter.pid is not None:
        die_with_parent(starter.pid)
