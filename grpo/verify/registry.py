"""Where verifiers register, apart from the package so that they can import it."""

from collections.abc import Callable

from grpo.registry import Registry
from grpo.types import Verdict

# (response: str, answer: str, **options) -> Verdict. Where a verifier has a keyword of that name,
# it is also told
#   problem: str     what was asked, as the row of the data has it
#   truncated: bool  that the response was cut off at the limit of its tokens
#   thinking: bool   that the prompt has opened the thinking: the response begins within it
VERIFIERS: Registry[Callable[..., Verdict]] = Registry(
    "verifier", supplied=("problem", "truncated", "thinking")
)
