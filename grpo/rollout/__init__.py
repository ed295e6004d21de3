"""Sampling: one vLLM AsyncLLM per rollout worker."""
