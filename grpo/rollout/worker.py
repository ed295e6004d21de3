"""One vLLM engine that samples groups and takes new weights while it runs."""

import asyncio
import gc
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import AutoTokenizer
from vllm import SamplingParams
from vllm.distributed.weight_transfer.base import (
    WeightTransferInitRequest,
    WeightTransferUpdateRequest,
)
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.outputs import CompletionOutput
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM

from grpo.rollout.engine import EngineSpec, engine_arguments
from grpo.rollout.outlook import SoFar
from grpo.rollout.sampling import Sampling
from grpo.rollout.stops import stop_tokens
from grpo.types import Group, Prompt, Response, VersionSpan

_LOOK_S = 1.0  # how soon a core that died over a call is noticed


@dataclass(slots=True, eq=False)
class _Group:
    """One that is under way: its answers that have ended, and their tokens."""

    serial: int
    seed: int
    ended: int = 0
    tokens: int = 0


class RolloutWorker:
    """Samples groups, takes new weights, scores fixed tokens. Plain Python: Ray wraps it.

    All methods are coroutines on one event loop; many `sample` calls run at once.
    """

    def __init__(self, spec: EngineSpec):
        self._spec = spec
        self._tokenizer = AutoTokenizer.from_pretrained(
            spec.model, trust_remote_code=spec.trust_remote_code
        )
        self._stop_token_ids = stop_tokens(spec.model, self._tokenizer.eos_token_id)
        self._open = asyncio.Event()
        self._groups: set[_Group] = set()
        self._running: dict[str, _Group] = {}  # by the request's name
        self._version = 0

    async def start(self) -> None:
        """Starts the engine; takes tens of seconds."""
        args = AsyncEngineArgs(**engine_arguments(self._spec))
        self._engine = AsyncLLM.from_engine_args(args)
        await self._asked(self._engine.update_weight_version("0"))
        # vLLM hands over every token of every answer as objects of its own. The collector would
        # scan everything that was imported each time a few thousand have come, which is most of
        # what it costs to take them in. What is here now stays to the end.
        gc.collect()
        gc.freeze()
        self._open.set()

    async def sample(self, prompt: Prompt, count: int, sampling: Sampling, seed: int) -> Group:
        """`count` answers to one prompt, each a request of its own with seed + its index."""
        await self._open.wait()
        group = _Group(prompt.serial, seed)
        self._groups.add(group)
        try:
            responses = await asyncio.gather(
                *(self._one(group, i, prompt, sampling) for i in range(count))
            )
        finally:
            self._groups.discard(group)
        return Group(prompt, tuple(responses))

    async def _one(self, group: _Group, index: int, prompt: Prompt, sampling: Sampling) -> Response:
        name = f"{group.serial}-{group.seed}-{index}"
        params = SamplingParams(
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            seed=group.seed + index,
            logprobs=0,
            flat_logprobs=True,
            detokenize=False,
            stop_token_ids=self._stop_token_ids,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        self._running[name] = group
        final: CompletionOutput | None = None
        version = self._version
        try:
            tokens: Any = {"prompt_token_ids": list(prompt.token_ids)}
            async for output in self._engine.generate(tokens, params, name):
                final = output.outputs[0]
        finally:
            self._running.pop(name, None)
        assert final is not None, f"vLLM ended request {name} without an output"
        group.ended += 1
        group.tokens += len(final.token_ids)
        return self._response(final, version)

    def _response(self, output: CompletionOutput, version: int) -> Response:
        """`version`: the weights when it was asked for, where vLLM does not say whose tokens
        they are."""
        token_ids = np.asarray(output.token_ids, dtype=np.int32)
        logprobs: Any = output.logprobs
        flat = np.asarray(logprobs.logprobs if logprobs else [], dtype=np.float32)
        assert len(flat) == len(token_ids), "one logprob per sampled token"
        spans = tuple(
            VersionSpan(int(span.version), span.start, span.end)
            for span in output.weight_versions or []
        ) or (VersionSpan(version, 0, len(token_ids)),)
        reason = output.finish_reason
        return Response(
            token_ids=token_ids,
            sampler_logprobs=flat,
            # vLLM's "repetition" ends a degenerate answer early: cut short, like "length".
            finish_reason=reason if reason in ("stop", "abort") else "length",
            versions=spans,
            text=self._tokenizer.decode(token_ids, skip_special_tokens=True),
        )

    async def progress(self) -> dict[tuple[int, int], SoFar]:
        """How far each group is that is under way, by its prompt's serial and its seed: an
        evaluation counts its prompts from 0, too. Costs nothing while nobody asks."""
        sampled: Counter[_Group] = Counter()  # by answers that have not ended
        for state in self._engine.output_processor.request_states.values():
            group = self._running.get(state.external_req_id)  # None: a sequence that is scored
            if group is not None and state.detokenizer is not None:
                sampled[group] += state.detokenizer.num_output_tokens()
        return {
            (group.serial, group.seed): SoFar(group.ended, group.tokens + sampled[group])
            for group in self._groups
        }

    async def abort(self) -> None:
        """Ends every running request; their groups come back with finish_reason "abort"."""
        await self._engine.abort(list(self._running))

    async def score(self, token_ids: list[int]) -> list[float]:
        """Logprobs of tokens 1.. of a fixed sequence, each given all tokens before it."""
        params = SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False)
        tokens: Any = {"prompt_token_ids": token_ids}
        scored: list[Any] = []
        async for output in self._engine.generate(tokens, params, f"score-{self._version}"):
            scored = list(output.prompt_logprobs or [])
        return [
            position[token].logprob
            for position, token in zip(scored[1:], token_ids[1:], strict=True)
        ]

    async def _asked(self, call: Coroutine[Any, Any, Any]) -> None:
        """Waits for a call to vLLM's core. Raises EngineDeadError where the core dies over it: vLLM
        itself would wait for its answer for ever."""
        asked = asyncio.ensure_future(call)
        try:
            while not (await asyncio.wait({asked}, timeout=_LOOK_S))[0]:
                if self._engine.errored:
                    raise self._engine.dead_error
            asked.result()
        finally:
            asked.cancel()

    async def pause(self) -> None:
        """Holds back new requests, freezes running ones and drops every cached key and value."""
        self._open.clear()
        await self._asked(self._engine.pause_generation(mode="keep", clear_cache=True))

    async def resume(self) -> None:
        await self._asked(self._engine.resume_generation())
        self._open.set()

    async def init_transfer(self, info: dict[str, Any]) -> None:
        """Joins the learner's transport; returns when both sides have met."""
        await self._asked(
            self._engine.init_weight_transfer_engine(WeightTransferInitRequest(init_info=info))
        )

    async def start_update(self) -> None:
        await self._asked(self._engine.start_weight_update())

    async def receive(self, info: dict[str, Any]) -> None:
        """Takes one chunk of weights; runs at the same time as the learner's send."""
        await self._asked(
            self._engine.update_weights(WeightTransferUpdateRequest(update_info=info))
        )

    async def finish_update(self, version: int) -> None:
        await self._asked(self._engine.finish_weight_update(weight_version=str(version)))
        self._version = version

    async def sleep(self) -> None:
        """Frees the device memory of weights and cache (colocated placement)."""
        self._open.clear()
        await self._asked(self._engine.sleep(level=2))

    async def wake(self, part: str) -> None:
        """Takes device memory back: part is "weights" before an update, "kv_cache" after it."""
        await self._asked(self._engine.wake_up(tags=[part]))

    async def stop(self) -> None:
        self._engine.shutdown()
