"""Shapes and settings that the tests of the plan share."""

import json
from typing import Any

from transformers import Qwen3Config

from grpo.learner.flops import ModelShape
from grpo.learner.memory import LearnerSetting
from grpo.learner.shapes import known_models

QWEN3_06B: dict[str, Any] = json.loads(known_models()["Qwen/Qwen3-0.6B"].read_text())
PARAMETERS = 596_049_920  # of Qwen3-0.6B
SHAPE = ModelShape.of(Qwen3Config.from_dict(QWEN3_06B))


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
