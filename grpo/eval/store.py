"""A benchmark's answers on disk: parts while it is sampled, one parquet file in the end.

A kill at any moment costs at most the answers of the last half minute: whole groups go into parts,
each written under a hidden name and renamed. What cannot be read is not trusted.
"""

import json
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from grpo.config.data import Choice
from grpo.store.files import replacing
from grpo.types import Verdict
from grpo.verify.fingerprint import fingerprint

PART_EVERY_S = 30.0

# Calls the second, and may do so again where the disk is full; the first says what is written.
Write = Callable[[str, Callable[[], object]], object]


def write_once(what: str, write: Callable[[], object]) -> None:
    write()


_FACTS = b"grpo"  # the key of our own metadata
_SCHEMA = pa.schema(
    [
        ("serial", pa.int64()),
        ("row_id", pa.string()),
        ("index", pa.int32()),
        ("problem", pa.string()),
        ("answer", pa.string()),
        ("response", pa.string()),
        ("length", pa.int32()),
        ("finish_reason", pa.string()),
        ("reward", pa.float64()),
        ("parsed", pa.string()),
        ("reason", pa.string()),
        ("seconds", pa.float64()),
        ("labels", pa.map_(pa.string(), pa.string())),
        ("thinking", pa.bool_()),
    ]
)


@dataclass(frozen=True, slots=True)
class Answered:
    """One problem of a benchmark with its K answers.

    serial: the row's position in the benchmark
    answer: the reference
    lengths: tokens of each answer; None where they are not known, as are finish_reasons
    verdicts: None before they are judged
    labels: what the row says in the columns that the score is broken down by
    thinking: the prompt opened the thinking, so that the answers begin within it
    """

    serial: int
    row_id: str
    problem: str
    answer: str
    responses: tuple[str, ...]
    lengths: tuple[int, ...] | None = None
    finish_reasons: tuple[str, ...] | None = None
    verdicts: tuple[Verdict, ...] | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    thinking: bool = False


def write_answers(path: Path, groups: Iterable[Answered], facts: Mapping[str, Any]) -> None:
    """One row per answer; `facts` (plain data) goes into the file's metadata."""
    rows = [row for group in groups for row in _rows(group)]
    schema = _SCHEMA.with_metadata({_FACTS: json.dumps(facts, sort_keys=True).encode()})
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        table = pa.Table.from_pylist(rows, schema=schema)
        pq.write_table(table, temporary, write_page_checksum=True)


