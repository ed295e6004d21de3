"""What a tokenizer adds to a text: its chat template, or the tokens at the start of any text."""

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

from jinja2 import TemplateError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers import PreTrainedTokenizerBase

from grpo.config.data import DataConfig
from grpo.errors import UserError
from grpo.registry import nearest
from grpo.types import Turn

# Every template is given these by the tokenizer; the rest is what a user may set.
_ALWAYS = {"messages", "add_generation_prompt", "continue_final_message"}
_FUNCTIONS = {"raise_exception", "strftime_now"}
# A tag of transformers' own, which plain jinja2 cannot read and which reads no variable.
_GENERATION = re.compile(r"\{%[-+]?\s*(end)?generation\s*[-+]?%\}")


def begun(text: str, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The text's tokens behind what the tokenizer itself puts in front of a text, which for Llama
    and Gemma is their begin token; once, if the text begins with it. What some put at the end, an
    end token, would tell the model that the text is over, so that stays away."""
    bare: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    full: list[int] = tokenizer(text, add_special_tokens=True).input_ids
    added = len(full) - len(bare)
    starts = (k for k in range(added + 1) if full[k : k + len(bare)] == bare)
    front = full[: next(starts, 0)]
    return tuple(bare if bare[: len(front)] == front else front + bare)


def chat_text(
    turns: Sequence[Turn], config: DataConfig, tokenizer: PreTrainedTokenizerBase, row_id: str
) -> str:
    """The turns in the tokenizer's chat template, up to where the model begins its answer. Raises
    UserError where there is no template, where it reads no such argument, where it refuses the
    turns, and where it leaves one of them out."""
    arguments: dict[str, Any] = config.chat_template_kwargs
    template = _template(config, tokenizer)
    for name in arguments:
        _check_is_read(name, template, tokenizer)
    where = f"data {config.name!r}, row {row_id!r}"
    try:
        text = str(
            tokenizer.apply_chat_template(
                [{"role": turn.role, "content": turn.text} for turn in turns],
                add_generation_prompt=True,
                tokenize=False,
                **arguments,
            )
        )
    except (TemplateError, TypeError, ValueError) as error:
        given = f", given {arguments}" if arguments else ""
        roles = ", ".join(turn.role for turn in turns)
        raise UserError(
            f"{where}: the chat template of the model's tokenizer{given} refuses a chat of "
            f"{roles} ({error}): use another model, or change the rows or data.system"
        ) from None
    for turn in turns:
        if _kept(turn) not in text:
            raise UserError(
                f"{where}: the chat template of the model's tokenizer leaves out the turn of the "
                f"{turn.role} ({turn.text!r:.60}): use another model, or change the rows or "
                "data.system"
            )
    return text


def _kept(turn: Turn) -> str:
    """What every template has to show of a turn: some leave out what an assistant thought."""
    text = turn.text.rpartition("</think>")[2] if turn.role == "assistant" else turn.text
    return text.strip()


def _template(config: DataConfig, tokenizer: PreTrainedTokenizerBase) -> str:
    if tokenizer.chat_template is None:
        raise UserError(
            f"data {config.name!r} says chat: true, but the model's tokenizer has no chat "
            "template: set data.chat=false, or use a chat model"
        )
    tools: Any = config.chat_template_kwargs.get("tools")
    try:
        return tokenizer.get_chat_template(tools=tools)
    except ValueError as error:  # several, and none of them the default
        raise UserError(f"data {config.name!r} says chat: true: {error}") from None


def _check_is_read(name: str, template: str, tokenizer: PreTrainedTokenizerBase) -> None:
    known = sorted(_read_by(template) - _ALWAYS - set(tokenizer.special_tokens_map))
    if name not in known:
        raise UserError(
            f"data.chat_template_kwargs: the chat template of the model's tokenizer does not read "
            f"{name!r}{nearest(name, known)} It reads: {', '.join(known) or 'no argument'}"
        )


@cache
def _read_by(template: str) -> frozenset[str]:
    """The variables that a template takes from outside."""
    environment = ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"])
    try:
        parsed = environment.parse(_GENERATION.sub("", template))
    except TemplateError as error:
        raise UserError(f"the chat template of the model's tokenizer is broken: {error}") from None
    return frozenset(meta.find_undeclared_variables(parsed) - _FUNCTIONS)
