"""Whether a prompt ends within thinking: the chat template, or the declaration's, has opened it."""

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from grpo.thinking import TAGS, thinking_ends


def opens_thinking(token_ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> bool:
    """What a user says of the tags opens nothing in a chat: the last turn decides, which begins
    behind the last token that the tokenizer adds to its vocabulary and that is no tag itself.
    Where there is none, a prompt for a base model, a tag counts that it ends with."""
    added: Any = tokenizer.added_tokens_decoder
    start = len(token_ids)
    while start and not _parts_turns(added.get(token_ids[start - 1])):
        start -= 1
    turn: Any = tokenizer.decode(list(token_ids[start:]))
    if start == 0 and not _ends_with_a_tag(turn):
        return False
    return thinking_ends(turn) is None


def _ends_with_a_tag(text: str) -> bool:
    return any(not text[tag.end() :].strip() for tag in TAGS.finditer(text))


def _parts_turns(added: Any) -> bool:
    """White space may be a token of its own behind the tag."""
    content = "" if added is None else added.content.strip()
    return bool(content) and not TAGS.fullmatch(content)
