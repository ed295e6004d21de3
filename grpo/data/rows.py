"""What stands at a place of a source becomes a row, or a fault that says why not."""

import math
from collections.abc import Collection, Sequence
from decimal import Decimal
from typing import Any

import numpy as np

from grpo.config.data import DataConfig
from grpo.data.chat import messages_of, read_chat
from grpo.data.media import media_in
from grpo.data.read import Fault, Record
from grpo.errors import UserError
from grpo.types import Row, Turn


def to_row(record: Record, config: DataConfig, extra: Collection[str] = ()) -> Row | Fault:
    """`extra`: columns whose values the row carries as they are, where the record has them."""
    try:
        turns = _turns(record, config)
        _check_declared(turns, record, config)
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
    carried = {name: _known(record.value[name]) for name in extra if name in record.value}
    row_id = row_id or str(record.number)
    return Row(row_id, turns[-1].text, answer, extra=carried, earlier=turns[:-1])


def problem_of(record: Record, config: DataConfig) -> str:
    """The problem alone, as it will be asked. Raises UserError where there is none."""
    return _turns(record, config)[-1].text


def _turns(record: Record, config: DataConfig) -> tuple[Turn, ...]:
    """What is asked: the problem as a user's turn, behind the earlier turns of its chat."""
    if not isinstance(record.value, dict):
        raise UserError(
            f"{record.where}: expected an object with named values, got {record.value!r:.80}"
        )
    found = _pick(record.value, config.columns.problem)
    while isinstance(found, list) and len(found) == 1 and isinstance(found[0], str):
        found = found[0]
    messages = messages_of(found, record.where)
    if messages is None:
        earlier, problem = (), _text(found, record.where, "problem")
    else:
        *earlier, last = read_chat(messages, record.where)
        problem = last.text
    problem = problem.strip()
    # The declared prefix and suffix may end in white space that the strip above took.
    problem = problem.removeprefix(config.strip_prefix.lstrip())
    problem = problem.removesuffix(config.strip_suffix.rstrip()).strip()
    if not problem:
        raise UserError(_missing(record, "problem", config.columns.problem, "unreadable"))
    turns = (*earlier, Turn("user", problem))
    for turn in turns:
        _check_encodes(turn.text, record.where, "problem")
    return turns


def _check_declared(turns: Sequence[Turn], record: Record, config: DataConfig) -> None:
    """Raises UserError for what a row holds and a prompt of this declaration would not show."""
    media = [name for name in media_in(record.value) if name not in config.columns.ignored]
    if media:
        raise UserError(
            f"{record.where} holds images, sound or video in the column {media[0]!r}, which no "
            "prompt of text can show: name a set without them, leave such rows out with "
            "data.filters.bad_rows=skip, or, where the text alone is the whole problem, say so "
            f"with data.columns.ignored=[{', '.join(media)}]"
        )
    if len(turns) > 1 and not config.chat:
        raise UserError(
            f"{record.where} is a chat of {len(turns)} turns, and data.chat is false: set "
            "data.chat=true, or write the row as one text"
        )
    if turns[0].role == "system" and config.system:
        raise UserError(
            f"{record.where} has a system turn of its own ({turns[0].text!r:.80}), and the "
            f"declaration has data.system {config.system!r:.80}: set data.system=null, or drop "
            "the turn"
        )


def _missing(record: Record, part: str, columns: Sequence[str], kind: str) -> str:
    mend = f"fill it in, drop the row, or name the column in data.columns.{part}"
    if kind == "empty_answer":
        mend += "; data.filters.empty_answer=drop leaves such rows out"
    nan = [column for column in columns if _is_nan(_raw(record.value, column)[1])]
    said = f"; {nan[0]} is NaN, which marks a missing value" if nan else ""
    return (
        f"{record.where}: no {part} (looked for {', '.join(columns)}; the row has "
        f"{', '.join(map(str, record.value))}{said}): {mend}"
    )


def _pick(raw: dict[str, Any], candidates: Sequence[str]) -> Any:
    """The first candidate column that holds something; dots reach into nested values."""
    for candidate in candidates:
        _, value = _reach(raw, candidate)
        if value not in (None, "", [], [None]):
            return value
    return None


def _reach(raw: Any, column: str) -> tuple[bool, Any]:
    """Whether the column is there, and what it holds."""
    there, value = _raw(raw, column)
    return there, _known(value)


def _raw(raw: Any, column: str) -> tuple[bool, Any]:
    for part in column.split("."):
        if not isinstance(raw, dict) or part not in raw:
            return False, None
        raw = raw[part]
    return True, raw


def _known(value: Any) -> Any:
    """NaN is how JSON by Python, parquet and pandas write a number that is not known."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list):
        return [_known(item) for item in value]
    return None if _is_nan(value) else value


def _is_nan(value: Any) -> bool:
    return isinstance(value, float | np.floating | Decimal) and value != value


def _text(value: Any, where: str, part: str) -> str:
    """A string, a number or a list of one of them, as a string."""
    if isinstance(value, list) and len(value) == 1 and not isinstance(value[0], dict):
        return _text(value[0], where, part)
    if value is None:
        return ""
    if isinstance(value, list | dict | bytes) or value in (math.inf, -math.inf):
        chat = ", a list of one or a chat" if part == "problem" else " or a list of one"
        raise UserError(
            f"{where}: the {part} is {value!r:.80}, expected text, a number{chat}: mend the row, "
            f"or name another column in data.columns.{part}"
        )
    text = str(value)
    _check_encodes(text, where, part)
    return text


def _check_encodes(text: str, where: str, part: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(
            f"{where}: the {part} {text!a:.80} holds half of a surrogate pair, which no "
            "encoding can write: mend or drop the row"
        ) from None