def read_answers(path: Path) -> tuple[list[Answered], dict[str, Any]]:
    """What `write_answers` wrote. Raises ValueError for a file that is not whole, not ours, or
    not there."""
    try:
        table = pq.read_table(path, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    metadata = table.schema.metadata or {}
    names = [name for name in _SCHEMA.names if name != "thinking"]  # which older files lack
    if _FACTS not in metadata or table.schema.names not in (names, _SCHEMA.names):
        raise ValueError(f"{path} holds no answers of an evaluation")
    rows = groupby(table.to_pylist(), key=lambda row: row["serial"])
    return [_group(list(mine)) for _, mine in rows], json.loads(metadata[_FACTS])


def _rows(group: Answered) -> Iterable[dict[str, Any]]:
    for index, response in enumerate(group.responses):
        verdict = group.verdicts[index] if group.verdicts else None
        yield {
            "serial": group.serial,
            "row_id": _utf8(group.row_id),
            "index": index,
            "problem": _utf8(group.problem),
            "answer": _utf8(group.answer),
            "response": _utf8(response),
            "length": group.lengths[index] if group.lengths else None,
            "finish_reason": group.finish_reasons[index] if group.finish_reasons else None,
            "reward": verdict.reward if verdict else None,
            "parsed": _utf8(verdict.parsed) if verdict else None,
            "reason": _utf8(verdict.reason) if verdict else None,
            "seconds": verdict.seconds if verdict else None,
            "labels": {name: _utf8(label) for name, label in group.labels.items()},
            "thinking": group.thinking,
        }


def _group(rows: list[dict[str, Any]]) -> Answered:
    first = rows[0]
    return Answered(
        serial=first["serial"],
        row_id=first["row_id"],
        problem=first["problem"],
        answer=first["answer"],
        responses=tuple(row["response"] for row in rows),
        lengths=_known(rows, "length"),
        finish_reasons=_known(rows, "finish_reason"),
        verdicts=None
        if any(row["reward"] is None for row in rows)
        else tuple(Verdict(r["reward"], r["parsed"], r["reason"], r["seconds"]) for r in rows),
        labels=dict(first["labels"]),
        thinking=bool(first.get("thinking")),
    )


def _known(rows: list[dict[str, Any]], column: str) -> tuple[Any, ...] | None:
    values = tuple(row[column] for row in rows)
    return None if None in values else values


def _utf8(text: str) -> str:
    # Arrow refuses lone surrogates, and a strange answer must not end an evaluation.
    return text.encode("utf-8", "replace").decode("utf-8")


def judged_by(verifier: Choice, timeout_s: float) -> dict[str, Any]:
    """What tells verdicts of this verifier, its options, its deadline and its rules of today from
    others."""
    return {
        "verifier": verifier.name,
        "options": verifier.options,
        "timeout_s": timeout_s,
        "rules": fingerprint(verifier.name),
    }


class AnswerStore:
    """The answers of one benchmark, sampled and judged in one way.

    `sampled` and `judged` are plain data that say how. Answers of a file that was sampled in
    another way are left alone, verdicts of one that was judged in another way are not used.
    """

    def __init__(
        self,
        path: Path,
        sampled: Mapping[str, Any],
        judged: Mapping[str, Any],
        clock: Callable[[], float] = time.monotonic,
        write: Write = write_once,
    ):
        self.path = path
        self._write = write
        # Through JSON, as they come back from a file.
        self._facts = json.loads(json.dumps({"sampled": dict(sampled), "judged": dict(judged)}))
        self._parts = path.with_suffix(".parts")
        self._clock = clock
        self._written_s = clock()
        self._unwritten: list[tuple[Answered, Sequence[Future[Verdict]]]] = []

    def load(self, num_samples: int, warn: Callable[[str], None]) -> dict[int, Answered]:
        """Whole groups of `num_samples` answers by serial, with verdicts where they are usable."""
        found: dict[int, Answered] = {}
        for path in [*sorted(self._parts.glob("*.parquet")), self.path]:
            if path.exists():
                found |= {group.serial: group for group in self._trusted(path, num_samples, warn)}
        return found

    def _trusted(
        self, path: Path, num_samples: int, warn: Callable[[str], None]
    ) -> Iterable[Answered]:
        try:
            groups, facts = read_answers(path)
        except ValueError as error:
            warn(f"{error}; its answers are sampled again")
            return
        if facts["sampled"] != self._facts["sampled"]:
            warn(f"{path} was sampled in another way; its answers are not used")
            return
        usable = facts["judged"] == self._facts["judged"]
        if not usable:
            warn(f"{path} was judged by other rules; its answers are judged again")
        for group in groups:
            if len(group.responses) == num_samples:
                yield group if usable else replace(group, verdicts=None)

    def add(self, group: Answered, verdicts: Sequence[Future[Verdict]]) -> None:
        """On the disk within half a minute, if more groups follow; else with `flush`."""
        self._unwritten.append((group, verdicts))
        if self._clock() - self._written_s >= PART_EVERY_S:
            self.flush()

    def flush(self) -> None:
        """Writes what `add` was given since; with verdicts where all of a group are there."""
        self._written_s = self._clock()
        if not self._unwritten:
            return
        groups = [replace(group, verdicts=_finished(futures)) for group, futures in self._unwritten]
        part = self._parts / f"{uuid.uuid4().hex}.parquet"
        self._write("answers", lambda: write_answers(part, groups, self._facts))
        self._unwritten.clear()

    def finish(self, groups: Iterable[Answered]) -> None:
        """All groups into one file; the parts go."""
        ordered = sorted(groups, key=lambda group: group.serial)
        self._write("answers", lambda: write_answers(self.path, ordered, self._facts))
        self._unwritten.clear()
        shutil.rmtree(self._parts, ignore_errors=True)


def _finished(futures: Sequence[Future[Verdict]]) -> tuple[Verdict, ...] | None:
    if all(future.done() and not future.cancelled() for future in futures):
        return tuple(future.result() for future in futures)
    return None
