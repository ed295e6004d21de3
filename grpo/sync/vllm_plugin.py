"""vLLM loads this in each of its processes (entry point group `vllm.general_plugins`)."""

from contextlib import suppress

from grpo.sync.transport import BACKENDS


def register() -> None:
    """Makes our transports known to vLLM's weight-transfer factory. Safe to call twice."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    for transport in ("gloo", "shm"):
        with suppress(ValueError):  # registered already
            WeightTransferEngineFactory.register_engine(
                BACKENDS[transport], "grpo.sync.vllm_host", "HostWeightTransferEngine"
            )
