"""Engines and a verifier that follow a script, in place of vLLM and of verifier processes."""

import random
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np

from grpo.rollout.outlook import SoFar
from grpo.types import FinishReason, Group, Prompt, Response, Verdict, VersionSpan

SIBLINGS = 2


class Tokenizer:
    """Every prompt is one token."""

    chat_template = None
    added_tokens_decoder: Mapping[int, Any] = MappingProxyType({})

    def __call__(self, text: str, add_special_tokens: bool) -> Any:
        return type("Encoding", (), {"input_ids": [1]})

    def decode(self, token_ids: list[int]) -> str:
        return "?" * len(token_ids)


@dataclass
class Script:
    """What the engines do. `flat`: serials whose answers are all wrong. `ends`: how a group ends
    the n-th time it is sampled, "stop" where nothing is said. `pace`: how often it grows."""

    dice: random.Random
    flat: set[int] = field(default_factory=set)
    ends: dict[int, list[str]] = field(default_factory=dict)
    pace: float = 0.5


class Engines:
    """`version` is whose weights sample. A group that ends as "stale" says it began earlier than it
    may have, whatever it was sampled by."""

    def __init__(self, script: Script, version: int = 0):
        self.script, self.version = script, version
        self.seeds: list[tuple[int, int]] = []
        self.back_tokens = 0
        self.lost: dict[str, Any] = {}
        self._waiting: dict[int, tuple[Prompt, list[VersionSpan]]] = {}

    def stream(self, count: int, sampling: Any, seed_of: Any) -> "Engines":
        assert count == SIBLINGS
        self._seed_of = seed_of
        return self

    @property
    def running(self) -> int:
        return len(self._waiting)

    def submit(self, prompts: Sequence[Prompt]) -> None:
        for prompt in prompts:
            assert prompt.serial not in self._waiting, "sampled twice at once"
            self.seeds.append((prompt.serial, self._seed_of(prompt)))
            self._waiting[prompt.serial] = (prompt, [])

    def finished(self, wait_s: float) -> list[Group]:
        done: list[Group] = []
        for serial, (prompt, spans) in list(self._waiting.items()):
            if self.script.dice.random() > self.script.pace:
                continue
            length = spans[-1].end if spans else 0
            spans.append(VersionSpan(self.version, length, length + 1))
            if self.script.dice.random() < 0.5:
                del self._waiting[serial]
                done.append(self._group(prompt, spans))
        self.script.dice.shuffle(done)
        self.back_tokens += sum(len(r.token_ids) for group in done for r in group.responses)
        return done

    def so_far(self) -> dict[int, SoFar]:
        return {
            serial: SoFar(0, SIBLINGS * spans[-1].end)
            for serial, (_, spans) in self._waiting.items()
            if spans
        }

    def abort(self) -> None:
        self._waiting.clear()

    def _group(self, prompt: Prompt, spans: list[VersionSpan]) -> Group:
        ends = self.script.ends.get(prompt.serial)
        end = ends.pop(0) if ends else "stop"
        if end == "stale":
            spans = [VersionSpan(-9, 0, spans[-1].end)]
        reason: FinishReason = "abort" if end == "abort" else "stop"
        texts = ["0", "0"] if prompt.serial in self.script.flat else ["0", "1"]
        ids = np.zeros(spans[-1].end, np.int32)
        logprobs = ids.astype(np.float32)
        return Group(
            prompt, tuple(Response(ids, logprobs, reason, tuple(spans), text) for text in texts)
        )


class Judge:
    """Verdicts come when they come."""

    def __init__(self, dice: random.Random):
        self._dice = dice
        self._late: list[tuple[Future[Verdict], Verdict]] = []

    def submit(self, text: str, answer: str, **facts: object) -> Future[Verdict]:
        future: Future[Verdict] = Future()
        self._late.append((future, Verdict(float(text), text, "correct" if text == "1" else "")))
        while self._late and self._dice.random() < 0.8:
            self.catch_up(1)
        return future

    def catch_up(self, count: int) -> None:
        for future, verdict in self._late[:count]:
            future.set_result(verdict)
        del self._late[:count]
