"""`grpo verify`: data and verifier judged together, before a model answers anything."""

import json
import os
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from grpo.config.data import DataConfig
from grpo.config.recipe import VerifierConfig
from grpo.console import Screen
from grpo.data import load_rows
from grpo.errors import RunError, UserError
from grpo.preflight.mutate import ANOTHERS, FORMATS, JUDGED_IN, MUTATIONS, answer_of_another
from grpo.types import Row, Verdict
from grpo.verify.answers import last_box
from grpo.verify.pool import VerifierPool

_SHOWN = 20  # rows of each list on the screen; all of them are in the file
_SHOWN_CHARACTERS = 60
_KEPT_CHARACTERS = 500
_PERCENTILES = (50, 90, 99, 100)


@dataclass(frozen=True, slots=True)
class Case:
    """One response to judge against the reference of row `index`. A right one repeats `given` in
    the format `kind`, a wrong one is `given` after the mutation `kind`."""

    index: int
    is_right: bool
    kind: str
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

    num_rows: int
    accepted: Counter[str] = field(default_factory=Counter)  # right ones, by format
    mutated: Counter[str] = field(default_factory=Counter)  # wrong ones, by mutation
    fooled: Counter[str] = field(default_factory=Counter)  # wrong ones that were accepted
    reasons: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    never: list[Finding] = field(default_factory=list)
    partly: list[Finding] = field(default_factory=list)
    false_positives: list[Finding] = field(default_factory=list)
    stopped: list[Finding] = field(default_factory=list)

    @property
    def never_share(self) -> float:
        return len(self.never) / self.num_rows

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
    """Judges every row's reference in every format, and wrong answers made from it.

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
    rows = load_rows(config)
    result = Audit(len(rows))
    with pool, screen.progress(f"verify {config.name}", len(rows)) as bar:
        for index, judged in enumerate(_by_row(pool, rows, _stated(rows, config))):
            _add(result, index, rows[index], judged)
            bar.advance()
    return result


def _stated(rows: Sequence[Row], config: DataConfig) -> list[str]:
    """What a right response states. A generated row's reference may be something else (the numbers
    of a puzzle), and its worked solution shows the answer; elsewhere it is the reference, or what
    it marks where it is a whole solution."""
    texts = [row.solution if config.task is not None else row.answer for row in rows]
    return [last_box(text) or row.answer for text, row in zip(texts, rows, strict=True)]


def _cases(stated: Sequence[str]) -> Iterator[Case]:
    for index, gold in enumerate(stated):
        for name, write in FORMATS.items():
            yield Case(index, True, name, gold, write(gold))
        wrong = {name: mutate(gold) for name, mutate in MUTATIONS.items()}
        wrong[ANOTHERS] = answer_of_another(stated, index)
        for name, given in wrong.items():
            if given is not None:
                yield Case(index, False, name, given, FORMATS[JUDGED_IN](given))


def _by_row(
    pool: VerifierPool, rows: Sequence[Row], stated: Sequence[str]
) -> Iterator[list[tuple[Case, Verdict]]]:
    """The judged cases of each row in turn; no more responses exist at a time than are judged."""
    waiting: deque[Case] = deque()

    def items() -> Iterable[tuple[str, str, str]]:
        for case in _cases(stated):
            waiting.append(case)
            yield case.response, rows[case.index].answer, rows[case.index].problem

    judged: list[tuple[Case, Verdict]] = []
    for verdict in pool.stream(items()):
        case = waiting.popleft()
        if judged and judged[0][0].index != case.index:
            yield judged
            judged = []
        judged.append((case, verdict))
    yield judged


def _add(result: Audit, index: int, row: Row, judged: list[tuple[Case, Verdict]]) -> None:
    def found(what: str) -> Finding:
        return Finding(index + 1, row.id, row.answer[:_KEPT_CHARACTERS], what[:_KEPT_CHARACTERS])

    refused: dict[str, str] = {}
    for case, verdict in judged:
        result.seconds.append(verdict.seconds)
        result.reasons[verdict.reason.split(":")[0]] += 1
        is_accepted = verdict.reward > 0
        if verdict.reason.startswith(("timeout", "verifier crashed")):
            result.stopped.append(found(f"{verdict.reason} on {case.response!r}"))
        if case.is_right:
            result.accepted[case.kind] += is_accepted
            if not is_accepted:
                refused[case.kind] = verdict.reason
            continue
        result.mutated[case.kind] += 1
        if is_accepted:
            result.fooled[case.kind] += 1
            result.false_positives.append(found(f"{case.kind}: {case.given} ({verdict.reason})"))
    if refused:
        # Formats that share a reason stand together.
        by_reason = {
            reason: [f for f in refused if refused[f] == reason] for reason in refused.values()
        }
        what = "; ".join(f"{', '.join(formats)}: {reason}" for reason, formats in by_reason.items())
        finding = replace(found(what), formats=len(refused))
        (result.never if len(refused) == len(FORMATS) else result.partly).append(finding)


def show(result: Audit, title: str, screen: Screen) -> None:
    """Tables of shares and latencies, and the first rows of each list."""
    n = result.num_rows
    formats = [
        (name, result.accepted[name], _percent(result.accepted[name], n)) for name in FORMATS
    ]
    screen.table(
        f"{title}: {n:,} references judged against themselves",
        ("written as", "accepted", "share"),
        formats,
    )
    wrong = [
        (
            name,
            result.mutated[name],
            result.fooled[name],
            _percent(result.fooled[name], result.mutated[name]),
        )
        for name in (*MUTATIONS, ANOTHERS)
    ]
    screen.table("wrong answers", ("made by", "judged", "accepted", "share"), wrong)
    facts = [(f"verdict {reason!r}", count) for reason, count in result.reasons.most_common()]
    facts += [(f"ms per verdict, {name}", value) for name, value in result.latency_ms().items()]
    screen.table("verifier", ("what", "value"), facts)
    # Many verifiers do not find an expression in bare prose; what fails more than that comes first.
    by_formats = sorted(result.partly, key=lambda finding: -finding.formats)
    for heading, findings in (
        ("rows that can never be rewarded", result.never),
        ("rows rewarded in some formats only", by_formats),
        ("wrong answers that were accepted", result.false_positives),
        ("timeouts and crashes", result.stopped),
    ):
        if findings:
            _list(f"{heading}: {len(findings):,}", findings, screen)


def _list(heading: str, findings: list[Finding], screen: Screen) -> None:
    shown = [(f.row, f.id, _short(f.answer), _short(f.what)) for f in findings[:_SHOWN]]
    more = f" (the first {_SHOWN})" if len(findings) > _SHOWN else ""
    screen.table(heading + more, ("row", "id", "reference", "what"), shown)


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.2f} %" if whole else "-"


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 3] + "..."


def save(result: Audit, facts: dict[str, Any], path: Path) -> None:
    """Everything as JSON: the facts given, the counts, and all rows of every list."""
    tree = facts | {
        "rows": result.num_rows,
        "accepted": {name: result.accepted[name] for name in FORMATS},
        "wrong_judged": dict(result.mutated),
        "wrong_accepted": {name: result.fooled[name] for name in result.mutated},
        "reasons": dict(result.reasons),
        "latency_ms": result.latency_ms(),
        "never_share": result.never_share,
        "never": [asdict(finding) for finding in result.never],
        "partly": [asdict(finding) for finding in result.partly],
        "false_positives": [asdict(finding) for finding in result.false_positives],
        "timeouts_and_crashes": [asdict(finding) for finding in result.stopped],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(tree, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)


def check_limit(result: Audit, limit: float) -> None:
    """Raises RunError where more than `limit` (a share) of the rows can never be rewarded."""
    if result.never_share > limit:
        raise RunError(
            f"{len(result.never):,} of {result.num_rows:,} rows ({100 * result.never_share:.2f} %) "
            f"can never be rewarded, and the limit is {100 * limit:g} %: mend or drop them, use "
            "another verifier, or raise --limit"
        )
