"""Equality of answers beyond math-verify's: small rules, each named in the verdict's reason.

tidy -> equal text? -> two plain numbers? -> rules, which cut and ask again -> math-verify
"""

from grpo.verify.equivalence.expressions import Options
from grpo.verify.equivalence.judge import RULES, judge, refusal

__all__ = ["RULES", "Options", "judge", "refusal"]
