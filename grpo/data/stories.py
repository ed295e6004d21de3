"""Generated questions about short stories, in words that a pretrained model knows."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from grpo.data.tasks import TASKS, Split, check_smallest, split_of
from grpo.errors import UserError
from grpo.types import Row, Turn

PEOPLE = (
    "Anna",
    "Ben",
    "Clara",
    "Daniel",
    "Emma",
    "Felix",
    "Grace",
    "Henry",
    "Ivan",
    "Julia",
    "Kate",
    "Leo",
    "Mary",
    "Nora",
    "Omar",
    "Paul",
    "Rosa",
    "Simon",
    "Tom",
    "Vera",
)
THINGS = (
    "apples",
    "books",
    "cards",
    "coins",
    "cups",
    "eggs",
    "flowers",
    "hats",
    "keys",
    "lemons",
    "letters",
    "maps",
    "nuts",
    "pears",
    "pens",
    "plums",
    "shells",
    "stamps",
    "stones",
    "toys",
)
# Told, asked for with a helper: "Ben found 12 nuts", "How many nuts did Ben find?"
_VERBS = (("has", "does", "have"), ("found", "did", "find"), ("sold", "did", "sell"))
_PLACES = ("first", "second", "third", "last")
_DRY_DRAWS = 2000
_MOST = 10_000

Kind = Literal["amount", "owner", "most", "place"]
_Draw = Callable[[np.random.Generator, int], tuple[str, str]]


def _amount(rng: np.random.Generator, largest: int) -> tuple[str, str]:
    story, people, amounts, thing, verb = _story(rng, largest)
    who = rng.integers(len(people))
    _, helper, base = verb
    return f"{story} How many {thing} {helper} {people[who]} {base}?", str(amounts[who])


def _owner(rng: np.random.Generator, largest: int) -> tuple[str, str]:
    story, people, amounts, thing, verb = _story(rng, largest)
    who = rng.integers(len(people))
    return f"{story} Who {verb[0]} {amounts[who]} {thing}?", people[who]


def _most(rng: np.random.Generator, largest: int) -> tuple[str, str]:
    story, people, amounts, thing, verb = _story(rng, largest)
    return f"{story} Who {verb[0]} the most {thing}?", people[int(np.argmax(amounts))]


def _place(rng: np.random.Generator, _: int) -> tuple[str, str]:
    *first, last = words = _some(THINGS, 4, rng)
    place = rng.integers(len(_PLACES))
    owner = _some(PEOPLE, 1, rng)[0]
    listed = f"{', '.join(first)} and {last}"
    return f"{owner} writes: {listed}. What is the {_PLACES[place]} word?", words[place]


_KINDS: dict[Kind, _Draw] = {"amount": _amount, "owner": _owner, "most": _most, "place": _place}
# Nobody in them is in a question.
_EXAMPLES: dict[Kind, tuple[str, str]] = {
    "amount": ("Sam has 7 balls, Eve has 23 balls. How many balls does Eve have?", "23"),
    "owner": ("Sam sold 8 rings, Eve sold 31 rings. Who sold 8 rings?", "Sam"),
    "most": ("Sam found 40 bags, Eve found 12 bags. Who found the most bags?", "Sam"),
    "place": ("Eve writes: balls, rings, bags and dogs. What is the second word?", "rings"),
}


@TASKS.register("stories")
def stories(
    *,
    split: Split = "train",
    rows: int = 4096,
    seed: int = 0,
    kinds: Sequence[Kind] = tuple(_KINDS),
    largest: int = 60,
    examples: int = 2,
) -> list[Row]:
    """Distinct questions about stories of a sentence or two, whose answer is a word or a number of
    the story: "Ben found 12 nuts, Rosa found 45 nuts and Tom found 7 nuts. Who found 45 nuts?"

    kinds: `amount` (how many has one of three), `owner` (who has so many), `most` (who has the
    most), `place` (which word of four comes second), equally frequent; a row says its own in the
    column `kind`. largest: amounts are 2..largest. examples: answered questions that go before each
    as turns of a chat, of the first kinds; needs chat: true.

    Deterministic by seed. A question belongs to one split by a hash of its text, so train and
    heldout share none whatever the other options. Verifier `exact` judges answers: "Answer: 45".
    """
    check_smallest(
        "stories",
        ("rows", rows, 1),
        ("kinds (their number)", len(kinds), 1),
        ("largest", largest, 4),
        ("examples", examples, 0),
    )
    if examples > len(kinds):
        raise UserError(
            f"task 'stories': examples is {examples} and kinds has {len(kinds)}: there is one "
            "example of each kind, use no more of them"
        )
    if largest > _MOST:
        raise UserError(f"task 'stories': largest is {largest}, expected {_MOST:,} at most")
    rng = np.random.default_rng(seed)
    earlier = tuple(turn for kind in kinds[:examples] for turn in _example(kind))
    found: dict[str, Row] = {}
    dry = 0
    while len(found) < rows:
        kind = kinds[len(found) % len(kinds)]
        problem, answer = _KINDS[kind](rng, largest)
        if problem in found or split_of(problem) != split:
            dry += 1
            if dry > _DRY_DRAWS:
                raise UserError(
                    f"task 'stories': rows is {rows} but only {len(found)} distinct {split} "
                    f"questions were found: use fewer rows, more kinds, or a higher largest"
                )
            continue
        dry = 0
        extra: dict[str, Any] = {"kind": kind}
        found[problem] = Row(problem, problem, answer, extra=extra, earlier=earlier)
    return [list(found.values())[index] for index in rng.permutation(len(found))]


def _example(kind: Kind) -> tuple[Turn, Turn]:
    question, answer = _EXAMPLES[kind]
    return Turn("user", question), Turn("assistant", f"Answer: {answer}")


def _story(
    rng: np.random.Generator, largest: int
) -> tuple[str, list[str], list[int], str, tuple[str, str, str]]:
    """What is told of three people, who they are, how many each has, of what, and the verb."""
    people = _some(PEOPLE, 3, rng)
    amounts = (rng.permutation(largest - 1)[:3] + 2).tolist()
    thing = _some(THINGS, 1, rng)[0]
    verb = _VERBS[rng.integers(len(_VERBS))]
    told = [f"{who} {verb[0]} {n} {thing}" for who, n in zip(people, amounts, strict=True)]
    return f"{told[0]}, {told[1]} and {told[2]}.", people, amounts, thing, verb


def _some(words: Sequence[str], count: int, rng: np.random.Generator) -> list[str]:
    return [words[int(index)] for index in rng.permutation(len(words))[:count]]
