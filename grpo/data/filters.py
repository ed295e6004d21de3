"""Which rows a declaration leaves out, one row at a time, every one of them counted."""

from dataclasses import dataclass

from grpo.config.data import Filters
from grpo.data.giveaways import Known
from grpo.data.text import has_cjk, squeezed
from grpo.types import Row


@dataclass(slots=True)
class Counts:
    """Of `read` places every one is unreadable, without an answer, in the other script, a
    duplicate or a giveaway that is left out, or kept.

    `exact` and `normalized` count repeated rows whatever becomes of them (exact ones are among the
    normalized); `disagreeing` are those of the normalized with another answer than the first.
    """

    read: int = 0
    unreadable: int = 0
    empty_answer: int = 0
    other_script: int = 0
    exact: int = 0
    normalized: int = 0
    disagreeing: int = 0
    duplicates_left_out: int = 0
    giveaways: int = 0
    kept: int = 0


class Sieve:
    """Remembers what it has seen, so that the first of several equal rows stays. `giveaways`: what
    is known of rows that can be had without solving them."""

    def __init__(self, filters: Filters, counts: Counts, giveaways: Known | None = None):
        self._filters = filters
        self._counts = counts
        self._giveaways = giveaways
        self._rows: set[tuple[object, ...]] = set()
        # Of the first row with this squeezed problem behind the same turns.
        self._answers: dict[tuple[object, ...], str] = {}

    def keeps(self, row: Row) -> bool:
        if self._filters.language != "any" and has_cjk(row.problem) != (
            self._filters.language == "cjk"
        ):
            self._counts.other_script += 1
            return False
        if self._repeats(row):
            self._counts.duplicates_left_out += 1
            return False
        if self._giveaways is not None and self._giveaways.drops(row):
            self._counts.giveaways += 1
            return False
        self._counts.kept += 1
        return True

    def _repeats(self, row: Row) -> bool:
        """Whether the declared kind of duplicates counts it as one."""
        whole = (row.earlier, row.problem, row.answer)
        if whole in self._rows:
            self._counts.exact += 1
            self._counts.normalized += 1
            return self._filters.duplicates != "keep"
        self._rows.add(whole)
        key = (*((turn.role, squeezed(turn.text)) for turn in row.earlier), squeezed(row.problem))
        if key not in self._answers:
            self._answers[key] = row.answer
            return False
        self._counts.normalized += 1
        self._counts.disagreeing += self._answers[key] != row.answer
        return self._filters.duplicates == "normalized"
