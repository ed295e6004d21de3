"""`grpo eval --answers`: judges answers that are there already. Needs no model and starts nothing
but the verifier's processes."""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from grpo.config.suite import BenchmarkConfig, SuiteConfig
from grpo.console import Screen
from grpo.errors import UserError
from grpo.eval.result import (
    BenchmarkResult,
    answers_folder,
    check_writable,
    relative,
    result_of,
    save,
    show,
)
from grpo.eval.rows import VerifierPools, benchmark_rows, labels_of, submit, with_verdicts
from grpo.eval.store import Answered, AnswerStore, judged_by
from grpo.plugins import import_plugins
from grpo.types import Row
from grpo.verify.ready import check_verifier

_SUFFIXES = (".jsonl", ".parquet")
_ID_KEYS = ("id", "row_id")
_ROW_KEYS = ("row", "serial")
_EXPECTED = {int: "a number of tokens", str: "a word", bool: "true or false"}
_LISTED = 5  # problems that an error names

Object = tuple[str, dict[str, Any]]  # where it stands, and what it holds


@dataclass(slots=True)
class _Found:
    """The answers to one row, as they are found."""

    responses: list[str] = field(default_factory=list)
    lengths: list[int | None] = field(default_factory=list)
    finish_reasons: list[str | None] = field(default_factory=list)
    thinking: bool = False


def evaluate_answers(
    suite: SuiteConfig, answers: Path, out: Path | None, screen: Screen
) -> list[BenchmarkResult]:
    """Judges stored answers with the suite's verifiers: a file for a suite of one benchmark, else
    a folder with a file NAME.jsonl or NAME.parquet for each. Raises UserError."""
    import_plugins(suite.plugins)
    out = out or answers.with_name(f"{answers.stem}.{suite.name}.json")
    check_writable(out)
    for benchmark in suite.benchmarks:
        verifier, timeout_s = benchmark.verifier, benchmark.judge_timeout_s
        check_verifier(verifier.name, verifier.options, timeout_s, "judge_timeout_s")
    results: list[BenchmarkResult] = []
    for benchmark in suite.benchmarks:
        path = _file_of(benchmark.name, answers, len(suite.benchmarks))
        results.append(_judge_file(benchmark, path, out, tuple(suite.plugins), screen))
    save(results, out)
    show(results, f"{suite.name} on the answers of {answers}", screen)
    screen.note(f"wrote {out}")
    return results


def _judge_file(
    config: BenchmarkConfig, path: Path, out: Path, plugins: tuple[str, ...], screen: Screen
) -> BenchmarkResult:
    rows = benchmark_rows(config)
    groups = read_stored(path, rows, [labels_of(row, config) for row in rows])
    sampled = {"answers": hashlib.sha256(path.read_bytes()).hexdigest()}
    path_out = answers_folder(out) / f"{config.name}.parquet"
    store = AnswerStore(path_out, sampled, judged_by(config.verifier, config.judge_timeout_s))
    pools = VerifierPools(len(os.sched_getaffinity(0)), plugins)
    with pools.pool(config.verifier, config.judge_timeout_s) as verifier:
        waiting = [submit(group, verifier) for group in groups]
        done = with_verdicts(config.name, waiting, screen, lambda: False)
    assert done is not None, "nothing asked to stop"
    store.finish(done)
    return result_of(config.name, done, relative(store.path, out.parent))


def _file_of(name: str, answers: Path, num_benchmarks: int) -> Path:
    if answers.is_dir():
        found = [answers / f"{name}{suffix}" for suffix in _SUFFIXES]
        path = next((path for path in found if path.is_file()), None)
        if path is None:
            raise UserError(f"--answers {answers}: no {name}.jsonl or {name}.parquet in it")
        return path
    if num_benchmarks > 1:
        raise UserError(
            f"--answers {answers} is one file, but the suite has {num_benchmarks} benchmarks: give "
            "a folder with NAME.jsonl or NAME.parquet for each, or a suite of one benchmark"
        )
    if not answers.is_file():
        raise UserError(f"--answers {answers}: no such file or folder")
    return answers


def read_stored(
    path: Path, rows: Sequence[Row], labels: Sequence[dict[str, str]]
) -> list[Answered]:
    """The answers of a file to every row, as many to each.

    An object (a line of JSON, a row of parquet) names its problem by `id`, or by `row`, its
    position from 0, or by both, and holds a list `answers` or one `response`; several objects may
    be about one problem. `length` (tokens) and `finish_reason` may stand beside a `response`, and
    beside either `thinking`, true where the prompt opened the thinking. A file of answers that grpo
    eval has written is of this form. Raises UserError.
    """
    places = _places(rows)
    found = [_Found() for _ in rows]
    for where, item in _objects(path):
        _take(found[_place(where, item, rows, places)], where, item)
    _check_counts(path, found, rows)
    return [
        Answered(
            serial=serial,
            row_id=row.id,
            problem=row.asked,
            answer=row.answer,
            responses=tuple(mine.responses),
            lengths=_known(mine.lengths),
            finish_reasons=_known(mine.finish_reasons),
            labels=about,
            thinking=mine.thinking,
        )
        for serial, (row, mine, about) in enumerate(zip(rows, found, labels, strict=True))
    ]


