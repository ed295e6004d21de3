"""Weights from the ZeRO-3 learner into the running vLLM engines, never through the disk."""
