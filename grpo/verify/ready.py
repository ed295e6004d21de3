"""Whether a verifier can judge here at all, asked before anything is sampled for it."""

from collections.abc import Mapping
from typing import Any

from grpo.verify.code import check_machine
from grpo.verify.registry import VERIFIERS


def check_verifier(
    name: str, options: Mapping[str, Any], timeout_s: float, timeout_key: str
) -> None:
    """Raises UserError for an unknown verifier, wrong options, a machine on which it cannot run or
    a deadline of one answer, `timeout_s` as `timeout_key` sets it, that leaves it no time."""
    VERIFIERS.bind(name, options)
    if name == "code":
        check_machine(options, timeout_s, timeout_key)
