"""What an evaluation found: a record per benchmark, as JSON and as a table."""

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from grpo.console import Screen
from grpo.errors import UserError
from grpo.eval.scores import Score, mean_score, problem_scores, score_problems
from grpo.eval.store import Answered
from grpo.store.files import replacing


@dataclass(frozen=True, slots=True)
class Part:
    """avg@k of the problems that have one label."""

    num_problems: int
    average: Score


@dataclass(frozen=True, slots=True)
class BenchmarkResult:
    """Scores by name (`avg@8`, `pass@4`, `best@8`, `maj@8`), and what the answers looked like.

    length_mean: tokens; nan where they are not known, as is truncated_share
    reasons: how many verdicts gave each reason, up to its first colon
    parts: by column, then by what rows say in it
    answers: the parquet file of all answers, relative to the folder of the result's own file
    """

    name: str
    num_problems: int
    scores: dict[str, Score]
    length_mean: float
    truncated_share: float
    no_answer_share: float
    reasons: dict[str, int] = field(default_factory=dict)
    parts: dict[str, dict[str, Part]] = field(default_factory=dict)
    answers: str = ""

    @property
    def average(self) -> Score:
        return self.score("avg@")

    @property
    def best(self) -> Score:
        return self.score("best@")

    def score(self, prefix: str) -> Score:
        return next(score for name, score in self.scores.items() if name.startswith(prefix))


def result_of(name: str, groups: Sequence[Answered], answers: str = "") -> BenchmarkResult:
    """The scores of judged groups that all have the same number of answers."""
    rewards, parsed = rewards_and_answers(groups)
    verdicts = [verdict for group in groups for verdict in group.verdicts or ()]
    reasons = Counter(verdict.reason.split(":", 1)[0].strip() for verdict in verdicts)
    return BenchmarkResult(
        name=name,
        num_problems=len(groups),
        scores=score_problems(rewards, parsed),
        length_mean=length_mean(groups),
        truncated_share=_mean(
            None if g.finish_reasons is None else [r == "length" for r in g.finish_reasons]
            for g in groups
        ),
        no_answer_share=reasons["no answer"] / len(verdicts),
        reasons=dict(sorted(reasons.items())),
        parts=_parts(groups),
        answers=answers,
    )


def rewards_and_answers(groups: Sequence[Answered]) -> tuple[list[list[float]], list[list[str]]]:
    """Per problem the rewards and the parsed answers of its responses."""
    assert all(group.verdicts is not None for group in groups), "a group is not judged yet"
    return (
        [[verdict.reward for verdict in group.verdicts or ()] for group in groups],
        [[verdict.parsed for verdict in group.verdicts or ()] for group in groups],
    )


def length_mean(groups: Iterable[Answered]) -> float:
    """Mean tokens of all answers; nan where some are not known."""
    return _mean(group.lengths for group in groups)


def _mean(values: Iterable[Sequence[float] | None]) -> float:
    lists = list(values)
    known = [value for group in lists if group is not None for value in group]
    return math.nan if None in lists or not known else math.fsum(known) / len(known)


def _parts(groups: Sequence[Answered]) -> dict[str, dict[str, Part]]:
    columns = dict.fromkeys(column for group in groups for column in group.labels)
    parts: dict[str, dict[str, Part]] = {}
    for column in columns:
        labels = sorted({group.labels[column] for group in groups if column in group.labels})
        parts[column] = {
            label: _part([group for group in groups if group.labels.get(column) == label])
            for label in labels
        }
    return parts


def _part(groups: Sequence[Answered]) -> Part:
    scores = problem_scores(*rewards_and_answers(groups))
    name = next(iter(scores))  # avg@k is the first
    return Part(len(groups), mean_score(name, [scores[name]]))


def show(results: Sequence[BenchmarkResult], title: str, screen: Screen) -> None:
    """A table with a row per score, and one per label where rows have some."""
    rows = [
        (
            result.name,
            *_cells(score),
            result.num_problems,
            _number(result.length_mean, "{:.1f}"),
            _number(100 * result.truncated_share, "{:.1f} %"),
            f"{100 * result.no_answer_share:.1f} %",
        )
        for result in results
        for score in result.scores.values()
    ]
    if len(results) > 1:
        means = [mean_of([r.average for r in results], "avg")]
        means.append(mean_of([r.best for r in results], "best"))
        count = sum(result.num_problems for result in results)
        rows += [("average", *_cells(mean), count, "", "", "") for mean in means]
    columns = ("benchmark", "score", "value", "95 % interval", "problems", "length", "truncated")
    screen.table(title, (*columns, "no answer"), rows)
    parts = [
        (result.name, column, label, *_cells(part.average), part.num_problems)
        for result in results
        for column, found in result.parts.items()
        for label, part in found.items()
    ]
    if parts:
        columns = ("benchmark", "by", "", "score", "value", "95 % interval", "problems")
        screen.table(f"{title}, broken down", columns, parts)
    for result in results:
        odd = {r: n for r, n in result.reasons.items() if r not in ("correct", "wrong")}
        odd.pop("no answer", None)
        if odd:
            listed = ", ".join(f"{reason}: {count}" for reason, count in odd.items())
            screen.warn(f"{result.name}: answers without a proper verdict: {listed}")


def mean_of(scores: Sequence[Score], name: str) -> Score:
    """Benchmarks are independent: the half widths of their intervals add up in squares."""
    value = math.fsum(score.value for score in scores) / len(scores)
    low, high = (
        math.sqrt(math.fsum(distance**2 for distance in distances)) / len(scores)
        for distances in (
            [score.value - score.low for score in scores],
            [score.high - score.value for score in scores],
        )
    )
    return Score(name, value, value - low, value + high)


def _cells(score: Score) -> tuple[str, str, str]:
    return score.name, f"{score.value:.3f}", f"{score.low:.3f} to {score.high:.3f}"


def _number(value: float, shown: str) -> str:
    return "?" if math.isnan(value) else shown.format(value)


def answers_folder(path: Path) -> Path:
    """Where the answers behind the result file `path` are."""
    return path.with_name(f"{path.stem}.answers")


def check_writable(out: Path) -> None:
    """Raises UserError where the result file could not be written, before any work is done."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        writable = os.access(out.parent, os.W_OK) and not out.is_dir()
    except OSError:
        writable = False
    if not writable:
        raise UserError(f"cannot write {out}: choose another place with --out FILE.json")


def relative(answers: Path, folder: Path) -> str:
    return os.path.relpath(answers, folder)


def save(results: Sequence[BenchmarkResult], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = [{k: _plain(v) for k, v in asdict(result).items()} for result in results]
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(plain, indent=2, allow_nan=False) + "\n")


def _plain(value: object) -> object:
    return None if isinstance(value, float) and math.isnan(value) else value


def load(path: Path) -> list[BenchmarkResult]:
    """What `save` wrote. Raises UserError for any other file."""
    try:
        return [_result(item) for item in json.loads(path.read_text())]
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{path} is not the JSON result of an evaluation ({type(error).__name__}: {error}): "
            "give a file that grpo eval wrote"
        ) from None


def _result(item: dict[str, object]) -> BenchmarkResult:
    fields: dict = {k: math.nan if v is None else v for k, v in item.items()}
    fields["scores"] = {name: Score(**score) for name, score in fields["scores"].items()}
    fields["parts"] = {
        column: {
            label: Part(part["num_problems"], Score(**part["average"]))
            for label, part in found.items()
        }
        for column, found in fields.get("parts", {}).items()
    }
    return BenchmarkResult(**fields)
