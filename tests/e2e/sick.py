"""A plugin: a learner that falls ill in one step, as GRPO_TEST_SICK says.

weight:5     before optimizer step 5 one weight becomes nan, the first time that a run gets there
             (the file GRPO_TEST_SICK_MARK says that it did)
gradient:5   in optimizer step 5 the loss of the answers with the largest advantage is infinite
"""

import os
import sys
from pathlib import Path
from typing import Any

import torch

from grpo.algo import SURROGATES
from grpo.algo.surrogate import ppo_clip

_KIND, _, _STEP = os.environ.get("GRPO_TEST_SICK", "none:0").partition(":")
_MARK = Path(os.environ.get("GRPO_TEST_SICK_MARK", "/"))
_under_way = {"step": 0}


def _fall_ill(rank: type[Any]) -> None:
    well = rank.step

    def step(self: Any, index: int, number: int) -> dict[str, float]:
        _under_way["step"] = number + 1
        if _KIND == "weight" and number + 1 == int(_STEP) and not _MARK.exists():
            _MARK.touch()
            self._engine.optimizer.fp32_partitioned_groups_flat[0].data[3] = torch.nan
        return well(self, index, number)

    rank.step = step


# Imported by the driver, the verifier's workers and, in the middle of its own start, the learner.
if (_learner := sys.modules.get("grpo.learner.rank")) is not None:
    _fall_ill(_learner.LearnerRank)


@SURROGATES.register("sick_clip")
def sick_clip(
    logprobs_T: torch.Tensor,
    old_logprobs_T: torch.Tensor,
    advantages_N: torch.Tensor,
    row_T: torch.Tensor,
) -> torch.Tensor:
    objective_T = ppo_clip(logprobs_T, old_logprobs_T, advantages_N, row_T)
    if _KIND != "gradient" or _under_way["step"] != int(_STEP):
        return objective_T
    largest_N = advantages_N == advantages_N.max()
    return torch.where(largest_N[row_T], objective_T * torch.inf, objective_T)
