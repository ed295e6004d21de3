"""What an evaluation says of a model: avg@k, pass@k, maj@k, each with its interval. Pure."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_CHUNK_VALUES = 1_000_000


@dataclass(frozen=True, slots=True)
class Score:
    """A mean over problems, with the bounds of its bootstrap interval."""

    name: str
    value: float
    low: float
    high: float


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """The chance that k answers drawn without return from the sampled ones hold a correct one.

    Unbiased (Chen et al. 2021): 1 - C(n - c, k) / C(n, k).
    """
    if not 1 <= k <= num_samples:
        raise ValueError(f"pass@{k} needs 1 <= k <= the {num_samples} samples")
    if not 0 <= num_correct <= num_samples:
        raise ValueError(f"{num_correct} correct of {num_samples} samples")
    return 1 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)


def majority(parsed: Sequence[str], correct: Sequence[bool]) -> bool:
    """Whether the most frequent non-empty answer is correct; the first seen wins a tie.

    No answer at all is wrong. Equal answers count as one, right if any of them was judged so
    (a verifier may time out on one of them).
    """
    votes = Counter(answer for answer in parsed if answer)
    if not votes:
        return False
    winner = max(votes, key=lambda answer: votes[answer])  # a Counter keeps order of appearance
    return any(right for answer, right in zip(parsed, correct, strict=True) if answer == winner)


def bootstrap_interval(
    values: Sequence[float], level: float = 0.95, resamples: int = 10000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap of the mean over problems; the same numbers for the same seed."""
    if not values:
        raise ValueError("no values to resample")
    values_P = np.asarray(values, dtype=np.float64)
    rng = np.random.default_rng(seed)
    chunk = max(1, _CHUNK_VALUES // len(values_P))
    means = np.empty(resamples)
    for start in range(0, resamples, chunk):
        rows = min(chunk, resamples - start)
        drawn = rng.integers(0, len(values_P), size=(rows, len(values_P)))
        means[start : start + rows] = values_P[drawn].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def score_problems(correct: list[list[bool]], parsed: list[list[str]]) -> dict[str, Score]:
    """avg@K, pass@k for the powers of two k <= K, and maj@K over problems with K answers each."""
    if not correct:
        raise ValueError("no problems to score")
    num_samples = len(correct[0])
    for number, (marks, answers) in enumerate(zip(correct, parsed, strict=True)):
        if not len(marks) == len(answers) == num_samples > 0:
            raise ValueError(
                f"problem {number} has {len(marks)} marks and {len(answers)} answers, "
                f"the first one {num_samples}"
            )
    per_problem = {f"avg@{num_samples}": [sum(marks) / num_samples for marks in correct]}
    k = 1
    while k <= num_samples:
        per_problem[f"pass@{k}"] = [pass_at_k(num_samples, sum(marks), k) for marks in correct]
        k *= 2
    per_problem[f"maj@{num_samples}"] = [
        float(majority(answers, marks)) for marks, answers in zip(correct, parsed, strict=True)
    ]
    return {name: _score(name, values) for name, values in per_problem.items()}


def _score(name: str, values: list[float]) -> Score:
    low, high = bootstrap_interval(values)
    return Score(name, math.fsum(values) / len(values), low, high)
