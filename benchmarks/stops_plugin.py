"""The plugin of stops.py's runs: chaos_plugin's reward and surrogate, and places to wait in. When
the folder GRPO_CHAOS_PLANTED holds a file of one of these names, the next one who comes there
replaces it by a file holding_NAME, and waits for some seconds:

hold_sampling     while the answers of a step are judged
hold_learning     in the loss of a micro-batch
hold_sync         before the weights are sent
hold_checkpoint   before the learner's state is written
hold_evaluation   while the answers of an evaluation are judged
"""

import os
import sys
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import torch

from benchmarks.chaos_plugin import clip, even_length
from grpo.algo import SURROGATES
from grpo.types import Verdict
from grpo.verify import VERIFIERS

HOLD_S = 3.0
_PLANTED = Path(os.environ.get("GRPO_CHAOS_PLANTED", "/nowhere"))


def _hold(where: str) -> None:
    try:
        (_PLANTED / f"hold_{where}").rename(_PLANTED / f"holding_{where}")
    except OSError:  # not planted, or another process was faster
        return
    time.sleep(HOLD_S)


@VERIFIERS.register("stops_sampled")
def sampled(response: str, answer: str) -> Verdict:
    _hold("sampling")
    return even_length(response, answer)


@VERIFIERS.register("stops_evaluated")
def evaluated(response: str, answer: str) -> Verdict:
    _hold("evaluation")
    return even_length(response, answer)


@SURROGATES.register("stops_clip")
def slow_clip(
    logprobs_T: torch.Tensor,
    old_logprobs_T: torch.Tensor,
    advantages_N: torch.Tensor,
    row_T: torch.Tensor,
) -> torch.Tensor:
    _hold("learning")
    return clip(logprobs_T, old_logprobs_T, advantages_N, row_T)


def _held(where: str, method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def held(*arguments: Any) -> Any:
        _hold(where)
        return method(*arguments)

    return held


# Imported by the driver, the verifier's workers and, in the middle of its own start, the learner.
if (_learner := sys.modules.get("grpo.learner.rank")) is not None:
    _rank = _learner.LearnerRank
    _rank.send = _held("sync", _rank.send)
    _rank.save = _held("checkpoint", _rank.save)
