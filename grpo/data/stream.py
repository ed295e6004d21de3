"""Prompts: rows in the declaration's template, dealt out in a seeded order."""

import hashlib
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from grpo.config.data import DataConfig
from grpo.data.templates import begun, chat_text
from grpo.data.thinking import opens_thinking
from grpo.errors import UserError
from grpo.types import Prompt, Row, Turn

log = logging.getLogger(__name__)


def render(row: Row, config: DataConfig, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The prompt's token ids: the row in the declaration's template, as a chat if it says so."""
    message = config.template.replace("{problem}", row.problem)
    if not config.chat:
        return begun(message, tokenizer)
    turns = (*row.earlier, Turn("user", message))
    if config.system:
        turns = (Turn("system", config.system), *turns)
    text = chat_text(turns, config, tokenizer, row.id)
    return tuple(tokenizer(text, add_special_tokens=False).input_ids)


def eval_prompts(
    rows: Sequence[Row], config: DataConfig, tokenizer: PreTrainedTokenizerBase, longest_prompt: int
) -> list[Prompt]:
    """Every row once, in file order; `serial` is the row's position."""
    prompts = []
    for position, row in enumerate(rows):
        token_ids = render(row, config, tokenizer)
        if len(token_ids) > longest_prompt:
            if config.long_prompts == "error":
                raise UserError(_too_long(row, len(token_ids), longest_prompt, config))
            continue
        prompts.append(Prompt(position, row, token_ids, opens_thinking(token_ids, tokenizer)))
    if rows and not prompts:
        shortest = min(len(render(row, config, tokenizer)) for row in rows)
        raise UserError(
            f"data {config.name!r}: all {len(rows)} prompts are too long: the shortest has "
            f"{shortest} tokens, and max_tokens leaves {longest_prompt} of the model's context for "
            "a prompt: lower max_tokens, or evaluate a model with a longer context"
        )
    if len(prompts) < len(rows):
        log.warning(
            "%s: rows left out that are too long: %d", config.name, len(rows) - len(prompts)
        )
    return prompts


# Tokens that a chat template puts around a turn, at most.
_AROUND = 16


def check_prompts(
    rows: Sequence[Row], config: DataConfig, tokenizer: PreTrainedTokenizerBase, longest_prompt: int
) -> None:
    """Raises UserError for a prompt that would end the run once it is dealt, or where the template
    cannot be filled. Few are rendered: text has no more tokens than bytes."""
    if not rows:
        return
    shortest = min(rows, key=lambda row: len(row.asked))
    added = len(render(shortest, config, tokenizer))
    if config.long_prompts != "error":
        return
    for row in rows:
        most = len(row.asked.encode()) + added + _AROUND * (1 + len(row.earlier))
        if most > longest_prompt and (n := len(render(row, config, tokenizer))) > longest_prompt:
            raise UserError(_too_long(row, n, longest_prompt, config))


def _too_long(row: Row, length: int, limit: int, config: DataConfig) -> str:
    return (
        f"data {config.name!r}, row {row.id!r}: its prompt has {length} tokens, and the model's "
        f"context leaves room for {limit}: lower rollout.max_tokens, or leave such rows out with "
        "data.long_prompts=skip"
    )


class PromptStream:
    """Prompts without end, in a new seeded order each epoch; its place can be saved.

    Epoch e is dealt in the permutation of numpy's default_rng([seed, e]), or in file order.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        config: DataConfig,
        tokenizer: PreTrainedTokenizerBase,
        *,
        seed: int,
        longest_prompt: int,
    ):
        self._rows = list(rows)
        self._config = config
        self._tokenizer = tokenizer
        self._seed = seed
        self._longest_prompt = longest_prompt
        self._rendered: dict[int, tuple[int, ...]] = {}
        self._open: dict[int, bool] = {}  # whether the prompt ends within thinking
        self._fingerprint = _fingerprint(self._rows)
        # By identity: ids, and even whole rows, may repeat in a file.
        self._places = {id(row): number for number, row in enumerate(self._rows)}
        self._returned: list[tuple[int, int]] = []  # (serial, row), next first
        self._serial = 0
        self._position = 0
        self._start_epoch(0)

    def take(self, count: int) -> list[Prompt]:
        """The next `count` prompts. Raises UserError for one that is too long, or if all are."""
        return [self._next() for _ in range(count)]

    def put_back(self, prompts: Sequence[Prompt]) -> None:
        """These come next, in this order, with the serials that they had."""
        self._returned[:0] = [self._place(prompt) for prompt in prompts]

    def state_dict(self, untaken: Sequence[Prompt] = ()) -> dict[str, Any]:
        """The place from which `load_state_dict` goes on. The `untaken` prompts, which `take` has
        dealt out, come next from there, in the order of their serials."""
        returned = self._returned
        if untaken:
            returned = sorted([*returned, *(self._place(prompt) for prompt in untaken)])
        return {
            "epoch": self._epoch,
            "position": self._position,
            "serial": self._serial,
            "returned": [list(item) for item in returned],
            "num_rows": len(self._rows),
            "fingerprint": self._fingerprint,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on exactly where the state was taken. Raises UserError where the data changed."""
        if state["fingerprint"] != self._fingerprint:
            raise UserError(
                f"data {self._config.name!r} changed since the checkpoint (it had "
                f"{state['num_rows']} rows, now {len(self._rows)}): resume with the same data, or "
                "start a new run with another name=NAME"
            )
        self._start_epoch(state["epoch"])
        self._position = state["position"]
        self._serial = state["serial"]
        self._returned = [(serial, row) for serial, row in state["returned"]]

    def _place(self, prompt: Prompt) -> tuple[int, int]:
        """(serial, row) of a prompt that `take` dealt out, the object itself."""
        return prompt.serial, self._places[id(prompt.row)]

    def _next(self) -> Prompt:
        if self._returned:
            serial, index = self._returned.pop(0)
            return self._prompt(serial, index)
        skipped = 0
        while True:
            if self._position == len(self._order):
                self._start_epoch(self._epoch + 1)
            index = int(self._order[self._position])
            self._position += 1
            if len(self._tokens(index)) <= self._longest_prompt:
                self._serial += 1
                return self._prompt(self._serial - 1, index)
            skipped += 1
            if self._config.long_prompts == "error" or skipped > len(self._rows):
                row, length = self._rows[index], len(self._tokens(index))
                raise UserError(_too_long(row, length, self._longest_prompt, self._config))

    def _prompt(self, serial: int, index: int) -> Prompt:
        token_ids = self._tokens(index)
        if index not in self._open:
            self._open[index] = opens_thinking(token_ids, self._tokenizer)
        return Prompt(serial, self._rows[index], token_ids, self._open[index])

    def _tokens(self, index: int) -> tuple[int, ...]:
        if index not in self._rendered:
            self._rendered[index] = render(self._rows[index], self._config, self._tokenizer)
        return self._rendered[index]

    def _start_epoch(self, epoch: int) -> None:
        self._epoch = epoch
        self._position = 0
        self._order = np.arange(len(self._rows))
        if self._config.shuffle:
            self._order = np.random.default_rng([self._seed, epoch]).permutation(len(self._rows))


def _fingerprint(rows: Sequence[Row]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(f"{row.id}\0{row.problem}\0{row.answer}\0".encode())
        for turn in row.earlier:
            digest.update(f"\1{turn.role}\0{turn.text}\0".encode())
    return digest.hexdigest()
