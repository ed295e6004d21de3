"""`grpo data prepare`: read, filter, leave out what benchmarks ask, write a file to train on."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from grpo.config.data import DataConfig
from grpo.config.load import resolved
from grpo.console import Screen
from grpo.data.benchmarks import Benchmark, find_benchmarks, read_problems
from grpo.data.contamination import Contamination, compare
from grpo.data.filters import Counts
from grpo.data.giveaways import giveaways_path
from grpo.data.load import Loaded, no_rows, sift
from grpo.data.read import open_source
from grpo.data.seal import Seal, file_sha256, read_seal, seal_path, write_seal
from grpo.errors import UserError
from grpo.store.files import replacing
from grpo.types import Row, Turn

FOLDER = Path("prepared")
# What the work is named by; a change of the rules below makes old files stale.
_RULES = 2
_DECIDING = ("task", "hub", "revision", "hub_subset", "hub_split", "columns")
_DECIDING += ("strip_prefix", "strip_suffix", "answer_after", "filters", "decontaminate", "rows")


def prepare(config: DataConfig, out: Path | None, screen: Screen, *, force: bool = False) -> Seal:
    """Writes `out` (.jsonl or .parquet) and its seal; does nothing where both are there already
    and would come out the same. A kill at any moment leaves the old file, a whole new one, or one
    that its seal refuses; the same command then does it again."""
    out = out or FOLDER / f"{config.name}.jsonl"
    if out.suffix not in _WRITERS:
        raise UserError(f"--out {str(out)!r}: expected a name that ends in .jsonl or .parquet")
    if config.path is not None and Path(config.path).resolve() == out.resolve():
        raise UserError(f"--out {str(out)!r} is the file that is read: name another")
    benchmarks = find_benchmarks(config.decontaminate.against)
    job = _job(config, benchmarks)
    seal = _finished(out, job, force)
    if seal is not None:
        screen.note(f"{out} is prepared already: {seal.rows:,} rows, sha256 {seal.sha256}")
        return seal
    problems = problems_of(benchmarks, screen)  # first: a network that is not there costs no work
    loaded = read(config, screen)
    found, facts = compare_with(problems, loaded.rows, config, screen)
    contaminated = found.rows
    rows = [row for index, row in enumerate(loaded.rows) if index not in contaminated]
    rows = rows[: config.rows]
    if not rows:
        raise UserError(f"data {config.name!r}: every row is asked by a benchmark, none is left")
    counts = asdict(loaded.counts) | {"contaminated": len(contaminated), "written": len(rows)}
    seal = _write(
        out, rows, lambda sha256: Seal(sha256, len(rows), counts, facts, found.set_phrases, job)
    )
    show_counts(loaded.counts, config, screen)
    show_comparison(facts, config, screen)
    screen.note(f"wrote {out}: {len(rows):,} rows, sha256 {seal.sha256}")
    screen.note(f"to train on it: data.path={out}")
    return seal


def read(config: DataConfig, screen: Screen, *, tolerant: bool = False) -> Loaded:
    """The rows that the filters keep. Raises UserError for what cannot be read; with `tolerant`
    only where the source as a whole cannot."""
    source = open_source(config)
    with screen.progress(f"reading {source.name}", source.total) as bar:
        loaded = sift(source, config, advance=bar.advance, tolerant=tolerant)
    if not loaded.rows and not tolerant:
        raise UserError(no_rows(loaded, source, config))
    return loaded


def problems_of(benchmarks: Sequence[Benchmark], screen: Screen) -> dict[str, list[str]]:
    """The problems of each benchmark, by its name. Raises UserError for one that cannot be read."""
    problems: dict[str, list[str]] = {}
    with screen.progress("reading benchmarks", len(benchmarks)) as bar:
        for benchmark in benchmarks:
            problems.setdefault(benchmark.name, []).extend(read_problems(benchmark))
            bar.advance()
    return problems


def compare_with(
    problems: Mapping[str, Sequence[str]], rows: Sequence[Row], config: DataConfig, screen: Screen
) -> tuple[Contamination, list[dict[str, Any]]]:
    """Which rows benchmarks ask, and one record per benchmark: its name, problems, rows that equal
    one of them, rows that hold a short one, rows that share only an n-gram."""
    with screen.progress("comparing with benchmarks", len(rows)) as bar:
        found = compare(
            rows,
            problems,
            config.decontaminate,
            set_phrases=_known_phrases(config),
            advance=bar.advance,
        )
    kinds = Counter((overlap.benchmark, overlap.kind) for overlap in found.overlaps)
    facts: list[dict[str, Any]] = [
        {
            "name": name,
            "problems": len(asked),
            "exact": kinds[name, "exact"],
            "contained": kinds[name, "contained"],
            "ngram": kinds[name, "ngram"],
        }
        for name, asked in problems.items()
    ]
    return found, facts


def _known_phrases(config: DataConfig) -> list[str]:
    seal = None if config.path is None else read_seal(Path(config.path))
    return [] if seal is None else seal.set_phrases


def show_counts(counts: Counts, config: DataConfig, screen: Screen) -> None:
    """What became of the rows."""
    lines = [
        ("read", counts.read),
        ("cannot be read", counts.unreadable),
        ("without an answer", counts.empty_answer),
        (f"not in {config.filters.language} script", counts.other_script),
        ("equal to an earlier row", counts.exact),
        ("same problem but for case, white space, $", counts.normalized),
        ("of these with another answer", counts.disagreeing),
        (f"left out as duplicates ({config.filters.duplicates})", counts.duplicates_left_out),
        (f"left out as giveaways ({config.filters.giveaways})", counts.giveaways),
        ("kept by the filters", counts.kept),
    ]
    if config.filters.giveaways == "keep":
        del lines[-2]
    # Only some languages have another script.
    if config.filters.language == "any":
        del lines[3]
    screen.table(f"data {config.name}", ("rows", "number"), [(a, f"{b:,}") for a, b in lines])


def show_comparison(facts: Sequence[dict[str, Any]], config: DataConfig, screen: Screen) -> None:
    """How many rows each benchmark asks, too."""
    if not facts:
        screen.note("compared with no benchmark")
        return
    gram = f"{config.decontaminate.ngram}-gram"
    counted = ("problems", "exact", "contained", "ngram")
    screen.table(
        f"rows that a benchmark asks too: its very problem, a short one whole, or a {gram} of it",
        ("benchmark", "problems", "equal", "contained", gram),
        [(f["name"], *(f"{f[key]:,}" for key in counted)) for f in facts],
    )


def _job(config: DataConfig, benchmarks: Sequence[Benchmark]) -> dict[str, Any]:
    declared = resolved(config)
    job: dict[str, Any] = {key: declared[key] for key in _DECIDING}
    if config.path is not None and Path(config.path).is_file():  # wherever it lies
        job["source_sha256"] = file_sha256(Path(config.path))
    if config.filters.giveaways != "keep":  # wherever it lies
        job["filters"] = job["filters"] | {"giveaways_file": None}
        job["giveaways_sha256"] = file_sha256(giveaways_path(config))
    job["benchmarks"] = _digest([benchmark.identity for benchmark in benchmarks])
    return job | {"rules": _RULES}


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _finished(out: Path, job: dict[str, Any], force: bool) -> Seal | None:
    """The seal of a file that this job wrote. Raises UserError for a file of somebody else."""
    if force or not out.exists():
        return None
    seal = read_seal(out)
    if seal is None:
        raise UserError(
            f"--out {str(out)!r} is there already and was not written by grpo data prepare: name "
            "another, or overwrite it with --force"
        )
    return seal if seal.job == job and seal.sha256 == file_sha256(out) else None


def _write(out: Path, rows: Sequence[Row], sealed: Callable[[str], Seal]) -> Seal:
    """The seal goes first: between the two renames it refuses the old file, and a file without a
    seal is never ours."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as temporary:
        _WRITERS[out.suffix](rows, temporary)
        seal = sealed(file_sha256(temporary))
        with replacing(seal_path(out)) as beside:
            write_seal(beside, seal)
    return seal


def _write_lines(rows: Sequence[Row], path: Path) -> None:
    with path.open("w", encoding="utf-8") as lines:
        for value in _values(rows):
            # A solution only where there is one, as in generated rows.
            said = {key: part for key, part in value.items() if part or key != "solution"}
            lines.write(json.dumps(said, ensure_ascii=False) + "\n")


def _write_parquet(rows: Sequence[Row], path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(_values(rows)), path)


def _values(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """What a file says of each row. Where one is a chat all are: a column has one type."""
    chats = any(row.earlier for row in rows)
    return [
        {
            "id": row.id,
            "problem": _messages(row) if chats else row.problem,
            "answer": row.answer,
            "solution": row.solution,
        }
        for row in rows
    ]


def _messages(row: Row) -> list[dict[str, str]]:
    turns = (*row.earlier, Turn("user", row.problem))
    return [{"role": turn.role, "content": turn.text} for turn in turns]


_WRITERS: dict[str, Callable[[Sequence[Row], Path], None]] = {
    ".jsonl": _write_lines,
    ".parquet": _write_parquet,
}
