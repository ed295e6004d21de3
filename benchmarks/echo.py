"""How often a problem is an answer to itself: its own text, and each of its formulas in a box.

    PYTHONPATH=TREE .venv/bin/python benchmarks/echo.py FILE... [--sample 3000] [--blind]

FILE has JSON Lines with problem and answer. TREE is the revision whose verifier `math` judges;
`--blind` for one whose pool does not tell its verifier the problem. A row counts once for all of
its formulas; "itself" are those where the reference stands in the problem, up to spaces,
dollar signs and a full stop. `--sample`: of longer files so many rows, seed 0, are asked for their
formulas. Lists what else was paid.
"""

import argparse
import json
import random
import re
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from grpo.types import Verdict
from grpo.verify.pool import VerifierPool

_MATH = re.compile(r"\$\$(.+?)\$\$|(?<!\\)\$(.+?)(?<!\\)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_MOST_FORMULAS = 20


def formulas(problem: str) -> list[str]:
    found = [next(group for group in match.groups() if group) for match in _MATH.finditer(problem)]
    return list(dict.fromkeys(one.strip() for one in found if one.strip()))[:_MOST_FORMULAS]


def read(path: Path) -> list[tuple[str, str]]:
    """Every problem with its reference, once."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    return list(
        dict.fromkeys((row["problem"], str(row["answer"])) for row in rows if row["answer"])
    )


def paid(
    pool: VerifierPool, items: list[tuple[str, str, str]], facts: bool
) -> Iterator[tuple[str, str, str]]:
    futures: list[Future[Verdict]] = []
    for problem, gold, said in items:
        told: dict[str, Any] = {"problem": problem} if facts else {}
        futures.append(pool.submit(said, gold, **told))
    for item, future in zip(items, futures, strict=True):
        if future.result().reward > 0:
            yield item


def squeezed(text: str) -> str:
    return re.sub(r"[\s$]|\\boxed|[.,]$", "", text)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--sample", type=int, default=3000)
    parser.add_argument("--blind", action="store_true")
    arguments = parser.parse_args()
    with VerifierPool("math", {}, workers=2, timeout_s=5) as pool:
        for path in arguments.files:
            rows = read(path)
            texts = [(problem, gold, problem) for problem, gold in rows]
            own = list(paid(pool, texts, not arguments.blind))
            asked = rows
            if len(rows) > 4 * arguments.sample:
                asked = random.Random(0).sample(rows, arguments.sample)
            made = [(p, gold, rf"\boxed{{{one}}}") for p, gold in asked for one in formulas(p)]
            echoed = list(paid(pool, made, not arguments.blind))
            other = [x for x in echoed if squeezed(x[2][7:-1]) != squeezed(x[1])]
            print(
                f"{path.stem}: own text {len(own)} of {len(rows)}; a formula "
                f"{len({item[:2] for item in echoed})} of {len(asked)}, not itself "
                f"{len({item[:2] for item in other})}",
                flush=True,
            )
            for _, gold, said in [*own, *other]:
                print(f"    {gold!r} <- {said[-80:]!r}")


if __name__ == "__main__":
    main()
