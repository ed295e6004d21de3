"""Rule-based verifiers: (response, reference answer, **options) -> Verdict."""

from grpo.verify import code, countdown, exact, math, within
from grpo.verify.registry import VERIFIERS

__all__ = ["VERIFIERS", "code", "countdown", "exact", "math", "within"]
