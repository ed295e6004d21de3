"""Every benchmark, one after the other, each in its own process: `make bench`.

    .venv/bin/python benchmarks/run_all.py [--out .bench] [--only NAME ...]

Writes bench.json and bench.md into the folder. One that fails or outlasts its time is said so in
both, the others go on, and the exit code is 1. An aim that is not met is no failure: the table says
it. About 20 minutes on two cores, five of them for what is made the first time: two small models
and TRL's environment.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import psutil
from common import Row, Spread, markdown


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A script of this folder; past `limit_s`, twice what it takes and more, it is ended with all
    that it started."""

    name: str
    limit_s: int
    arguments: tuple[str, ...] = ()


BENCHMARKS = (
    Benchmark("rollouts", 480),
    Benchmark("trl_step", 1500),
    Benchmark("head", 600),
    Benchmark("packing", 600),
    Benchmark("sync", 600),
    Benchmark("staleness", 900),
    Benchmark("scaling", 480),
    Benchmark("checkpoint", 480),
)


def run(benchmark: Benchmark, out: Path) -> dict[str, Any]:
    """Its result as common.report wrote it, with the seconds it took; or {"failed": why}."""
    result = out / f"{benchmark.name}.json"
    result.unlink(missing_ok=True)
    script = os.path.relpath(Path(__file__).with_name(f"{benchmark.name}.py"))
    arguments = [script, *benchmark.arguments, "--json", str(result)]
    print(f"\n=== python {shlex.join(arguments)}", flush=True)
    started = time.monotonic()
    process = subprocess.Popen([sys.executable, *arguments])
    why = ""
    try:
        code = process.wait(benchmark.limit_s)
        why = f"exit code {code}" if code else ""
    except subprocess.TimeoutExpired:
        end(process)
        why = f"took longer than {benchmark.limit_s} s"
    except KeyboardInterrupt:
        end(process)
        raise
    facts = {"name": benchmark.name, "seconds": round(time.monotonic() - started, 1)}
    if not why and not result.is_file():
        why = "wrote no result"
    if why:
        print(f"=== {benchmark.name} failed: {why}", flush=True)
        return facts | {"failed": why}
    return json.loads(result.read_text()) | facts


def end(process: subprocess.Popen[bytes]) -> None:
    """Kills it and what it started, whatever session that is in."""
    whole = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for each in whole:
        try:
            each.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(whole, timeout=10)


def table(results: list[dict[str, Any]], minutes: float) -> str:
    """The whole as Markdown: the rows of all, then what they were measured with."""
    rows = [
        Row(r["what"], r["ours"], r["rival"], Spread(**r["ratio"]), r["aim"])
        for result in results
        for r in result.get("rows", [])
    ]
    lines = [markdown(rows), ""]
    lines += [
        f"**{result['name']} failed: {result['failed']}.**"
        for result in results
        if "failed" in result
    ]
    commands = [f"`{result['command']}`" for result in results if "command" in result]
    versions: dict[str, str] = {}
    for result in results:
        versions |= result.get("versions", {})
    named = ", ".join(f"{package} {number}" for package, number in versions.items())
    lines.append(
        f"{date.today().isoformat()}, {os.cpu_count()} CPU cores, {minutes:.0f} minutes in all. "
        f"{named}. Commands: {'; '.join(commands)}. A ratio is ours over the rival's; in brackets "
        "the range over rounds of one run."
    )
    return "\n".join(lines) + "\n"


def main(arguments: argparse.Namespace) -> int:
    names = [benchmark.name for benchmark in BENCHMARKS]
    if unknown := sorted(set(arguments.only) - set(names)):
        print(f"error: no benchmark {unknown[0]!r}: choose from {', '.join(names)}")
        return 2
    arguments.out.mkdir(parents=True, exist_ok=True)
    chosen = [b for b in BENCHMARKS if not arguments.only or b.name in arguments.only]
    started = time.monotonic()
    results = [run(benchmark, arguments.out) for benchmark in chosen]
    minutes = (time.monotonic() - started) / 60
    text = table(results, minutes)
    whole = {
        "date": date.today().isoformat(),
        "minutes": round(minutes, 1),
        "benchmarks": results,
    }
    (arguments.out / "bench.json").write_text(json.dumps(whole, indent=1) + "\n")
    (arguments.out / "bench.md").write_text(text)
    print(f"\n{text}\nwrote {arguments.out / 'bench.json'} and {arguments.out / 'bench.md'}")
    return int(any("failed" in result for result in results))


if __name__ == "__main__":
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--out", type=Path, default=Path(".bench"))
    options.add_argument("--only", nargs="+", default=[], metavar="NAME")
    sys.exit(main(options.parse_args()))
