"""A run's accuracy over its evaluations: first, peak and last."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from grpo.eval.result import BenchmarkResult, load, mean_of
from grpo.eval.scores import Score

_STEP_FILE = re.compile(r"step_(\d+)\.json")


def history(folder: Path) -> dict[int, list[BenchmarkResult]]:
    """A run's evaluations by step, in order, from the step_000020.json files of a folder."""
    found = {
        int(match[1]): path
        for path in folder.glob("step_*.json")
        if (match := _STEP_FILE.fullmatch(path.name))
    }
    return {step: load(found[step]) for step in sorted(found)}


@dataclass(frozen=True, slots=True)
class Tracked:
    """A score over a run: at its first and its last evaluation, and at its peak (the earliest,
    where several are equal)."""

    first: Score
    peak: Score
    peak_step: int
    last: Score


def track(
    evaluations: Mapping[int, Sequence[BenchmarkResult]],
) -> dict[str, tuple[Tracked, Tracked]]:
    """avg@k and best@k of every benchmark of the last evaluation, each with its own peak.

    With several benchmarks also of `average`, the mean over them, whose peak is that of the mean.
    Evaluations in which a benchmark, or a score of this name, is missing do not count; nor do
    results without best@k, as earlier versions wrote them.
    """
    scores = {step: _by_benchmark(results) for step, results in evaluations.items()}
    tracked: dict[str, tuple[Tracked, Tracked]] = {}
    for name, pair in scores[max(scores)].items():
        series = [
            (step, found[name])
            for step, found in sorted(scores.items())
            if name in found and [s.name for s in found[name]] == [s.name for s in pair]
        ]
        average, best = (_track([(step, p[index]) for step, p in series]) for index in (0, 1))
        tracked[name] = average, best
    return tracked


def _by_benchmark(results: Sequence[BenchmarkResult]) -> dict[str, tuple[Score, Score]]:
    scores = {
        result.name: (result.average, result.best)
        for result in results
        if any(name.startswith("best@") for name in result.scores)
    }
    if len(scores) > 1:
        pairs = list(scores.values())
        average, best = ([pair[index] for pair in pairs] for index in (0, 1))
        scores["average"] = mean_of(average, "avg"), mean_of(best, "best")
    return scores


def _track(series: Sequence[tuple[int, Score]]) -> Tracked:
    step, peak = max(series, key=lambda item: item[1].value)
    return Tracked(series[0][1], peak, step, series[-1][1])
