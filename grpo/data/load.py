"""From a declaration to its rows, in the order of the source."""

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from grpo.config.data import DataConfig
from grpo.data.filters import Counts, Sieve
from grpo.data.giveaways import known_giveaways
from grpo.data.read import Fault, Source, open_source
from grpo.data.rows import to_row
from grpo.errors import UserError
from grpo.types import Row

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Loaded:
    """`rows` are all that the filters keep; `faults` are the places left out without a row."""

    rows: list[Row]
    counts: Counts
    faults: list[Fault]


def load_rows(config: DataConfig, extra: Collection[str] = ()) -> list[Row]:
    """Every row of the declaration that its filters keep, the first `config.rows` of them, with
    what it says in the columns `extra`. Raises UserError naming file and line of a row that the
    filters do not let pass."""
    source = open_source(config)
    loaded = sift(source, config, extra=extra)
    _tell(loaded.counts, config)
    if not loaded.rows:
        raise UserError(no_rows(loaded, source, config))
    return loaded.rows[: config.rows]


def sift(
    source: Source,
    config: DataConfig,
    *,
    extra: Collection[str] = (),
    advance: Callable[[], None] = lambda: None,
    tolerant: bool = False,
) -> Loaded:
    """Reads all of the source. `tolerant` collects the faults that would stop a training run;
    a number of rows that the declaration does not expect is an error all the same."""
    counts = Counts()
    giveaways = known_giveaways(config)
    sieve = Sieve(config.filters, counts, giveaways)
    rows: list[Row] = []
    faults: list[Fault] = []
    for item in source.items():
        advance()
        counts.read += 1
        if isinstance(item, Row):  # generated, and distinct by construction
            counts.kept += 1
            rows.append(item)
            continue
        found = item if isinstance(item, Fault) else to_row(item, config, extra)
        if isinstance(found, Fault):
            if not tolerant and stops(found, config):
                raise UserError(found.message)
            counts.empty_answer += found.kind == "empty_answer"
            counts.unreadable += found.kind == "unreadable"
            faults.append(found)
        elif sieve.keeps(found):
            rows.append(found)
    if source.expected not in (None, counts.read):
        raise UserError(
            f"data {config.name!r}: {source.name} has {counts.read:,} rows, expected "
            f"{source.expected:,}: fetch it again, or correct the number in the declaration "
            "(hub_rows, or rows of its copy)"
        )
    if giveaways is not None:
        giveaways.check(config)
    return Loaded(rows, counts, faults)


def stops(fault: Fault, config: DataConfig) -> bool:
    """Whether such a row ends the reading, rather than being left out."""
    if fault.kind == "empty_answer":
        return config.filters.empty_answer == "error"
    return config.filters.bad_rows == "error"


def no_rows(loaded: Loaded, source: Source, config: DataConfig) -> str:
    counts = loaded.counts
    said = f"data {config.name!r} has no rows ({source.name})"
    if counts.read:
        said += (
            f": of {counts.read:,} read, {counts.unreadable:,} could not be read, "
            f"{counts.empty_answer:,} had no answer, {counts.other_script:,} were in the other "
            f"script and {counts.giveaways:,} gave their answer away: look at data.columns and "
            "data.filters"
        )
    if loaded.faults:
        said += f"; the first: {loaded.faults[0].message}"
    return said


def _tell(counts: Counts, config: DataConfig) -> None:
    """Rows that are at fault are worth a warning; duplicates and scripts were asked for."""
    for number, what in (
        (counts.unreadable, "cannot be read"),
        (counts.empty_answer, "have no answer"),
    ):
        if number:
            log.warning("%s: rows left out that %s: %d", config.name, what, number)
    for number, what in (
        (counts.other_script, "are in the other script"),
        (counts.duplicates_left_out, "repeat another"),
        (counts.giveaways, "give their answer away"),
    ):
        if number:
            log.info("%s: rows left out that %s: %d", config.name, what, number)


def local_rows(data: DataConfig) -> list[Row] | None:
    """The rows of a file or a task; None where they would have to come from the hub."""
    return None if data.path is None and data.task is None else load_rows(data)


def describe(data: DataConfig, rows: Sequence[Row] | None) -> str:
    """Its name and how many rows it has, or where they will come from."""
    if rows is None:
        return f"{data.name}: {data.hub} (from the Hugging Face hub)"
    return f"{data.name}: {len(rows)} rows"
