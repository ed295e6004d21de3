"""A learner rank that shows what it holds by DeepSpeed's own reading, and saves as DeepSpeed does.

Its sub-groups are small, so that there are several, of another number for each number of ranks, and
some of its parameters are larger than those that DeepSpeed keeps gathered.
"""

from pathlib import Path
from typing import Any

import torch
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

from grpo.config.recipe import LearnerConfig
from grpo.learner import rank as learner_rank
from grpo.learner.lora import base_sums
from grpo.learner.rank import LearnerRank

_SUB_GROUP, _OF_ADAPTERS = 8_000, 500
_PERSISTS = 3_000  # elements; some parameters stay gathered, and others do not
_config = learner_rank.zero_config


def _small_groups(learner: LearnerConfig, dtype: str) -> dict[str, Any]:
    config = _config(learner, dtype)
    size = _SUB_GROUP if learner.lora is None else _OF_ADAPTERS
    config["zero_optimization"]["sub_group_size"] = size
    config["zero_optimization"]["stage3_param_persistence_threshold"] = _PERSISTS
    return config


learner_rank.zero_config = _small_groups


class WholeRank(LearnerRank):
    def num_groups(self) -> int:
        return len(self._engine.optimizer.fp16_groups)

    def whole(self) -> dict[str, torch.Tensor]:
        """Master, moments where there are some, and weight of every parameter that trains. Every
        rank gathers all of them."""
        found: dict[str, torch.Tensor] = {}
        states = self._engine.optimizer.optimizer.state.values()
        kinds = [key for key in next(iter(states), {}) if key.startswith("exp_avg")]
        for name, parameter in self._trained.items():
            master: Any = safe_get_full_fp32_param(parameter)
            found[f"{name} master"] = master.clone()
            for kind in kinds:
                moment: Any = safe_get_full_optimizer_state(parameter, kind)
                found[f"{name} {kind}"] = moment.clone()
        weights = self._source.whole(keep=True)
        return found | {f"{name} weight": tensor for name, tensor in weights.items()}

    def save_as_deepspeed_does(self, folder: Path) -> None:
        """The form that checkpoints once had."""
        self._engine.save_checkpoint(
            str(folder / "zero"),
            tag="zero",
            client_state={"base": base_sums(self._engine.module)} if self._lora else {},
            exclude_frozen_parameters=True,
        )


def make_rank(*args: Any) -> WholeRank:
    return WholeRank(*args)
