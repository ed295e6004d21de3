"""Shapes and settings that the tests of the plan share."""

from typing import Any

from transformers import Qwen3Config

from grpo.learner.flops import ModelShape
from grpo.learner.memory import LearnerSetting

QWEN3_06B: dict[str, Any] = {
    "model_type": "qwen3",
    "hidden_size": 1024,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 3072,
    "vocab_size": 151_936,
    "max_position_embeddings": 40_960,
    "tie_word_embeddings": True,
}
PARAMETERS = 596_049_920  # of Qwen3-0.6B
SHAPE = ModelShape.of(Qwen3Config(**{k: v for k, v in QWEN3_06B.items() if k != "model_type"}))


def setting(**changes: Any) -> LearnerSetting:
    """Qwen3-0.6B in bfloat16 on one GPU, micro-batches of 16,384 tokens."""
    values: dict[str, Any] = {
        "shape": SHAPE,
        "dtype": "bfloat16",
        "device": "cuda",
        "ranks": 1,
        "tokens": 16_384,
        "targets": 16_384,
    }
    return LearnerSetting(**values | changes)
