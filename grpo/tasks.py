"""Rows, the common shape of every data set, and tasks that generate them."""

import hashlib
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from grpo.errors import UserError
from grpo.registry import Registry

Split = Literal["train", "heldout"]


@dataclass(frozen=True)
class Row:
    """One problem with its reference answer; `solution` is worked out, or empty."""

    id: str
    problem: str
    answer: str
    solution: str = ""


TASKS: Registry[Callable[..., list[Row]]] = Registry("task")

_HELDOUT_ONE_IN = 8


@TASKS.register("arithmetic")
def arithmetic(
    *,
    split: Split = "train",
    rows: int = 4096,
    seed: int = 0,
    min_terms: int = 2,
    max_terms: int = 5,
    largest: int = 20,
    worked_share: float = 1.0,
) -> list[Row]:
    """Distinct sums such as 7+12+5 of terms 1..largest, worked out from left to right.

    Deterministic by seed. Each number of terms is equally frequent, except where too few sums of
    that many terms exist: then all of them are used and longer sums fill up. A problem belongs to
    one split by a hash of its text, so train and heldout share none whatever the other options.
    Only `worked_share` of the solutions show their work; the others are the bare boxed answer.
    """
    _check(rows, min_terms, max_terms, largest)
    rng = np.random.default_rng(seed)
    chosen: list[str] = []
    for terms in range(min_terms, max_terms + 1):
        share = -(-(rows - len(chosen)) // (max_terms - terms + 1))
        chosen += _sums(terms, largest, share, split, rng)
    if len(chosen) < rows:
        raise UserError(
            f"task 'arithmetic': rows is {rows} but only {len(chosen)} distinct {split} problems "
            f"of {min_terms} to {max_terms} terms up to {largest} exist: "
            "use fewer rows, or a higher max_terms or largest"
        )
    order = rng.permutation(len(chosen))
    worked = rng.random(len(chosen)) < worked_share
    return [_row(chosen[index], bool(shown)) for index, shown in zip(order, worked, strict=True)]


def split_of(problem: str) -> Split:
    """The split of a generated problem; about one in eight is held out."""
    digest = hashlib.sha256(problem.encode()).digest()
    heldout = int.from_bytes(digest[:8], "big") % _HELDOUT_ONE_IN == 0
    return "heldout" if heldout else "train"


def _check(rows: int, min_terms: int, max_terms: int, largest: int) -> None:
    for option, value, smallest in (
        ("rows", rows, 1),
        ("min_terms", min_terms, 2),
        ("max_terms", max_terms, min_terms),
        ("largest", largest, 1),
    ):
        if value < smallest:
            raise UserError(
                f"task 'arithmetic': {option} is {value}, expected at least {smallest}: raise it"
            )


def _sums(
    terms: int, largest: int, wanted: int, split: Split, rng: np.random.Generator
) -> list[str]:
    """`wanted` distinct problems of this split in random order, or all where fewer exist."""
    if largest**terms <= 64 * wanted:
        every = itertools.product(range(1, largest + 1), repeat=terms)
        mine = [problem for problem in map(_join, every) if split_of(problem) == split]
        return [mine[index] for index in rng.permutation(len(mine))[:wanted]]
    # So many exist (even the held-out ones are 8 times what is wanted) that drawing until
    # enough are found is quick.
    found: dict[str, None] = {}
    while len(found) < wanted:
        problem = _join(rng.integers(1, largest + 1, size=terms).tolist())
        if split_of(problem) == split:
            found[problem] = None
    return list(found)


def _join(terms: Iterable[int]) -> str:
    return "+".join(str(term) for term in terms)


def _row(problem: str, worked: bool) -> Row:
    terms = [int(term) for term in problem.split("+")]
    sums = list(itertools.accumulate(terms))
    steps = [f"{sums[i]}+{terms[i + 1]}={sums[i + 1]}" for i in range(len(terms) - 1)]
    box = f"\\boxed{{{sums[-1]}}}"
    solution = "\n".join([*steps, box]) if worked else box
    return Row(id=problem, problem=problem, answer=str(sums[-1]), solution=solution)
