"""Training rows that ask what a benchmark asks: equal problems, short ones that stand in a longer
text, and long runs of equal words."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from grpo.config.data import Decontamination
from grpo.data.text import in_one_style, joined, ngrams, runs, sentences, squeezed, words
from grpo.types import Row

# Where n-grams are off, problems of fewer words than this are the short ones.
_SHORT_WORDS = 13
# Of a short problem's key: "compute1+1" has 10, "factort^2-49" 12.
_FEWEST_CHARACTERS = 12


@dataclass(frozen=True, slots=True)
class Overlap:
    """Row `index` asks what `benchmark` asks; `shared` is what they have in common: the
    benchmark's problem, or the first of the shared n-grams."""

    index: int
    benchmark: str
    kind: Literal["exact", "contained", "ngram"]
    shared: str


@dataclass(frozen=True, slots=True)
class Contamination:
    """At most one overlap per row and benchmark, an exact one before a contained problem and that
    before an n-gram, in the order of the rows; and the shared n-grams and short problems that were
    taken for set phrases."""

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
    index = _Index(benchmarks, config)
    hits: dict[str, _Hits] = {}  # of each problem
    spread: dict[str, set[str]] = {}  # phrase -> the squeezed problems that have it
    for row in rows:
        advance()
        if row.problem not in hits:
            found = hits[row.problem] = index.hits(row.problem)
            for phrase in (*found.contained, *found.grams):
                # Copies of one problem do not make a set phrase.
                spread.setdefault(phrase, set()).add(squeezed(row.problem))
    common = set(set_phrases) | {p for p, who in spread.items() if len(who) > config.set_phrase}
    overlaps: list[Overlap] = []
    for number, row in enumerate(rows):
        of_row: dict[str, Overlap] = {}
        for kind, name, shared in index.overlaps(hits[row.problem], common):
            of_row.setdefault(name, Overlap(number, name, kind, shared))
        overlaps += of_row.values()
    return Contamination(overlaps, sorted(common))


@dataclass(frozen=True, slots=True)
class _Hits:
    """One problem's key, and the short problems (by their keys) and n-grams of the benchmarks that
    stand in it, in the order of its text."""

    whole: str
    contained: list[str]
    grams: list[str]


class _Index:
    """The benchmarks' problems by what they are found by."""

    def __init__(self, benchmarks: Mapping[str, Sequence[str]], config: Decontamination):
        self._config = config
        # key -> names of the benchmarks that have it -> the problem as it is there
        self._equal: dict[str, dict[str, str]] = {}
        self._short: dict[str, dict[str, str]] = {}
        self._grams: dict[str, dict[str, str]] = {}
        self._longest_short = 0
        for name, problems in benchmarks.items():
            for problem in problems:
                self._add(name, problem)

    def _add(self, name: str, problem: str) -> None:
        key = joined(sentences(problem))
        if self._config.exact:
            self._equal.setdefault(key, {}).setdefault(name, problem)
        if self._config.contained and self._is_short(key, problem):
            self._short.setdefault(key, {}).setdefault(name, problem)
            self._longest_short = max(self._longest_short, len(key))
        for gram in self._ngrams(problem):
            self._grams.setdefault(gram, {}).setdefault(name, gram)

    def _is_short(self, key: str, problem: str) -> bool:
        """Whether n-grams may not find it, and it says enough, a number too, to be told from
        others."""
        few = len(words(in_one_style(problem))) < (self._config.ngram or _SHORT_WORDS)
        return few and len(key) >= _FEWEST_CHARACTERS and any(map(str.isdigit, key))

    def _ngrams(self, problem: str) -> Iterator[str]:
        return ngrams(problem, self._config.ngram) if self._config.ngram else iter(())

    def hits(self, problem: str) -> _Hits:
        keys = sentences(problem)
        grams = dict.fromkeys(self._ngrams(problem)) if self._grams else ()
        return _Hits(
            joined(keys),
            [key for key in dict.fromkeys(runs(keys, self._longest_short)) if key in self._short],
            [gram for gram in grams if gram in self._grams],
        )

    def overlaps(
        self, hits: _Hits, set_phrases: Collection[str]
    ) -> Iterator[tuple[Literal["exact", "contained", "ngram"], str, str]]:
        """(kind, benchmark, what is shared), the surest first."""
        for name, shared in self._equal.get(hits.whole, {}).items():
            yield "exact", name, shared
        for key in hits.contained:
            if key not in set_phrases:
                for name, shared in self._short[key].items():
                    yield "contained", name, shared
        for gram in hits.grams:
            if gram not in set_phrases:
                for name in self._grams[gram]:
                    yield "ngram", name, gram
