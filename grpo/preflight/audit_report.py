"""What an audit found: on the screen, as files, and as an exit code."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from grpo.config.data import DataConfig
from grpo.config.recipe import VerifierConfig
from grpo.console import Screen
from grpo.data.giveaways import FOLDER, SUFFIX, write_giveaways
from grpo.errors import RunError
from grpo.preflight.attacks import GIVEAWAYS, GUESSES, LUCK
from grpo.preflight.audit import Audit, Finding
from grpo.preflight.mutate import ANOTHERS, FORMATS, MUTATIONS
from grpo.store.files import replacing

_SHOWN = 20  # rows of each list on the screen; all of them are in the files
_SHOWN_CHARACTERS = 60


@dataclass(frozen=True, slots=True)
class Limits:
    """Shares above which an audit fails: of rows that can never be rewarded, of rows that an attack
    gets or wrong answers that are taken for right, and of rows that a guess gets."""

    never: float
    most: float
    guessed: float


def report(
    result: Audit,
    audited: tuple[DataConfig, VerifierConfig],
    limits: Limits,
    out: Path | None,
    screen: Screen,
) -> None:
    """Shows all of it and writes it to `out`, default runs/verify/NAME.VERIFIER.json, and the
    giveaways beside it. Raises RunError where a limit is exceeded."""
    config, judge = audited
    show(result, f"{config.name}, verifier {judge.name}", screen, limits)
    out = out or FOLDER / f"{config.name}.{judge.name}.json"
    giveaways = out.with_name(f"{out.name.removesuffix('.json')}{SUFFIX}")
    facts = {
        "data": config.name,
        "path": config.path,
        "verifier": judge.name,
        "options": judge.options,
        "timeout_s": judge.timeout_s,
    }
    save(result, facts, out, giveaways)
    screen.note(f"wrote {out} and {giveaways}")
    check_limits(result, limits)


def show(result: Audit, title: str, screen: Screen, limits: Limits) -> None:
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
        (name, judged, result.fooled[name], _percent(result.fooled[name], judged))
        for name in (*MUTATIONS, ANOTHERS)
        if (judged := result.mutated[name])
    ]
    screen.table(
        f"wrong answers made from the reference, {limits.most:.2%} allowed",
        ("made by", "judged", "accepted", "share"),
        wrong,
    )
    _show_attacks(result, screen, limits)
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
        lines = [(f.row, f.id, _short(f.answer), _short(f.what)) for f in findings[:_SHOWN]]
        _list(heading, len(findings), ("row", "id", "reference", "what"), lines, screen)


def _show_attacks(result: Audit, screen: Screen, limits: Limits) -> None:
    lines: list[tuple[object, ...]] = []
    for names, allowed in (
        (GIVEAWAYS, f"{limits.most:.2%}"),
        (GUESSES, f"{limits.guessed:.2%}"),
        (LUCK, "-"),
    ):
        for name in names:
            had = result.had[name]
            share = _percent(had, result.num_rows)
            lines.append((name, result.attacked[name], had, share, allowed))
    screen.table(
        "answers made from the problem alone, share of all rows",
        ("said", "rows", "paid", "share", "allowed"),
        lines,
    )
    given = [one for one in result.giveaways if one.kind == "giveaway"]
    shown = [(one.row, one.id, one.attack, _short(one.said)) for one in given[:_SHOWN]]
    _list("giveaways", len(given), ("row", "id", "attack", "said"), shown, screen)
    guessed = {one.row for one in result.giveaways} - {one.row for one in given}
    if guessed:
        screen.note(
            f"rows whose reference is a number or a choice of the problem: {len(guessed):,}"
        )


def _list(
    heading: str, found: int, columns: Sequence[str], lines: Sequence[Any], screen: Screen
) -> None:
    if found:
        more = f" (the first {len(lines)})" if found > len(lines) else ""
        screen.table(f"{heading}: {found:,}{more}", columns, lines)


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.2f} %" if whole else "-"


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 3] + "..."


def save(result: Audit, facts: dict[str, Any], path: Path, giveaways: Path) -> None:
    """Everything as JSON: the facts given, the counts, and all rows of every list. The giveaways
    go to a file of their own, which `grpo data prepare` reads."""
    tree = facts | {
        "rows": result.num_rows,
        "accepted": {name: result.accepted[name] for name in FORMATS},
        "wrong_judged": dict(result.mutated),
        "wrong_accepted": {name: result.fooled[name] for name in result.mutated},
        "attacked": dict(result.attacked),
        "attacks_paid": {name: result.had[name] for name in result.attacked},
        "giveaways": str(giveaways),
        "reasons": dict(result.reasons),
        "latency_ms": result.latency_ms(),
        "never_share": result.never_share,
        "never": _plain(result.never),
        "partly": _plain(result.partly),
        "false_positives": _plain(result.false_positives),
        "timeouts_and_crashes": _plain(result.stopped),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(tree, indent=2) + "\n", encoding="utf-8")
    write_giveaways(giveaways, str(facts["data"]), result.rows, result.giveaways, facts)


def _plain(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    return [asdict(finding) for finding in findings]


def check_limits(result: Audit, limits: Limits) -> None:
    """Raises RunError naming every limit that is exceeded."""
    n, said = result.num_rows, []
    if result.never_share > limits.never:
        said.append(
            f"{len(result.never):,} of {n:,} rows ({_percent(len(result.never), n)}) "
            f"can never be rewarded, and the limit is {100 * limits.never:g} %: mend or drop them, "
            "use another verifier, or raise --limit"
        )
    for name in (*MUTATIONS, ANOTHERS):
        if result.fooled_share(name) > limits.most:
            paid, judged = result.fooled[name], result.mutated[name]
            said.append(
                f"{name!r} makes {paid:,} of {judged:,} wrong answers ({_percent(paid, judged)}) "
                f"that are paid, and the limit is {100 * limits.most:g} %: look at them, use a "
                "stricter verifier, or raise --most"
            )
    for names, limit, option, drop in (
        (GIVEAWAYS, limits.most, "--most", "drop"),
        (GUESSES, limits.guessed, "--most-guessed", "drop_guesses"),
    ):
        said += [
            f"{name!r} is paid on {result.had[name]:,} of {n:,} rows "
            f"({_percent(result.had[name], n)}), and the limit is {100 * limit:g} %: leave them "
            f"out (grpo data prepare, filters.giveaways={drop}), use a stricter verifier, or raise "
            f"{option}"
            for name in names
            if result.had_share(name) > limit
        ]
    if said:
        raise RunError("\n".join(said))
