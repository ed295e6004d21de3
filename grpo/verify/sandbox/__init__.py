"""Where programs under test run, cut off from the machine (docs/sandbox.md)."""

from grpo.verify.sandbox.host import Allowance, Outcome, Run, Sandbox, run_together
from grpo.verify.sandbox.launch import LevelName, Limits, package_entries
from grpo.verify.sandbox.probe import Level, choose_level, level, why_not

__all__ = [
    "Allowance",
    "Level",
    "LevelName",
    "Limits",
    "Outcome",
    "Run",
    "Sandbox",
    "choose_level",
    "level",
    "package_entries",
    "run_together",
    "why_not",
]
