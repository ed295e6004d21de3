"""What stands at a place of a source becomes a row, or a fault that says why not."""

from collections.abc import Collection, Sequence
from typing import Any

from grpo.config.data import DataConfig
from grpo.data.read import Fault, Record
from grpo.errors import UserError
from grpo.types import Row


def to_row(record: Record, config: DataConfig, extra: Collection[str] = ()) -> Row | Fault:
    """`extra`: columns whose values the row carries as they are, where the record has them."""
    try:
        problem = problem_of(record, config)
        answer = _text(_pick(record.value, config.columns.answer), record.where, "answer")
        if config.answer_after:
            answer = answer.rpartition(config.answer_after)[2]  # all of it where there is no mark
        row_id = _text(_pick(record.value, config.columns.id), record.where, "id")
    except UserError as error:
        return Fault("unreadable", str(error))
    answer = answer.strip()
    if not answer:
        there = any(_reach(record.value, column)[0] for column in config.columns.answer)
        kind = "empty_answer" if there else "unreadable"
        return Fault(kind, _missing(record, "answer", config.columns.answer, kind))
    carried = {name: record.value[name] for name in extra if name in record.value}
    return Row(row_id or str(record.number), problem, answer, extra=carried)


def problem_of(record: Record, config: DataConfig) -> str:
    """The problem alone, as it will be asked. Raises UserError where there is none."""
    if not isinstance(record.value, dict):
        raise UserError(
            f"{record.where}: expected an object with named values, got {record.value!r:.80}"
        )
    found = _pick(record.value, config.columns.problem)
    problem = _text(found, record.where, "problem").strip()
    # The declared prefix and suffix may end in white space that the strip above took.
    problem = problem.removeprefix(config.strip_prefix.lstrip())
    problem = problem.removesuffix(config.strip_suffix.rstrip()).strip()
    if not problem:
        raise UserError(_missing(record, "problem", config.columns.problem, "unreadable"))
    return problem


def _missing(record: Record, part: str, columns: Sequence[str], kind: str) -> str:
    mend = f"fill it in, drop the row, or name the column in data.columns.{part}"
    if kind == "empty_answer":
        mend += "; data.filters.empty_answer=drop leaves such rows out"
    return (
        f"{record.where}: no {part} (looked for {', '.join(columns)}; the row has "
        f"{', '.join(map(str, record.value))}): {mend}"
    )


def _pick(raw: dict[str, Any], candidates: Sequence[str]) -> Any:
    """The first candidate column that holds something; dots reach into nested values."""
    for candidate in candidates:
        _, value = _reach(raw, candidate)
        if value not in (None, "", []):
            return value
    return None


def _reach(raw: Any, column: str) -> tuple[bool, Any]:
    """Whether the column is there, and what it holds."""
    for part in column.split("."):
        if not isinstance(raw, dict) or part not in raw:
            return False, None
        raw = raw[part]
    return True, raw


def _text(value: Any, where: str, part: str) -> str:
    """A string, a number, a list of one, or the last user message of a chat, as a string."""
    if value is None:
        return ""
    if isinstance(value, list):
        users = [m["content"] for m in value if isinstance(m, dict) and m.get("role") == "user"]
        if users:
            return _text(users[-1], where, part)
        if len(value) == 1:
            return _text(value[0], where, part)
    if isinstance(value, list | dict):
        raise UserError(
            f"{where}: the {part} is {value!r:.80}, expected text, a number, a list of one or a "
            f"chat with a user message: mend the row, or name another column in data.columns.{part}"
        )
    text = str(value)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(
            f"{where}: the {part} {text!a:.80} holds half of a surrogate pair, which no "
            "encoding can write: mend or drop the row"
        ) from None
    return text
