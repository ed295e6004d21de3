"""Whether two answers say the same, and by which rule."""

from collections.abc import Callable
from functools import partial

from grpo.verify.answers import fold
from grpo.verify.equivalence import (
    forms,
    functions,
    intervals,
    letters,
    lists,
    moduli,
    parameters,
    rules,
    spoken,
    vectors,
    words,
)
from grpo.verify.equivalence.copies import copied
from grpo.verify.equivalence.expressions import Options, same_expression
from grpo.verify.equivalence.finished import is_unsolved, unfinished
from grpo.verify.equivalence.guards import too_complex, too_large
from grpo.verify.equivalence.operations import left_to_do
from grpo.verify.equivalence.spelling import mend, tidy
from grpo.verify.equivalence.text import Same, squeeze
from grpo.verify.equivalence.units import Nouns, nouns_of

# (gold, answer, same) -> True: accepted; False: refused, whatever the others say; None: not mine.
Rule = Callable[[str, str, Same], bool | None]

_DEEPEST = 6
_MOST_COMPARISONS = 300

# In this order: what takes something off comes before what compares.
RULES: dict[str, Rule] = {
    "alternatives": rules.alternatives,
    "decimal comma": rules.decimal_comma,
    "words": words.same_words,
    "yes or no": words.yes_or_no,
    "no solution": words.no_solution,
    "spelled number": spoken.spelled_number,
    "ratio": spoken.ratio,
    "choices": letters.choices,
    "choice": letters.choice,
    "circled": letters.circled,
    "residue": moduli.residue,
    "forms": forms.forms,
    "thousands": forms.thousands,
    "parameter": parameters.parameter,
    "interval": intervals.interval,
    "function": functions.definition,
    "plus-minus": lists.plus_minus,
    "name": lists.name,
    "vector": vectors.vector,
    "ordering": lists.ordering,
    "extremes": lists.extremes,
    "numbered": lists.numbered,
    "lead-in": words.lead_in,
    "qualifier": words.qualifier,
    "sentence": words.sentence,
    "statement": words.statement,
    "list": lists.values,
    "chain": rules.chain,
    "rounding": rules.rounding,
    "solved for y": functions.solved_for_y,
}


def judge(gold: str, answer: str, options: Options, problem: str = "") -> str | None:
    """How an answer earns its reward: "correct", "correct: RULE", or None where it does not.

    Both are what a box would hold. "wrong: ..." where the answer is too costly to be read, or has
    the right value and was not worked out (`refusal`).
    """
    answer = fold(answer)
    complex_ = too_complex(answer, gold)
    if complex_ is not None:
        return f"wrong: {complex_}"
    gold, answer = tidy(mend(gold)), tidy(mend(answer))
    if not squeeze(gold) or not squeeze(answer):
        return None
    if squeeze(gold) == squeeze(answer):
        return "correct"
    if too_large(gold) or too_large(answer):
        return "wrong: too large"
    rule = _Judgement(options, nouns_of(problem)).rule(gold, answer)
    if rule is None:
        return None
    refused = refusal(gold, answer, options, problem)
    return refused or (f"correct: {rule}" if rule else "correct")


def refusal(gold: str, answer: str, options: Options, problem: str) -> str | None:
    """Why an answer of the right value is not paid, None where it is; both texts are tidy."""
    number = forms.joined(answer, gold)
    unworked = unfinished(number) and not unfinished(gold)
    unsolved = is_unsolved(gold, answer)
    if options.evaluated and (unworked or unsolved or left_to_do(gold, number, problem)):
        return "wrong: not evaluated"
    if options.original and copied(gold, answer, problem):
        return "wrong: copied from the problem"
    return None


class _Judgement:
    """One judgement: rules call it for the parts that they cut an answer into."""

    def __init__(self, options: Options, nouns: Nouns):
        self._options = options
        self._nouns = nouns
        self._known: dict[tuple[str, str, bool], str | None] = {}
        self._depth = 0

    def rule(self, gold: str, answer: str, exact_units: bool = False) -> str | None:
        """The rule that makes them equal, "" for plain equality, None where none does."""
        key = (gold, answer, exact_units)
        if key not in self._known:
            if self._depth > _DEEPEST or len(self._known) > _MOST_COMPARISONS:
                return None
            self._known[key] = None  # a rule that comes back to where it began goes no further
            self._depth += 1
            self._known[key] = self._find(gold, answer, exact_units)
            self._depth -= 1
        return self._known[key]

    def _same(self, gold: str, answer: str, exact_units: bool) -> bool:
        return self.rule(gold, answer, exact_units) is not None

    def _find(self, gold: str, answer: str, exact_units: bool) -> str | None:
        if squeeze(gold) == squeeze(answer):
            return ""
        number = rules.number(gold, answer, self._options.float_rounding)
        if number is not None:
            return None if number == "no" else number
        same = partial(self._same, exact_units=exact_units)
        for name, rule in RULES.items():
            inner = partial(self._same, exact_units=True) if name == "list" else same
            verdict = rule(gold, answer, inner)
            if verdict is not None:
                return name if verdict else None
        if rules.units(gold, answer, same, exact_units, self._nouns):
            return "units"
        return "" if self._whole(gold, answer) else None

    def _whole(self, gold: str, answer: str) -> bool:
        return same_expression(gold, answer, self._options)
