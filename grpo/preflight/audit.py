"""`grpo verify`: data and verifier judged together, before a model answers anything."""

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from grpo.config.data import DataConfig
from grpo.config.recipe import VerifierConfig
from grpo.console import Screen
from grpo.data import load_rows
from grpo.data.giveaways import Giveaway, fingerprint
from grpo.errors import UserError
from grpo.preflight.attacks import GIVEAWAYS, GUESSES, LUCK, Attacker, marks_of
from grpo.preflight.mutate import ANOTHERS, FORMATS, JUDGED_IN, MUTATIONS, answer_of_another
from grpo.types import Row, Verdict
from grpo.verify.answers import last_box
from grpo.verify.pool import VerifierPool

_KEPT_CHARACTERS = 500
_PERCENTILES = (50, 90, 99, 100)
_NOT_NAMED = frozenset(LUCK[1:])  # of the commonest reference the problem knows nothing


@dataclass(frozen=True, slots=True)
class Case:
    """One response to judge against the reference of row `index`. A right one repeats `given` in
    a format, a wrong one is `given` after a mutation, one from the problem alone is what some
    attacks give; `kinds` names the format, the mutation or the attacks."""

    index: int
    origin: Literal["right", "wrong", "problem"]
    kinds: tuple[str, ...]
    given: str
    response: str


@dataclass(frozen=True, slots=True)
class Finding:
    """A row, by its position (from 1) and its id, with what is wrong with it. `formats` is the
    number of formats in which its reference was refused."""

    row: int
    id: str
    answer: str
    what: str
    formats: int = 0


@dataclass(slots=True)
class Audit:
    """What became of every case. `seconds` are those of the verdicts in their order."""

    rows: list[Row]
    accepted: Counter[str] = field(default_factory=Counter)  # right ones, by format
    mutated: Counter[str] = field(default_factory=Counter)  # wrong ones, by mutation
    fooled: Counter[str] = field(default_factory=Counter)  # wrong ones that were accepted
    attacked: Counter[str] = field(default_factory=Counter)  # rows, by attack
    had: Counter[str] = field(default_factory=Counter)  # rows on which the attack was paid
    reasons: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    never: list[Finding] = field(default_factory=list)
    partly: list[Finding] = field(default_factory=list)
    false_positives: list[Finding] = field(default_factory=list)
    stopped: list[Finding] = field(default_factory=list)
    giveaways: list[Giveaway] = field(default_factory=list)

    @property
    def num_rows(self) -> int:
        return len(self.rows)

    @property
    def never_share(self) -> float:
        return len(self.never) / self.num_rows

    def had_share(self, attack: str) -> float:
        """Of all rows, those that the attack could not be made on included."""
        return self.had[attack] / self.num_rows

    def fooled_share(self, mutation: str) -> float:
        """Of the wrong answers that were judged."""
        return self.fooled[mutation] / max(1, self.mutated[mutation])

    def latency_ms(self) -> dict[str, float]:
        values = np.percentile(self.seconds, _PERCENTILES) * 1e3
        names = [f"p{p}" if p < 100 else "max" for p in _PERCENTILES]
        return {name: round(float(v), 2) for name, v in zip(names, values, strict=True)}


def audit(
    config: DataConfig,
    verifier: VerifierConfig,
    plugins: tuple[str, ...],
    screen: Screen,
) -> Audit:
    """Judges every row's reference in every format, wrong answers made from it, and answers made
    from the problem alone. All rows are audited, whatever an earlier audit said of them.

    Raises UserError for data that cannot be read and for verifiers that take no answers as text.
    """
    if verifier.name == "code":
        raise UserError(
            "verifier 'code' judges programs against tests, and a row has no program to begin "
            "with: an audit needs a verifier of answers, such as math, exact or countdown"
        )
    pool = VerifierPool(
        verifier.name,
        verifier.options,
        workers=verifier.workers,
        timeout_s=verifier.timeout_s,
        plugins=plugins,
    )
    filters = config.filters.model_copy(update={"giveaways": "keep"})
    rows = load_rows(config.model_copy(update={"filters": filters}))
    result = Audit(rows)
    stated = _stated(rows, config)
    attacker = Attacker(
        marks_of(config, verifier.options), config.template, Counter(stated).most_common(1)[0][0]
    )
    with pool, screen.progress(f"verify {config.name}", len(rows)) as bar:
        for index, judged in enumerate(_by_row(pool, rows, _cases(rows, stated, attacker))):
            _add(result, index, judged)
            bar.advance()
    return result


