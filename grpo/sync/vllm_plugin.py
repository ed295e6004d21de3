"""vLLM loads this in each of its processes (entry point group `vllm.general_plugins`)."""

from contextlib import suppress

BACKEND = "grpo_gloo"


def register() -> None:
    """Makes the gloo transport known to vLLM's weight-transfer factory. Safe to call twice."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    with suppress(ValueError):  # registered already
        WeightTransferEngineFactory.register_engine(
            BACKEND, "grpo.sync.vllm_gloo", "GlooWeightTransferEngine"
        )
