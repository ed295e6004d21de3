"""`grpo compare`: two results on the same problems, problem by problem."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from grpo.console import Screen
from grpo.errors import UserError
from grpo.eval.result import BenchmarkResult, load, rewards_and_answers
from grpo.eval.scores import Score, mean_score, problem_scores
from grpo.eval.store import Answered, read_answers

LENGTH = "length"
_SAME = 1e-12  # scores of a problem that differ by less are equal up to rounding


@dataclass(frozen=True, slots=True)
class Difference:
    """One score of one benchmark in two results.

    change: second minus first, with the interval of the mean of the paired differences
    better, worse: problems whose score is higher, or lower, in the second
    """

    benchmark: str
    score: str
    first: float
    second: float
    change: Score
    better: int
    worse: int

    @property
    def certain(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.change.low > 0 or self.change.high < 0


def compare(first: Path, second: Path, screen: Screen) -> list[Difference]:
    """Compares what two files of `grpo eval` have in common, and prints it."""
    pairs, left_out = _pairs(first, second)
    if left_out:
        screen.warn(f"in one of the files only, so not compared: {', '.join(left_out)}")
    differences: list[Difference] = []
    averages: list[tuple[list[float], list[float]]] = []
    for name, before, after in pairs:
        series = _series(before, after)
        averages.append(next(iter(series.values())))
        differences += [_difference(name, score, [pair]) for score, pair in series.items()]
    if len(pairs) > 1:
        differences.append(_difference("average", "avg", averages))
    _show(differences, first, second, screen)
    return differences


def _pairs(
    first: Path, second: Path
) -> tuple[list[tuple[str, list[Answered], list[Answered]]], list[str]]:
    """(benchmark, answers of the first, answers of the second), and what only one has."""
    befores, afters = ({result.name: result for result in load(path)} for path in (first, second))
    common = [name for name in befores if name in afters]
    if not common:
        raise UserError(
            f"{first} has {', '.join(befores)} and {second} has {', '.join(afters)}: "
            "no benchmark of the same name to compare"
        )
    pairs = []
    for name in common:
        before = _read(first, befores[name])
        after = _read(second, afters[name])
        _check_same_problems(name, before, after)
        pairs.append((name, before, after))
    return pairs, sorted(set(befores) ^ set(afters))


def _read(path: Path, result: BenchmarkResult) -> list[Answered]:
    if not result.answers:
        raise UserError(
            f"{path}: benchmark {result.name!r} names no file of answers, as earlier versions "
            "wrote it: run grpo eval again"
        )
    try:
        groups, _ = read_answers(path.parent / result.answers)
    except ValueError as error:
        raise UserError(
            f"{path}: its answers are needed for a comparison, but {error}: keep the folder beside "
            "the file, or run grpo eval again"
        ) from None
    if any(group.verdicts is None for group in groups):
        raise UserError(f"{path}: answers of benchmark {result.name!r} are not judged")
    return groups


def _check_same_problems(name: str, before: Sequence[Answered], after: Sequence[Answered]) -> None:
    if len(before) != len(after):
        raise UserError(
            f"benchmark {name!r} has {len(before)} problems in one file and {len(after)} in the "
            "other: only results on the same problems can be compared"
        )
    for one, other in zip(before, after, strict=True):
        if (one.serial, one.row_id, one.problem) != (other.serial, other.row_id, other.problem):
            raise UserError(
                f"benchmark {name!r}: row {one.serial} ({one.row_id!r}) of one file is row "
                f"{other.serial} ({other.row_id!r}) of the other, or another problem: only results "
                "on the same problems can be compared"
            )


def _series(
    before: Sequence[Answered], after: Sequence[Answered]
) -> dict[str, tuple[list[float], list[float]]]:
    """Per score the values of each problem: avg, what both files have by the same name, and the
    mean length in tokens where all are known."""
    ours, theirs = (problem_scores(*rewards_and_answers(groups)) for groups in (before, after))
    mine, other = next(iter(ours)), next(iter(theirs))  # avg@k is the first
    series = {mine if mine == other else f"{mine} / {other}": (ours[mine], theirs[other])}
    series |= {
        score: (ours[score], theirs[score]) for score in ours if score != mine and score in theirs
    }
    lengths = [_lengths(groups) for groups in (before, after)]
    if lengths[0] and lengths[1]:
        series[LENGTH] = lengths[0], lengths[1]
    return series


def _lengths(groups: Sequence[Answered]) -> list[float]:
    """The mean tokens of each problem's answers; [] where some are not known."""
    known = [group.lengths for group in groups if group.lengths]
    if len(known) < len(groups):
        return []
    return [math.fsum(lengths) / len(lengths) for lengths in known]


def _difference(
    benchmark: str, score: str, pairs: Sequence[tuple[list[float], list[float]]]
) -> Difference:
    """Over one benchmark's problems, or the mean over several benchmarks."""
    changes = [[b - a for a, b in zip(*pair, strict=True)] for pair in pairs]
    first, second = (
        math.fsum(math.fsum(pair[side]) / len(pair[side]) for pair in pairs) / len(pairs)
        for side in (0, 1)
    )
    flat = [change for problems in changes for change in problems]
    return Difference(
        benchmark=benchmark,
        score=score,
        first=first,
        second=second,
        change=mean_score(score, changes),
        better=sum(change > _SAME for change in flat),
        worse=sum(change < -_SAME for change in flat),
    )


def _show(differences: Sequence[Difference], first: Path, second: Path, screen: Screen) -> None:
    rows = []
    for found in differences:
        digits = 1 if found.score == LENGTH else 3
        rows.append(
            (
                found.benchmark,
                found.score,
                f"{found.first:.{digits}f}",
                f"{found.second:.{digits}f}",
                f"{found.change.value:+.{digits}f}",
                f"{found.change.low:+.{digits}f} to {found.change.high:+.{digits}f}",
                "yes" if found.certain else "no",
                f"{found.better}/{found.worse}",
            )
        )
    columns = ("benchmark", "score", "A", "B", "B - A", "95 % interval", "beyond 0", "better/worse")
    screen.table(f"A: {first}, B: {second}", columns, rows)