def _stated(rows: Sequence[Row], config: DataConfig) -> list[str]:
    """What a right response states. A generated row's reference may be something else (the numbers
    of a puzzle), and its worked solution shows the answer; elsewhere it is the reference, or what
    it marks where it is a whole solution."""
    texts = [row.solution if config.task is not None else row.answer for row in rows]
    return [last_box(text) or row.answer for text, row in zip(texts, rows, strict=True)]


def _cases(rows: Sequence[Row], stated: Sequence[str], attacker: Attacker) -> Iterator[Case]:
    for index, gold in enumerate(stated):
        for name, write in FORMATS.items():
            yield Case(index, "right", (name,), gold, write(gold))
        wrong = {name: mutate(gold) for name, mutate in MUTATIONS.items()}
        wrong[ANOTHERS] = answer_of_another(stated, index)
        for name, given in wrong.items():
            if given is not None:
                yield Case(index, "wrong", (name,), given, FORMATS[JUDGED_IN](given))
        for response, names in attacker.responses(rows[index].problem).items():
            yield Case(index, "problem", tuple(names), response, response)


def _by_row(
    pool: VerifierPool, rows: Sequence[Row], cases: Iterator[Case]
) -> Iterator[list[tuple[Case, Verdict]]]:
    """The judged cases of each row in turn; no more responses exist at a time than are judged."""
    waiting: deque[Case] = deque()

    def items() -> Iterable[tuple[str, str, str]]:
        for case in cases:
            waiting.append(case)
            yield case.response, rows[case.index].answer, rows[case.index].asked

    judged: list[tuple[Case, Verdict]] = []
    for verdict in pool.stream(items()):
        case = waiting.popleft()
        if judged and judged[0][0].index != case.index:
            yield judged
            judged = []
        judged.append((case, verdict))
    yield judged


def _add(result: Audit, index: int, judged: list[tuple[Case, Verdict]]) -> None:
    row = result.rows[index]

    def found(what: str) -> Finding:
        return Finding(index + 1, row.id, row.answer[:_KEPT_CHARACTERS], what[:_KEPT_CHARACTERS])

    refused: dict[str, str] = {}
    for case, verdict in judged:
        result.seconds.append(verdict.seconds)
        result.reasons[verdict.reason.split(":")[0]] += 1
        is_accepted = verdict.reward > 0
        if verdict.was_stopped:
            result.stopped.append(found(f"{verdict.reason} on {case.response!r}"))
        kind = case.kinds[0]
        if case.origin == "right":
            result.accepted[kind] += is_accepted
            if not is_accepted:
                refused[kind] = verdict.reason
        elif case.origin == "wrong":
            result.mutated[kind] += 1
            if is_accepted:
                result.fooled[kind] += 1
                result.false_positives.append(found(f"{kind}: {case.given} ({verdict.reason})"))
    if refused:
        # Formats that share a reason stand together.
        by_reason = {
            reason: [f for f in refused if refused[f] == reason] for reason in refused.values()
        }
        what = "; ".join(f"{', '.join(formats)}: {reason}" for reason, formats in by_reason.items())
        finding = replace(found(what), formats=len(refused))
        (result.never if len(refused) == len(FORMATS) else result.partly).append(finding)
    _add_attacks(result, index, judged)


def _add_attacks(result: Audit, index: int, judged: list[tuple[Case, Verdict]]) -> None:
    """A row counts once for each attack, whichever of its answers is paid."""
    row = result.rows[index]
    attacks: dict[str, str | None] = {}  # what was paid, by attack
    for case, verdict in judged:
        if case.origin == "problem":
            for name in case.kinds:
                paid = case.response if verdict.reward > 0 else None
                attacks[name] = attacks.get(name) or paid
    result.attacked.update(attacks.keys())
    for name in (*GIVEAWAYS, *GUESSES, *LUCK):
        said = attacks.get(name)
        if said is None:
            continue
        result.had[name] += 1
        if name not in _NOT_NAMED:
            kind = "giveaway" if name in GIVEAWAYS else "guess"
            said = said[:_KEPT_CHARACTERS]
            mark = fingerprint(row)
            result.giveaways.append(Giveaway(index + 1, row.id, mark, kind, name, said))
