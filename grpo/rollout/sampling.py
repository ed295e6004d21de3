"""How answers are drawn, and from which seeds."""

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sampling:
    """`top_k` 0 is off; temperature 0 is greedy."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0


def group_seed(run_seed: int, step: int, serial: int) -> int:
    """The seed of a group's first sibling; sibling i adds i. Equal arguments give equal answers.

    Seeds of different groups stand at least 65,536 apart.
    """
    digest = hashlib.blake2b(f"{run_seed}/{step}/{serial}".encode(), digest_size=5).digest()
    return int.from_bytes(digest, "big") << 16
