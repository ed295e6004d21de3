"""The plugin of chaos.py's runs: a reward that a random model earns half of the time, and numbers
that are not finite, once, when the folder GRPO_CHAOS_PLANTED holds a file of this name:

nan_reward     the next answer is paid nan
nan_gradient   the next micro-batch has a loss of nan
nan_weight     before the next optimizer step one weight becomes nan
"""

import os
import sys
from pathlib import Path
from typing import Any

import torch

from grpo.algo import SURROGATES
from grpo.algo.surrogate import ppo_clip
from grpo.types import Verdict
from grpo.verify import VERIFIERS

_PLANTED = Path(os.environ.get("GRPO_CHAOS_PLANTED", "/nowhere"))


def _strikes(what: str) -> bool:
    """Whether it is planted. Whoever removes the file has the fault, nobody else."""
    try:
        (_PLANTED / what).unlink()
    except OSError:
        return False
    return True


@VERIFIERS.register("chaos_even_length")
def even_length(response: str, answer: str) -> Verdict:
    even = len(response) % 2 == 0
    reward = float("nan") if _strikes("nan_reward") else float(even)
    return Verdict(reward, response, "correct" if even else "wrong")


@SURROGATES.register("chaos_clip")
def clip(
    logprobs_T: torch.Tensor,
    old_logprobs_T: torch.Tensor,
    advantages_N: torch.Tensor,
    row_T: torch.Tensor,
) -> torch.Tensor:
    objective_T = ppo_clip(logprobs_T, old_logprobs_T, advantages_N, row_T)
    return objective_T * torch.nan if _strikes("nan_gradient") else objective_T


def _spoil_weights(rank: type[Any]) -> None:
    well = rank.step

    def step(self: Any, index: int, number: int) -> dict[str, float]:
        if _strikes("nan_weight"):
            self._engine.optimizer.fp32_partitioned_groups_flat[0].data[3] = torch.nan
        return well(self, index, number)

    rank.step = step


# Imported by the driver, the verifier's workers and, in the middle of its own start, the learner.
if (_learner := sys.modules.get("grpo.learner.rank")) is not None:
    _spoil_weights(_learner.LearnerRank)
