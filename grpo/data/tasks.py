"""Tasks that generate their rows."""

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Literal, NamedTuple

import numpy as np

from grpo.errors import UserError
from grpo.registry import Registry
from grpo.types import Row

Split = Literal["train", "heldout"]


TASKS: Registry[Callable[..., list[Row]]] = Registry("task")

_HELDOUT_ONE_IN = 8
_SIGNS = "+-*/"
_DIVISION = _SIGNS.index("/")
_DRAWS_AT_ONCE = 4096
_DRY_DRAWS = 16 * _DRAWS_AT_ONCE
# Products of two such numbers still fit into 64 bits.
_LARGEST_PART = 10**9


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
    check_smallest(
        "arithmetic",
        ("rows", rows, 1),
        ("min_terms", min_terms, 2),
        ("max_terms", max_terms, min_terms),
        ("largest", largest, 1),
    )
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


@TASKS.register("countdown")
def countdown(
    *,
    split: Split = "train",
    rows: int = 4096,
    seed: int = 0,
    min_numbers: int = 3,
    max_numbers: int = 4,
    largest: int = 99,
    largest_target: int = 99,
) -> list[Row]:
    """Distinct puzzles: reach a target of 1..largest_target with all of a few numbers of
    1..largest, each used exactly once, by + - * / (the task of TinyZero).

    Deterministic by seed. Each puzzle comes from an expression of its own, so that it can be
    solved, without negative numbers or fractions on the way; the solution shows its steps. Each
    count of numbers is equally frequent, except where too few puzzles of a count are found: then
    longer ones fill up. The same target with the same numbers in another order is the same puzzle.
    It belongs to one split by a hash, so train and heldout share none whatever the other options.
    The answer, "98 from 44 19 35", is what verifier `countdown` reads.
    """
    check_smallest(
        "countdown",
        ("rows", rows, 1),
        ("min_numbers", min_numbers, 2),
        ("max_numbers", max_numbers, min_numbers),
        ("largest", largest, 1),
        ("largest_target", largest_target, 1),
    )
    rng = np.random.default_rng(seed)
    chosen: list[Row] = []
    for count in range(min_numbers, max_numbers + 1):
        share = -(-(rows - len(chosen)) // (max_numbers - count + 1))
        chosen += _puzzles(count, largest, largest_target, share, split, rng)
    if len(chosen) < rows:
        raise UserError(
            f"task 'countdown': rows is {rows} but only {len(chosen)} distinct {split} puzzles of "
            f"{min_numbers} to {max_numbers} numbers up to {largest} were found: use fewer rows, "
            "or a higher max_numbers, largest or largest_target"
        )
    return [chosen[index] for index in rng.permutation(len(chosen))]


def split_of(problem: str) -> Split:
    """The split of a generated problem; about one in eight is held out."""
    digest = hashlib.sha256(problem.encode()).digest()
    heldout = int.from_bytes(digest[:8], "big") % _HELDOUT_ONE_IN == 0
    return "heldout" if heldout else "train"


def check_smallest(task: str, *limits: tuple[str, int, int]) -> None:
    """Raises UserError for the first (option, value, smallest) whose value is too small."""
    for option, value, smallest in limits:
        if value < smallest:
            raise UserError(
                f"task {task!r}: {option} is {value}, expected at least {smallest}: raise it"
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


def _puzzles(
    count: int,
    largest: int,
    largest_target: int,
    wanted: int,
    split: Split,
    rng: np.random.Generator,
) -> list[Row]:
    """`wanted` distinct puzzles of this split, or fewer where many draws bring no new one."""
    found: dict[str, Row] = {}
    dry = 0
    while len(found) < wanted and dry < _DRY_DRAWS:
        before = len(found)
        for numbers, steps in _solutions(count, largest, largest_target, rng):
            key = " ".join(map(str, [steps[-1].value, *sorted(numbers)]))
            if len(found) < wanted and key not in found and split_of(key) == split:
                found[key] = _puzzle(numbers, steps)
        dry = 0 if len(found) > before else dry + _DRAWS_AT_ONCE
    return list(found.values())


class _Step(NamedTuple):
    """a sign b = value. The part at `first` is a; the last part takes its place; the part that is
    now at `second` is b; the value takes its place."""

    first: int
    second: int
    sign: int
    a: int
    b: int
    value: int


def _solutions(
    count: int, largest: int, largest_target: int, rng: np.random.Generator
) -> Iterator[tuple[list[int], list[_Step]]]:
    """Drawn numbers and random steps that make one number of them, of K draws those whose steps
    stay among the whole numbers from 1 and whose target is in bounds."""
    numbers_K = rng.integers(1, largest + 1, size=(_DRAWS_AT_ONCE, count))
    parts_K, rows_K = numbers_K.copy(), np.arange(_DRAWS_AT_ONCE)
    good_K = (numbers_K <= _LARGEST_PART).all(axis=1)
    steps = []
    for last in range(count - 1, 0, -1):
        first_K, second_K, sign_K = (
            rng.integers(0, end, size=_DRAWS_AT_ONCE) for end in (last + 1, last, len(_SIGNS))
        )
        a_K = parts_K[rows_K, first_K]
        parts_K[rows_K, first_K] = parts_K[:, last]
        b_K = parts_K[rows_K, second_K]
        value_K = np.choose(sign_K, [a_K + b_K, a_K - b_K, a_K * b_K, a_K // b_K])
        good_K &= (value_K >= 1) & (value_K <= _LARGEST_PART)
        good_K &= (sign_K != _DIVISION) | (a_K % b_K == 0)
        value_K = np.where(good_K, value_K, 1)  # a bad draw goes on with what cannot fail
        parts_K[rows_K, second_K] = value_K
        steps.append(np.stack([first_K, second_K, sign_K, a_K, b_K, value_K], axis=1))
    good_K &= parts_K[:, 0] <= largest_target
    kept = np.stack(steps, axis=1)[good_K].tolist()
    for numbers, draw in zip(numbers_K[good_K].tolist(), kept, strict=True):
        yield numbers, [_Step(*step) for step in draw]


def _puzzle(numbers: list[int], steps: list[_Step]) -> Row:
    texts = [str(number) for number in numbers]
    lines = []
    for step in steps:
        sign = _SIGNS[step.sign]
        left, texts[step.first] = texts[step.first], texts[-1]
        texts.pop()
        texts[step.second] = f"({left}{sign}{texts[step.second]})"
        lines.append(f"{step.a}{sign}{step.b}={step.value}")
    target = steps[-1].value
    answer = f"{target} from {' '.join(map(str, numbers))}"
    listed = ", ".join(map(str, numbers))
    return Row(
        id=answer,
        problem=f"Make {target} from the numbers {listed}.",
        answer=answer,
        solution="\n".join([*lines, f"\\boxed{{{texts[0][1:-1]}}}"]),
    )
