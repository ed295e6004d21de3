"""A rollout worker without vLLM, whose answers come when the test says so."""

import asyncio
import time
from typing import Any

from grpo.rollout.engine import EngineSpec
from grpo.rollout.sampling import Sampling
from grpo.types import Group, Prompt


class ScriptedWorker:
    """Holds every `sample` back until `release` or `abort`; obeys all else at once."""

    def __init__(self, spec: EngineSpec):
        self._released = asyncio.Event()
        self._under_way = self._most = 0
        self._stalled = False

    async def sample(self, prompt: Prompt, count: int, sampling: Sampling, seed: int) -> Group:
        self._under_way += 1
        self._most = max(self._most, self._under_way)
        await self._released.wait()
        self._under_way -= 1
        return Group(prompt, ())

    async def counts(self) -> tuple[int, int]:
        """Groups under way, and the most that ever were."""
        return self._under_way, self._most

    async def release(self) -> None:
        self._released.set()

    async def abort(self) -> None:
        self._released.set()

    async def score(self, token_ids: list[int]) -> list[float]:
        return [-1.0] * (len(token_ids) - 1)

    async def stall(self) -> None:
        """From now on `receive` takes half a minute."""
        self._stalled = True

    async def receive(self, info: dict[str, Any]) -> None:
        await asyncio.sleep(30 if self._stalled else 0)

    async def answer_after(self, seconds: float) -> float:
        await asyncio.sleep(seconds)
        return time.time()


def make(spec: EngineSpec) -> Any:
    return ScriptedWorker(spec)
