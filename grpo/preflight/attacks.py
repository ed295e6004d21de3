r"""Answers to a problem that nobody worked out: made from its text alone, by rules that any policy
can learn.

A giveaway costs no luck: one rule that is blind to what is asked gets the reward. A guess is one
number or one choice out of those that stand in the problem, and right by chance now and then: on
published data the first number of a problem is the reference of 1 to 4 % of the rows.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from grpo.config.data import DataConfig
from grpo.verify.equivalence.copies import MATH
from grpo.verify.equivalence.copies import formulas as formulas_of
from grpo.verify.equivalence.text import LONGEST_PROBLEM

MOST_PARTS = 20  # formulas and numbers of one problem that are tried, each
_MOST_CHOICES = 5

# A sum in plain text: 59 + 11, (3+4)*2.
_SUM = re.compile(r"[\d(][\d.() ]{0,60}(?:[-+*/^=×÷]{1,3}[.( ]{0,9}\d[\d.() ]{0,60})+")
_NUMBER = re.compile(r"(?<![\w.\\])-?\d[\d,]*(?:\.\d+)?")
_PLAIN = re.compile(r"-?[\d.,]+")
_CHOICE = re.compile(r"([^\s,;:?!]{1,40}),?\s+or\s+([^\s,;:?!]{1,40})")
_AROUND = " \t\n.,;:?!'\"$()"
_PROSE = (
    "Let us think about this step by step. First we read the problem again and write down what is "
    "given. Then it follows as shown above, and this is the final answer."
)
_EMPTY = ("", "?", "None", "nan")
_EITHER = (("Yes", "No"), ("True", "False"), ("A", "B", "C", "D", "E"))
_COIN = ("Yes", "No", "True", "False")

GIVEAWAYS = (
    "its own text",
    "its own text, marked",
    "prose alone",
    "an empty answer",
    "many boxes",
    "both choices",
    "a formula of it",
)
GUESSES = ("its only number", "its first number", "its last number", "one of two choices")
# Shown beside the others: what blind luck is paid.
LUCK = ("any number of it", "the commonest reference")


@dataclass(frozen=True, slots=True)
class Attacker:
    """`marks` write an answer as the data's prompts ask for it; `template` is that of the prompts;
    `commonest` is what most rows have as their reference."""

    marks: Sequence[Callable[[str], str]]
    template: str
    commonest: str

    def responses(self, problem: str) -> dict[str, list[str]]:
        """Each response once, with the names of the attacks that give it."""
        made: dict[str, list[str]] = {}
        for name, response in self._made(problem[:LONGEST_PROBLEM]):
            names = made.setdefault(response, [])
            if name not in names:
                names.append(name)
        return made

    def _made(self, problem: str) -> Iterator[tuple[str, str]]:
        yield "its own text", problem
        yield "its own text", self.template.replace("{problem}", problem)
        yield "prose alone", _PROSE
        found, numbers = formulas(problem), numbers_of(problem)
        yield "many boxes", _many_boxes([*found, *numbers])
        for given in _options(problem):
            yield "both choices", " or ".join(f"\\boxed{{{one}}}" for one in given)
        for name, given in self._answers(problem, found, numbers):
            for mark in self.marks:
                yield name, mark(given)

    def _answers(
        self, problem: str, found: Sequence[str], numbers: Sequence[str]
    ) -> Iterator[tuple[str, str]]:
        """What stands behind a mark."""
        yield "its own text, marked", problem
        for given in _EMPTY:
            yield "an empty answer", given
        yield "many boxes", ", ".join([*found, *numbers, *map(str, range(10))])
        options = _options(problem)
        for given in options:
            yield "both choices", " or ".join(given)
        for given in {one: None for pair in options if len(pair) == 2 for one in pair}:
            yield "one of two choices", given
        for given in found:
            yield "a formula of it", given
        for at, given in enumerate(numbers):
            yield "any number of it", given
            if len(numbers) == 1:
                yield "its only number", given
            if at == 0:
                yield "its first number", given
        if numbers:
            yield "its last number", last_number(problem)
        yield "the commonest reference", self.commonest


def marks_of(config: DataConfig, options: Mapping[str, object]) -> list[Callable[[str], str]]:
    """A box, and whatever else the prompts or the verifier's option `mark` want an answer in."""
    asked = f"{config.system or ''}\n{config.template}"
    marks: list[Callable[[str], str]] = [lambda given: f"\\boxed{{{given}}}"]
    if "<answer>" in asked:
        marks.append(lambda given: f"<answer>{given}</answer>")
    if "Answer:" in asked:
        marks.append(lambda given: f"Answer: {given}")
    mark = options.get("mark") or ("####" if "####" in asked else "")
    if mark:
        marks.append(lambda given: f"{mark} {given}")
    return marks


def formulas(problem: str) -> list[str]:
    """The formulas of a problem that are more than a number, each once, at most MOST_PARTS."""
    spans = formulas_of(problem)
    sums = _SUM.findall(MATH.sub(" ", problem))
    found = dict.fromkeys(span.strip().rstrip(".,;?").rstrip() for span in [*spans, *sums])
    return [one for one in found if one and not _PLAIN.fullmatch(one)][:MOST_PARTS]


def numbers_of(problem: str) -> list[str]:
    """Its numbers as they are written, each once, at most MOST_PARTS."""
    return list(dict.fromkeys(one.rstrip(",") for one in _NUMBER.findall(problem)))[:MOST_PARTS]


def last_number(problem: str) -> str:
    return _NUMBER.findall(problem)[-1].rstrip(",")


def _options(problem: str) -> list[tuple[str, ...]]:
    """The two sides of each "or" in the problem, then what any problem may let one choose from."""
    pairs = [(a.strip(_AROUND), b.strip(_AROUND)) for a, b in _CHOICE.findall(problem)]
    named = dict.fromkeys(pair for pair in pairs if all(pair) and pair[0] != pair[1])
    return [*list(named)[-_MOST_CHOICES:], *_EITHER]


def _many_boxes(parts: Sequence[str]) -> str:
    """Every part and every digit in a box of its own. The first and the last box hold words, so
    that only a reader who takes any box finds an answer."""
    words = r"\text{one of these}"
    return ". Or it is ".join(f"\\boxed{{{one}}}" for one in [words, *parts, *"0123456789", words])
