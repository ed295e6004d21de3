"""Rule-based verifiers: (response, reference answer, **options) -> Verdict."""

from grpo.verify import exact, math
from grpo.verify.registry import VERIFIERS

__all__ = ["VERIFIERS", "exact", "math"]
