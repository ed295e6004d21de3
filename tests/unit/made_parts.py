"""The parts of a run as one object of stand-ins, of which a test names those that matter to it."""

from pathlib import Path
from typing import Any
from unittest.mock import Mock

from grpo.store.board import NullBoard
from grpo.store.checkpoint import RunFolder
from grpo.store.log import MetricsLog
from grpo.train.opened import Opened
from grpo.train.shadows import ShadowVerifiers


def opened(folder: Path, part: Any, **named: Any) -> Opened:
    """A run in `folder`; `part` stands for every part that is not named. Its metrics are real."""
    stand_ins: dict[str, Any] = dict.fromkeys(
        [
            *("tokenizer", "stream", "verifier", "rollouts", "learner"),
            *("sync", "collector", "policy_update"),
        ],
        part,
    )
    parts = stand_ins | {
        "cluster": Mock(),
        "colocated": False,
        "max_model_len": 32,
        "shadows": ShadowVerifiers({}, 1.0),
        "log": MetricsLog(RunFolder(folder).metrics),
        "board": NullBoard(),
    }
    return Opened(**(parts | named))
