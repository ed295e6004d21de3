"""What a step's rewarded answers have in common where they need not be right: signs that the reward
is won without solving the problem."""

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from grpo.config.verifier import VerifierConfig
from grpo.console import shorten
from grpo.types import FinishReason, ScoredGroup
from grpo.verify.answers import PARSED_CAP, final_answer, last_box

ECHO, CUT = "reward/echo_share", "reward/truncated_share"
UNMARKED, COPIED = "reward/unmarked_share", "reward/same_text_share"

# A share above its limit is worth a warning; docs/metrics.md has what honest answers show.
_LIMITS = {ECHO: 0.25, CUT: 0.5, UNMARKED: 0.5, COPIED: 0.25}
_SAID = {
    ECHO: "give what stands in their own prompt: the question may be what is paid",
    CUT: "were cut off at rollout.max_tokens: they are paid before they have an end",
    UNMARKED: "mark no answer, and verifier.options.marked: preferred pays prose",
    COPIED: "are word for word answers to other problems, too: they may fit any of them",
}
_ENOUGH_ANSWERS = 8  # rewarded ones; fewer say little
_ENOUGH_PROBLEMS = 4  # siblings are alike, and one odd problem is no trick
_PROBLEM_CHARACTERS = 200
_ANSWER_CHARACTERS = 300
# Texts of this length do not coincide by chance, even where the references do.
_LONG_CHARACTERS = 200

# A number, a word or command, or one other character. White space and $ are left out.
_TOKEN = re.compile(r"\d+(?:[.,]\d+)*|\\?[^\W\d_]+|[^\w\s$]|_")


@dataclass(frozen=True, slots=True)
class PaidAnswer:
    """A response that was rewarded, and what is known of it."""

    problem: str
    reference: str
    text: str
    parsed: str
    finish_reason: FinishReason
    thinking: bool = False  # opened by the prompt


@dataclass(frozen=True, slots=True)
class Paid:
    """A step's rewarded answers: how many, and those that show each sign."""

    count: int
    signs: dict[str, list[PaidAnswer]]

    def shares(self) -> dict[str, float]:
        """nan where nothing was rewarded."""
        return {
            sign: len(answers) / self.count if self.count else math.nan
            for sign, answers in self.signs.items()
        }


class PaidFor:
    """Looks at what a run pays for, and warns once of each sign."""

    def __init__(self, verifier: VerifierConfig):
        mark = verifier.options.get("mark")
        self._mark = mark if isinstance(mark, str) else ""
        self._of_programs = verifier.name == "code"
        # A verifier of somebody's own may have good reasons to look for no mark.
        pays_prose = verifier.options.get("marked") == "preferred"
        self._watched = [sign for sign in _LIMITS if sign != UNMARKED or pays_prose]

    def look_at(self, groups: Sequence[ScoredGroup]) -> Paid:
        paid = list(_paid(groups))
        signs = {
            ECHO: [answer for answer in paid if is_echo(answer)],
            CUT: [answer for answer in paid if answer.finish_reason == "length"],
            COPIED: _copied(paid),
        }
        if not self._of_programs:
            signs[UNMARKED] = [answer for answer in paid if self._is_unmarked(answer)]
        return Paid(len(paid), signs)

    def warnings(self, step: int, paid: Paid) -> Iterator[str]:
        """Of every sign whose share is too high to be chance, once in the life of this object."""
        for sign in list(self._watched):
            answers = paid.signs.get(sign, [])
            first: dict[str, PaidAnswer] = {}
            for answer in answers:
                first.setdefault(answer.problem, answer)
            if (
                paid.count >= _ENOUGH_ANSWERS
                and len(first) >= _ENOUGH_PROBLEMS
                and len(answers) > _LIMITS[sign] * paid.count
            ):
                self._watched.remove(sign)
                examples = list(first.values())[:2]
                yield _warning(step, sign, len(answers), paid.count, examples)

    def _is_unmarked(self, answer: PaidAnswer) -> bool:
        truncated = answer.finish_reason == "length"
        given = final_answer(
            answer.text, truncated=truncated, mark=self._mark, thinking=answer.thinking
        )
        return given is None


def is_echo(answer: PaidAnswer) -> bool:
    """Whether what was read as the answer stands in the problem, and the reference does not: one
    that does is given by right answers, too."""
    if not _stands_in(answer.parsed, answer.problem):
        return False
    return not _stands_in(last_box(answer.reference) or answer.reference, answer.problem)


def _stands_in(text: str, problem: str) -> bool:
    """As whole numbers, words and signs, whatever the case and the spaces: 5 does not stand in
    59."""
    tokens = _TOKEN.findall(text.casefold())
    if len(text) >= PARSED_CAP:
        tokens = tokens[:-1]  # it may be cut in two
    if not tokens:
        return False
    return f" {' '.join(tokens)} " in f" {' '.join(_TOKEN.findall(problem.casefold()))} "


def _copied(paid: Sequence[PaidAnswer]) -> list[PaidAnswer]:
    """Answers whose text was also paid against another reference or, where it is long, for another
    problem at all. The most frequent text comes first."""
    alike: defaultdict[str, list[PaidAnswer]] = defaultdict(list)
    for answer in paid:
        alike[answer.text.strip()].append(answer)
    copies = [
        answers
        for text, answers in alike.items()
        if len({answer.reference for answer in answers}) > 1
        or (len(text) >= _LONG_CHARACTERS and len({answer.problem for answer in answers}) > 1)
    ]
    return [answer for answers in sorted(copies, key=len, reverse=True) for answer in answers]


def _paid(groups: Sequence[ScoredGroup]) -> Iterator[PaidAnswer]:
    for group in groups:
        row = group.group.prompt.row
        for response, verdict in zip(group.group.responses, group.verdicts, strict=True):
            if verdict.reward > 0 and not verdict.was_stopped:  # the lowest may be above 0
                yield PaidAnswer(
                    row.asked,
                    row.answer,
                    response.text,
                    verdict.parsed,
                    response.finish_reason,
                    group.group.prompt.thinking,
                )


def _warning(step: int, sign: str, number: int, count: int, examples: Sequence[PaidAnswer]) -> str:
    shown = [
        f"  problem {shorten(answer.problem, _PROBLEM_CHARACTERS)!r}, reference "
        f"{shorten(answer.reference, _PROBLEM_CHARACTERS)!r}, read as "
        f"{shorten(answer.parsed, _PROBLEM_CHARACTERS)!r}:\n"
        f"    {shorten(answer.text, _ANSWER_CHARACTERS)!r}"
        for answer in examples
    ]
    return "\n".join(
        [
            f"step {step}: {number} of {count} rewarded answers ({sign} {number / count:.2f}) "
            f"{_SAID[sign]}. Two of them:",
            *shown,
            "Read more of them before you trust the reward: docs/howto/gamed-reward.md",
        ]
    )
