"""The table of chaos.py's rounds."""

import statistics
from collections.abc import Iterable, Sequence
from typing import Any


def table(rounds: Sequence[dict[str, Any]], kinds: Iterable[str]) -> str:
    """By kind, as Markdown."""
    lines = [
        "| what happened | rounds | healed inside | ended, resumed | lost | s more than usual | "
        "s to the next step | processes left | prompts lost or repeated | same to the bit | "
        "tracebacks |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    struck = [each for each in rounds if each["outcome"] != "missed"]
    for kind in [*kinds, ""]:
        mine = [each for each in struck if each["kind"] == kind or not kind]
        if not mine:
            continue
        outcomes = [each["outcome"] for each in mine]
        prompts = sum(len(each["prompts_lost"]) + len(each["prompts_repeated"]) for each in mine)
        cells = [
            kind or "**all**",
            len(mine),
            *(outcomes.count(name) for name in ("healed inside", "ended and resumed", "lost")),
            _spread([each["over_s"] for each in mine]),
            _spread([each["next_step_s"] for each in mine if each["next_step_s"] is not None]),
            sum(len(each["left"]) for each in mine),
            prompts,
            _same(mine),
            sum(each["tracebacks"] for each in mine),
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    """The median, and the worst."""
    return f"{statistics.median(values):.0f} ({max(values):.0f})" if values else ""


def _same(rounds: Sequence[dict[str, Any]]) -> str:
    """Of those that should be."""
    expected = [each for each in rounds if not each["why_not"]]
    same = sum(each["outcome"] != "lost" and not each["differs"] for each in expected)
    return f"{same} of {len(expected)}" if expected else "not expected"
