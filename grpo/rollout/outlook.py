"""How far sampling is, in answers and tokens, and how long the rest takes."""

import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

from grpo.progress import ProgressBar, duration


class SoFar(NamedTuple):
    """Of some answers: how many have ended, and the tokens of all that have begun."""

    ended: int = 0
    tokens: int = 0

    @classmethod
    def of(cls, parts: Iterable["SoFar"]) -> "SoFar":
        """All parts together."""
        ended = tokens = 0
        for part in parts:
            ended, tokens = ended + part.ended, tokens + part.tokens
        return cls(ended, tokens)


class Outlook:
    """Tells a bar how far sampling is. `mean`: tokens of an answer as a rule, where that is known.

    Answers that are still under way are the longer ones, so the mean of those that have ended is
    too short. All tokens over the answers that have ended is the likeliest mean where each token is
    as likely the last one as any other. Before the first has ended only the limit is known.
    """

    def __init__(
        self,
        max_tokens: int,
        mean: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._max_tokens, self._mean, self._clock = max_tokens, mean, clock
        self._began_s = clock()
        self._before: int | None = None  # tokens that were there at the first look

    def show(self, bar: ProgressBar, total: int, so_far: SoFar, more: str = "") -> None:
        """`more`: what else is to be said of it."""
        if self._before is None:
            self._before = so_far.tokens
        elapsed_s, sampled = self._clock() - self._began_s, so_far.tokens - self._before
        rate = sampled / elapsed_s if elapsed_s > 0 else 0.0
        detail = f"{so_far.tokens:,} tokens"
        if rate > 0:
            detail += f", {rate:,.0f} tokens/s"
        bar.update(so_far.ended, total, f"{detail}{more}", self._left(total, so_far, sampled, rate))

    def _left(self, total: int, so_far: SoFar, sampled: int, rate: float) -> str:
        left = total - so_far.ended
        if not left:
            return duration(0.0)
        # Until then prompts are being read, and the rate says nothing.
        if sampled < left or rate <= 0:
            return "?"
        mean = self._mean_length(total, so_far)
        rest = max(left, total * (mean or self._max_tokens) - so_far.tokens)
        at_most = "" if mean else "at most "
        return f"{at_most}{duration(rest / rate)}"

    def _mean_length(self, total: int, so_far: SoFar) -> float | None:
        """What is known beforehand counts until half of the answers have ended."""
        if self._mean is not None and 2 * so_far.ended < total:
            return self._mean
        if not so_far.ended:
            return None
        return min(self._max_tokens, so_far.tokens / so_far.ended)
