"""Where verifiers register, apart from the package so that they can import it."""

from collections.abc import Callable

from grpo.registry import Registry
from grpo.types import Verdict

# (response: str, answer: str, **options) -> Verdict
VERIFIERS: Registry[Callable[..., Verdict]] = Registry("verifier")
