"""Chats: a row whose problem is a list of messages, each with a role and a content."""

import json
import re
from collections.abc import Mapping
from typing import Any

from grpo.data.media import media_in, media_names
from grpo.errors import UserError
from grpo.types import Turn

_ROLES = ("system", "user", "assistant")
# What a message may say beside its content that would be lost: calls of tools, and thoughts.
_LOST = (
    "tool_calls",
    "tool_call_id",
    "function_call",
    "reasoning_content",
    "reasoning",
    "thinking",
)
# A chat that was turned into text: [{"role": ... as JSON, [{'role': ... by Python's str().
_LOOKS_LIKE_A_CHAT = re.compile(
    r"""\s*(array\()?[\[{]\s*(\{\s*)?["'](role|content|from|value)["']\s*:"""
)


def messages_of(value: Any, where: str) -> list[Any] | None:
    """The messages of a chat: a list of them, a single one, or either of these as JSON text. None
    for what is none. Raises UserError for text that was a chat once and cannot be read as one."""
    if isinstance(value, str):
        if '"role"' not in value and not _LOOKS_LIKE_A_CHAT.match(value):
            return None
        found = messages_of(_parsed(value), where)
        if found is None and _LOOKS_LIKE_A_CHAT.match(value):
            raise UserError(
                f"{where}: the problem {value!r:.80} looks like a chat that was turned into text, "
                "but is not one as JSON: expected a list of messages with role and content: write "
                "it with json.dumps, or as a list"
            )
        return found
    if _is_message(value):
        return [value]
    if isinstance(value, list) and any(_is_message(item) for item in value):
        return value
    return None


def read_chat(messages: list[Any], where: str) -> tuple[Turn, ...]:
    """The turns, of which the last is a user's. Raises UserError for anything that would be lost
    on the way to a prompt of text."""
    turns = tuple(_turn(message, f"{where}, message {i}") for i, message in enumerate(messages, 1))
    if turns[-1].role != "user":
        raise UserError(
            f"{where}: the chat ends with a turn of the {turns[-1].role}, expected one of the "
            "user, which the model answers: leave out what comes after it"
        )
    if late := [i for i, turn in enumerate(turns, 1) if turn.role == "system" and i > 1]:
        raise UserError(
            f"{where}: message {late[0]} is a system turn, expected at the start of a chat only: "
            "put its text into the first one"
        )
    return turns


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and "role" in value


def _parsed(text: str) -> Any:
    """None where the text is not a JSON list or object."""
    if not text.lstrip().startswith(("[", "{")):
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return None if isinstance(found, str) else found


def _turn(message: Any, where: str) -> Turn:
    if not _is_message(message):
        raise UserError(
            f"{where} is {message!r:.80}, expected an object with role and content: mend the row"
        )
    role = message["role"]
    if role not in _ROLES:
        raise UserError(
            f"{where} has the role {role!r:.40}, expected one of {', '.join(_ROLES)}: the trainer "
            "asks for one answer to a text, without tools: mend or drop the row"
        )
    lost = [key for key in (*_LOST, *media_names(message)) if message.get(key)]
    if lost:
        raise UserError(
            f"{where} holds {lost[0]} ({message[lost[0]]!r:.40}), which no prompt of text can "
            "show: mend or drop the row"
        )
    return Turn(role, _content(message.get("content"), where))


def _content(content: Any, where: str) -> str:
    """Text, or parts of text, which are joined by line breaks, as vLLM's server joins them."""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and content:
        return "\n".join(_part(part, where) for part in content)
    if isinstance(content, int | float) and content == content:
        return str(content)
    raise UserError(
        f"{where} has the content {content!r:.80}, expected text, or a list of parts of text: "
        "mend or drop the row"
    )


def _part(part: Any, where: str) -> str:
    """Parquet gives all parts the same keys, so that one of text may have an empty image_url."""
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping):
        said = {key: value for key, value in part.items() if value is not None}
        text, kind = said.get("text"), said.get("type", "text")
        if kind == "text" and isinstance(text, str) and not media_in(said):
            return text
        what = f"a part of type {kind!r:.40}" if kind != "text" else f"the part {said!r:.80}"
    else:
        what = f"the part {part!r:.80}"
    raise UserError(
        f"{where} has {what}, expected parts of type 'text' only: name a set without images, "
        "sound or video, mend the row, or leave such rows out with data.filters.bad_rows=skip"
    )
