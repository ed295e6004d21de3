"""What an evaluation says of a model: avg@k, pass@k, best@k, maj@k, with intervals. Pure.

Shape letter: P problems of a benchmark.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RIGHT = 1.0  # the reward of a right answer; anything below, part of the tests included, is wrong
_CHUNK_VALUES = 1_000_000
_RESAMPLES = 10_000


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


def best_at_k(rewards: Sequence[float], k: int) -> float:
    """The expected highest reward among k answers drawn without return from the sampled ones.

    In ascending order, reward i (from 0) is the highest of C(i, k - 1) of the C(n, k) draws. For
    rewards of 0 and 1 this is pass@k.
    """
    n = len(rewards)
    if not 1 <= k <= n:
        raise ValueError(f"best@{k} needs 1 <= k <= the {n} samples")
    draws = math.comb(n, k)
    return math.fsum(r * (math.comb(i, k - 1) / draws) for i, r in enumerate(sorted(rewards)))


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


def problem_scores(
    rewards: Sequence[Sequence[float]], parsed: Sequence[Sequence[str]]
) -> dict[str, list[float]]:
    """Per score its value for each of the P problems, all with the same number K of answers:
    avg@K, pass@k for the powers of two k <= K, best@K and maj@K."""
    if not rewards:
        raise ValueError("no problems to score")
    num_samples = len(rewards[0])
    for number, (given, answers) in enumerate(zip(rewards, parsed, strict=True)):
        if not len(given) == len(answers) == num_samples > 0:
            raise ValueError(
                f"problem {number} has {len(given)} rewards and {len(answers)} answers, "
                f"the first one {num_samples}"
            )
    correct = [[reward == RIGHT for reward in given] for given in rewards]
    scores = {f"avg@{num_samples}": [sum(marks) / num_samples for marks in correct]}
    k = 1
    while k <= num_samples:
        scores[f"pass@{k}"] = [pass_at_k(num_samples, sum(marks), k) for marks in correct]
        k *= 2
    scores[f"best@{num_samples}"] = [best_at_k(given, num_samples) for given in rewards]
    scores[f"maj@{num_samples}"] = [
        float(majority(answers, marks)) for answers, marks in zip(parsed, correct, strict=True)
    ]
    return scores


def score_problems(
    rewards: Sequence[Sequence[float]], parsed: Sequence[Sequence[str]]
) -> dict[str, Score]:
    """The means of `problem_scores` over problems, each with its interval."""
    return {
        name: mean_score(name, [values]) for name, values in problem_scores(rewards, parsed).items()
    }


def mean_score(name: str, benchmarks: Sequence[Sequence[float]]) -> Score:
    """The mean over benchmarks of the mean over each one's problems, and its interval.

    Every benchmark counts the same, whatever its size; problems are resampled within each.
    """
    low, high = bootstrap_interval(*benchmarks)
    means = [math.fsum(values) / len(values) for values in benchmarks]
    return Score(name, math.fsum(means) / len(means), low, high)


def bootstrap_interval(
    *benchmarks: Sequence[float], level: float = 0.95, resamples: int = _RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap of the mean over problems; the same numbers for the same seed.

    Of several lists of values: of the mean of their means, each resampled on its own.
    """
    means = np.zeros(resamples)
    for number, values in enumerate(benchmarks):
        means += _resampled_means(values, resamples, [seed, number]) / len(benchmarks)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _resampled_means(values: Sequence[float], resamples: int, seed: list[int]) -> np.ndarray:
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
    return means
