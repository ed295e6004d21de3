"""Weights from the ZeRO-3 learner to the running vLLM engines, without touching the disk."""
