"""`grpo verify` over every data set and benchmark whose rows are at hand: `make attacks`.

    .venv/bin/python benchmarks/attacks.py [DIR] [NAME=FILE ...] [--rows N] [--only NAME ...]

At hand are generated rows, prepared/NAME.jsonl, the FILE that is given for a NAME, and what DIR has
under the name of a known copy, or under NAME.jsonl, .json or .parquet. The others are skipped, and
it is said why. Results go to runs/verify/, as those of `grpo verify`. Exit code 1 where a limit of
`grpo verify` is exceeded, with its defaults.
"""

import argparse
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from grpo.cli.verify import LIMIT, MOST, MOST_GUESSED
from grpo.config.data import Choice, DataConfig
from grpo.config.load import load_data, load_suite
from grpo.config.recipe import VerifierConfig
from grpo.console import Screen
from grpo.errors import RunError, UserError
from grpo.preflight.audit import audit
from grpo.preflight.audit_report import Limits, report
from grpo.verify import VERIFIERS

LIMITS = Limits(LIMIT, MOST, MOST_GUESSED)


class Skipped(Exception):
    """Why a declaration is not attacked."""


def declared(root: Path) -> Iterator[tuple[DataConfig, Choice]]:
    """Every declaration and every benchmark once, with the verifier that judges its answers."""
    names: set[str] = set()
    for path in sorted(root.glob("data/*.yaml")):
        data = load_data(str(path), [])
        own = data.task is not None and data.task.name in list(VERIFIERS)
        names.add(data.name)
        yield data, Choice(name=data.task.name if own and data.task else "math")
    for path in sorted(root.glob("eval/*.yaml")):
        for benchmark in load_suite(path).benchmarks:
            if benchmark.name not in names:
                names.add(benchmark.name)
                # The tolerance of a reference stands in a column of its own, its value in another.
                within = benchmark.verifier.name == "math_within"
                verifier = Choice(name="math") if within else benchmark.verifier
                yield benchmark.data.model_copy(update={"name": benchmark.name}), verifier


def at_hand(data: DataConfig, folder: Path | None, given: Mapping[str, str]) -> DataConfig:
    """The declaration with the file that its rows come from. Raises Skipped."""
    if data.name in given:
        return data.model_copy(update={"path": given[data.name]})
    if data.task is not None:
        return data
    known = [copy.file for copy in data.copies]
    known += [f"{data.name}{suffix}" for suffix in (".jsonl", ".json", ".parquet")]
    found = [Path("prepared") / f"{data.name}.jsonl"]
    if folder is not None:
        found += [path for name in known for path in sorted(folder.rglob(name))]
    for path in found:
        if path.is_file():
            return data.model_copy(update={"path": str(path)})
    raise Skipped(f"none of {', '.join(known)} is at hand")


def attack(data: DataConfig, verifier: Choice, screen: Screen) -> None:
    """Raises RunError above a limit."""
    if verifier.name == "code":
        raise Skipped("programs are not audited")
    judge = VerifierConfig.model_validate(
        {
            "name": verifier.name,
            "workers": len(os.sched_getaffinity(0)),
            "options": verifier.options,
        }
    )
    report(audit(data, judge, (), screen), (data, judge), LIMITS, None, screen)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("where", nargs="*", help="a folder with files of rows, and NAME=FILE")
    parser.add_argument("--rows", type=int, help="the first rows of each only")
    parser.add_argument("--only", nargs="+", default=[], help="names of data sets")
    arguments = parser.parse_args()
    given = dict(one.split("=", 1) for one in arguments.where if "=" in one)
    folders = [Path(one) for one in arguments.where if "=" not in one]
    if len(folders) > 1 or not all(folder.is_dir() for folder in folders):
        parser.error(f"expected one folder that is there, got {', '.join(map(str, folders))}")
    screen, became = Screen(), []
    for data, verifier in declared(Path(__file__).parents[1]):
        if arguments.only and data.name not in arguments.only:
            continue
        try:
            here = at_hand(data, folders[0] if folders else None, given)
            if arguments.rows is not None:
                here = here.model_copy(update={"rows": arguments.rows})
            attack(here, verifier, screen)
            became.append((data.name, verifier.name, "passed", ""))
        except Skipped as skipped:
            became.append((data.name, verifier.name, "skipped", str(skipped)))
        except (RunError, UserError) as error:
            became.append((data.name, verifier.name, "FAILED", str(error)))
    screen.table("attacks", ("data", "verifier", "what", "why"), became)
    return int(any(what == "FAILED" for _, _, what, _ in became))


if __name__ == "__main__":
    sys.exit(main())
