"""The problems of benchmarks, to compare training rows with."""

import glob
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from grpo.config.data import DataConfig
from grpo.config.load import load_suite, resolved
from grpo.config.shipped import find, shipped, shipped_root
from grpo.data.read import Fault, open_source
from grpo.data.rows import problem_of
from grpo.data.seal import file_sha256
from grpo.errors import UserError
from grpo.types import Row


@dataclass(frozen=True, slots=True)
class Benchmark:
    """`identity` changes with whatever may change its problems."""

    name: str
    data: DataConfig
    identity: str


def find_benchmarks(names: Sequence[str]) -> list[Benchmark]:
    """Those of every suite (.yaml) and file of problems that the names and patterns match, each
    data set once. Raises UserError for a name that matches nothing."""
    found: dict[str, Benchmark] = {}
    for name in names:
        for path in _matches(name):
            for label, data in _declared(path):
                identity = _identity(data)
                found.setdefault(identity, Benchmark(label, data, identity))
    return list(found.values())


def read_problems(benchmark: Benchmark) -> list[str]:
    """Raises UserError where one cannot be read: a benchmark is compared whole or not at all."""
    data, problems = benchmark.data, []
    try:
        for item in open_source(data).items():
            if isinstance(item, Fault):
                raise UserError(item.message)
            problems.append(item.problem if isinstance(item, Row) else problem_of(item, data))
    except UserError as error:
        raise UserError(
            f"benchmark {benchmark.name!r} cannot be compared with: {error}; local files in place "
            "of the suites: --against FILE, as often as needed; comparing with nothing: "
            "decontaminate.against=[]"
        ) from None
    return problems


def _matches(name: str) -> list[Path]:
    if Path(name).is_file():  # a name may have brackets of its own
        return [Path(name)]
    for pattern in (name, str(shipped_root() / name)):
        if paths := [Path(path) for path in sorted(glob.glob(pattern)) if Path(path).is_file()]:
            return paths
    with suppress(UserError):
        return [find(name, "eval")]
    raise UserError(
        f"decontaminate.against {name!r}: no such suite or file of problems from {Path.cwd()}, and "
        f"none in the package, which has {', '.join(shipped('eval'))}: name suites or files with "
        "--against FILE"
    )


def _declared(path: Path) -> list[tuple[str, DataConfig]]:
    if path.suffix in (".yaml", ".yml"):
        return [(benchmark.name, benchmark.data) for benchmark in load_suite(path).benchmarks]
    return [(path.stem, DataConfig(name=path.stem, path=str(path)))]


def _identity(data: DataConfig) -> str:
    """Of a local file its content, of anything else its declaration."""
    if data.path is not None and Path(data.path).is_file():
        columns = resolved(data.columns)
        return f"sha256 {file_sha256(Path(data.path))} {json.dumps(columns, sort_keys=True)}"
    kept = ("task", "hub", "revision", "hub_subset", "hub_split", "columns")
    return json.dumps({key: resolved(data)[key] for key in kept}, sort_keys=True)
