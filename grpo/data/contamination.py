"""Training rows that ask what a benchmark asks: equal problems, and long runs of equal words."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from grpo.config.data import Decontamination
from grpo.data.text import ngrams, squeezed
from grpo.types import Row


@dataclass(frozen=True, slots=True)
class Overlap:
    """Row `index` asks what `benchmark` asks; `shared` is what they have in common: the
    benchmark's problem, or the first of the shared n-grams."""

    index: int
    benchmark: str
    kind: Literal["exact", "ngram"]
    shared: str


@dataclass(frozen=True, slots=True)
class Contamination:
    """At most one overlap per row and benchmark, an exact one before an n-gram's, in the order of
    the rows; and the shared n-grams that were taken for set phrases."""

    overlaps: list[Overlap]
    set_phrases: list[str]

    @property
    def rows(self) -> set[int]:
        return {overlap.index for overlap in self.overlaps}


def compare(
    rows: Sequence[Row],
    benchmarks: Mapping[str, Sequence[str]],
    config: Decontamination,
    *,
    set_phrases: Collection[str] = (),
    advance: Callable[[], None] = lambda: None,
) -> Contamination:
    """`benchmarks` maps names to problems; `advance` is called once a row. `set_phrases` are
    those known from before rows were left out, which may have made them rare."""
    equal = _by_key(benchmarks) if config.exact else {}
    grams = _by_gram(benchmarks, config.ngram) if config.ngram else {}
    hits, spread = _hits(rows, grams, config.ngram, advance)
    common = set(set_phrases) | {g for g, who in spread.items() if len(who) > config.set_phrase}
    overlaps: list[Overlap] = []
    for index, row in enumerate(rows):
        of_row = {
            name: Overlap(index, name, "exact", shared)
            for name, shared in equal.get(squeezed(row.problem), {}).items()
        }
        for gram in hits.get(row.problem, ()):
            if gram not in common:
                for name in grams[gram]:
                    of_row.setdefault(name, Overlap(index, name, "ngram", gram))
        overlaps += of_row.values()
    return Contamination(overlaps, sorted(common))


def _by_key(benchmarks: Mapping[str, Sequence[str]]) -> dict[str, dict[str, str]]:
    """squeezed problem -> names of the benchmarks that have it -> the problem as it is there."""
    equal: dict[str, dict[str, str]] = {}
    for name, problems in benchmarks.items():
        for problem in problems:
            equal.setdefault(squeezed(problem), {}).setdefault(name, problem)
    return equal


def _by_gram(benchmarks: Mapping[str, Sequence[str]], n: int) -> dict[str, list[str]]:
    grams: dict[str, list[str]] = {}
    for name, problems in benchmarks.items():
        for gram in {gram for problem in problems for gram in ngrams(problem, n)}:
            grams.setdefault(gram, []).append(name)
    return grams


def _hits(
    rows: Sequence[Row], grams: Mapping[str, object], n: int, advance: Callable[[], None]
) -> tuple[dict[str, list[str]], dict[str, set[str]]]:
    """The benchmarks' n-grams in each problem, in the order of its text; and for each n-gram the
    squeezed problems that have it: copies of one problem do not make a set phrase."""
    hits: dict[str, list[str]] = {}
    spread: dict[str, set[str]] = {}
    for row in rows:
        advance()
        if grams and row.problem not in hits:
            shared = [gram for gram in dict.fromkeys(ngrams(row.problem, n)) if gram in grams]
            hits[row.problem] = shared
            for gram in shared:
                spread.setdefault(gram, set()).add(squeezed(row.problem))
    return hits, spread
