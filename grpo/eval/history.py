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
    for name in scores[max(scores)]:
        pairs = _comparable(scores, name)
        average, best = (_track([(step, pair[i]) for step, pair in pairs]) for i in (0, 1))
        tracked[name] = average, best
    return tracked


def series(evaluations: Mapping[int, Sequence[BenchmarkResult]], metric: str) -> dict[int, float]:
    """A metric, by the name that a run logs it under, at the newest evaluation that has it and at
    those before it that can be compared with that one; {} where none has it."""
    scores = {step: _by_benchmark(results) for step, results in evaluations.items()}
    for name in {name: None for found in scores.values() for name in found}:
        if metric in _names(name):
            index = _names(name).index(metric)
            return {step: pair[index].value for step, pair in _comparable(scores, name)}
    return {}


def metric_names(benchmarks: Sequence[str]) -> list[str]:
    """What `series` may be asked for where a suite has benchmarks of these names."""
    means = ["average"] if len(benchmarks) > 1 else []
    return [name for benchmark in [*benchmarks, *means] for name in _names(benchmark)]


def _names(benchmark: str) -> tuple[str, str]:
    return f"eval/{benchmark}/avg", f"eval/{benchmark}/best"


def _comparable(
    scores: Mapping[int, Mapping[str, tuple[Score, Score]]], name: str
) -> list[tuple[int, tuple[Score, Score]]]:
    """A benchmark's scores by step, of the evaluations with as many samples as the newest."""
    pairs = [(step, found[name]) for step, found in sorted(scores.items()) if name in found]
    wanted = [score.name for score in pairs[-1][1]]
    return [(step, pair) for step, pair in pairs if [score.name for score in pair] == wanted]


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
