"""Whether an engine has the learner's weights: both score one sequence of tokens, and what lies
between their logprobs is judged by what rounding can explain."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

# The share of tokens that the second bound of bfloat16 looks at: all but the furthest tenth, where
# unlikely tokens stand that rounding alone may move by a nat.
_HIGH = 0.9
# The default bounds, in nats.
FLOAT32_LARGEST = 1e-3
BFLOAT16_MEAN = 0.1


@dataclass(frozen=True, slots=True)
class Apart:
    """How far the logprobs of one sequence lie apart, in nats: the mean over its tokens, the
    90th percentile and the largest, with its token's position, from 1, and both values there."""

    mean: float
    high: float
    largest: float
    position: int
    learner: float
    engine: float

    @classmethod
    def between(cls, learner: Sequence[float], engine: Sequence[float]) -> "Apart":
        apart = [abs(a - b) for a, b in zip(learner, engine, strict=True)]
        furthest = apart.index(max(apart))
        high = sorted(apart)[math.ceil(_HIGH * len(apart)) - 1]
        return cls(
            mean=math.fsum(apart) / len(apart),
            high=high,
            largest=apart[furthest],
            position=furthest + 1,
            learner=learner[furthest],
            engine=engine[furthest],
        )


@dataclass(frozen=True, slots=True)
class Bounds:
    """What rounding can explain, in nats; None where a statistic is not looked at."""

    mean: float | None = None
    high: float | None = None
    largest: float | None = None

    @classmethod
    def of(cls, dtype: str, tolerance: float | None = None) -> "Bounds":
        """In float32 every token counts. In bfloat16 single tokens are far apart where nothing is
        wrong, so the mean is bounded, and the 90th percentile by three times as much; how both
        defaults were found stands in docs/performance.md. `tolerance`: in place of the default for
        the largest difference in float32, for the mean in bfloat16."""
        if dtype == "float32":
            return cls(largest=tolerance or FLOAT32_LARGEST)
        mean = tolerance or BFLOAT16_MEAN
        return cls(mean=mean, high=3 * mean)

    def fault(self, apart: Apart) -> str | None:
        """The first statistic that is out of bounds, in words."""
        for bound, value, what in (
            (self.largest, apart.largest, "at one token"),
            (self.mean, apart.mean, "on average"),
            (self.high, apart.high, "at the 90th percentile"),
        ):
            if bound is not None and not value <= bound:
                return f"{value:.3g} nats apart {what} (tolerance {bound:g})"
        return None


def not_finite(logprobs: Sequence[float]) -> str | None:
    """Describes the first value that is not finite, with its position; None if all are finite."""
    for position, value in enumerate(logprobs, start=1):
        if not math.isfinite(value):
            return f"{value} at token {position} of its check sequence"
    return None
