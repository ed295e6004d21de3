"""How many examples a property is tried on."""

import os

from hypothesis import settings

# `make check`, before every commit, tries a quarter of them; `make test` all.
_SHARE = 0.25 if os.environ.get("GRPO_TESTS") == "quick" else 1.0


def examples(count: int) -> settings:
    """As a decorator: up to `count` examples, with no deadline for any one of them."""
    return settings(max_examples=max(5, round(count * _SHARE)), deadline=None)
