"""What a group's own mean does to its advantages: closed forms for G answers, each right with
probability p, given that the group is mixed (S: neither all right nor all wrong).

HA-DW (arXiv 2601.08521) starts from these; `sign_conditional` is the sign-resolved form of its
Theorem 1. The product needs their inverse alone, `grpo.algo.bias.debias_factors`.
"""

import math


def _check(p: float, size: int) -> None:
    if not 0 < p < 1 or size < 2:
        raise ValueError(f"needs 0 < p < 1 and a group of at least 2, got p={p}, size={size}")


def mixed_probability(p: float, size: int) -> float:
    """P(S) = 1 - (1 - p)^G - p^G."""
    _check(p, size)
    return 1 - (1 - p) ** size - p**size


def mean_accuracy(p: float, size: int) -> float:
    """E[phat | S] = (p - p^G) / P(S) (eq. 32)."""
    return (p - p**size) / mixed_probability(p, size)


def accuracy_bias(p: float, size: int) -> float:
    """E[phat | S] - p (Lemma 2): positive for p < 1/2, negative above, 0 at 1/2 (Theorem 1).

    It is by how much the advantage r - phat of a given answer falls short of r - p.
    """
    return mean_accuracy(p, size) - p


def underestimate_probability(p: float, size: int, margin: float = 0.0) -> float:
    """P(phat > p + margin | S), the chance that advantages come out too small by more than
    `margin` >= 0 (Theorem 2, the side of p < 1/2)."""
    _check(p, size)
    if margin < 0:
        raise ValueError(f"needs margin >= 0, got {margin}")
    first = math.floor(size * (p + margin) + 1e-12) + 1
    terms = (math.comb(size, k) * p**k * (1 - p) ** (size - k) for k in range(first, size))
    return sum(terms) / mixed_probability(p, size)


def overestimate_probability(p: float, size: int, margin: float = 0.0) -> float:
    """P(phat < p - margin | S), the mirror image (Theorem 2, the side of p > 1/2)."""
    return underestimate_probability(1 - p, size, margin)


def sign_conditional(p: float, size: int) -> tuple[float, float]:
    """(E[r - phat | r = 1, S], E[r - phat | r = 0, S]); without the bias they were 1 - p and -p.

    ((G-1)/G) (1-p) / (1 - p^(G-1)) and -((G-1)/G) p / (1 - (1-p)^(G-1)).
    """
    _check(p, size)
    shrunk = (size - 1) / size
    right = shrunk * (1 - p) / (1 - p ** (size - 1))
    wrong = -shrunk * p / (1 - (1 - p) ** (size - 1))
    return right, wrong
