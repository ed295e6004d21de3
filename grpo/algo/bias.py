"""What takes the bias of a group's own mean off its advantages.

A group of G answers, each right with probability p, is used only if it is mixed: neither all right
nor all wrong. Given that, its mean is a biased estimate of p (arXiv 2601.08521, Theorem 1).
"""


def debias_factors(p: float, size: int) -> tuple[float, float]:
    """What takes E[r - phat | r, mixed] back to 1 - p for a right answer, (G/(G-1)) (1 - p^(G-1)),
    and to -p for a wrong one, (G/(G-1)) (1 - (1-p)^(G-1)).

    Raises ValueError unless 0 < p < 1 and `size`, G, is at least 2.
    """
    if not 0 < p < 1 or size < 2:
        raise ValueError(f"needs 0 < p < 1 and a group of at least 2, got p={p}, size={size}")
    grown = size / (size - 1)
    return grown * (1 - p ** (size - 1)), grown * (1 - (1 - p) ** (size - 1))