def _objects(path: Path) -> Iterable[Object]:
    if path.suffix == ".parquet":
        try:
            table = pq.read_table(path)
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{path} is not a parquet file: {error}") from None
        for number, item in enumerate(table.to_pylist(), 1):
            yield f"{path}, row {number}", item
        return
    if path.suffix != ".jsonl":
        raise UserError(f"--answers {path}: expected a .jsonl or .parquet file")
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        try:
            item = json.loads(line)
        except ValueError as error:  # not JSON, or not UTF-8
            raise UserError(f"{path}:{number} is not JSON: {error}") from None
        if not isinstance(item, dict):
            raise UserError(f"{path}:{number}: expected an object, got {line[:80]!r}")
        yield f"{path}:{number}", item


def _places(rows: Sequence[Row]) -> dict[str, int]:
    """The position of each id; -1 for one that several rows have."""
    places: dict[str, int] = {}
    for position, row in enumerate(rows):
        places[row.id] = -1 if row.id in places else position
    return places


def _place(where: str, item: dict[str, Any], rows: Sequence[Row], places: dict[str, int]) -> int:
    identity = _first(item, _ID_KEYS)
    number = _first(item, _ROW_KEYS)
    if number is not None:
        whole = isinstance(number, int) and not isinstance(number, bool)
        if not whole or not 0 <= number < len(rows):
            raise UserError(f"{where}: row is {number!r}, expected 0 to {len(rows) - 1}")
        if identity is not None and rows[number].id != str(identity):
            raise UserError(
                f"{where}: row {number} of the benchmark has the id {rows[number].id!r}, not "
                f"{str(identity)!r}: these are answers to other rows"
            )
        return number
    if identity is None:
        raise UserError(
            f"{where}: names no problem: expected id, or row (its position from 0); it has "
            f"{', '.join(map(str, item))}"
        )
    position = places.get(str(identity))
    if position is None:
        raise UserError(
            f"{where}: the benchmark has no problem with the id {str(identity)!r}; its first is "
            f"{rows[0].id!r}: mend the ids, or name problems by row (their position from 0)"
        )
    if position < 0:
        raise UserError(
            f"{where}: several problems have the id {str(identity)!r}: name them by row (their "
            "position from 0)"
        )
    return position


def _first(item: dict[str, Any], keys: Sequence[str]) -> Any:
    return next((item[key] for key in keys if item.get(key) is not None), None)


def _take(mine: _Found, where: str, item: dict[str, Any]) -> None:
    listed, one = item.get("answers"), item.get("response")
    mine.thinking |= bool(_typed(where, item, "thinking", bool))
    if isinstance(one, str) and listed is None:
        mine.responses.append(one)
        mine.lengths.append(_typed(where, item, "length", int))
        mine.finish_reasons.append(_typed(where, item, "finish_reason", str))
        return
    if not isinstance(listed, list) or one is not None or not all(map(_is_text, listed)):
        raise UserError(
            f"{where}: expected answers (a list of texts) or response (one text); it has "
            f"{', '.join(map(str, item))}"
        )
    mine.responses += listed
    mine.lengths += [None] * len(listed)
    mine.finish_reasons += [None] * len(listed)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _typed(where: str, item: dict[str, Any], key: str, kind: type) -> Any:
    value = item.get(key)
    if value is not None and type(value) is not kind:
        raise UserError(f"{where}: {key} is {value!r}, expected {_EXPECTED[kind]}")
    return value


def _known(values: list[Any]) -> tuple[Any, ...] | None:
    return None if None in values else tuple(values)


def _check_counts(path: Path, found: Sequence[_Found], rows: Sequence[Row]) -> None:
    counts = [len(mine.responses) for mine in found]
    most = max(counts)
    short = [number for number, count in enumerate(counts) if count < most]
    if most == 0:
        raise UserError(f"{path} holds no answers")
    if short:
        listed = ", ".join(f"{rows[n].id!r} (row {n}) has {counts[n]}" for n in short[:_LISTED]) + (
            ", ..." if len(short) > _LISTED else ""
        )
        raise UserError(
            f"{path}: {len(rows) - len(short)} of the benchmark's {len(rows)} problems have {most} "
            f"answers, but {listed}: every problem needs as many as the others"
        )
