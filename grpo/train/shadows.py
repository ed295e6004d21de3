"""Verifiers that judge what a run samples without effect on it, so that rules can be compared.

group is back -> asked of every shadow, while others are still being sampled
step has ended -> what they say by then, or within one deadline after, stands beside the verdict
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from grpo.config.recipe import Recipe
from grpo.errors import RunError
from grpo.train.groups import submit
from grpo.types import Group, ScoredGroup, Verdict
from grpo.verify.pool import VerifierPool

_Asked = Future[list[Future[Verdict]]]


class ShadowVerifiers:
    """One pool for each shadow, by the name that metrics have for it. `ask` and `judge` may be
    called from different threads."""

    def __init__(self, pools: Mapping[str, VerifierPool], timeout_s: float):
        self._pools = dict(pools)
        self._timeout_s = timeout_s
        # A pool that is full makes who submits wait, and that must not be the feeder.
        self._clerks = {name: ThreadPoolExecutor(1, f"shadow-{name}") for name in pools}
        self._asked: dict[int, dict[str, _Asked]] = {}  # by the serial of the prompt

    def ask(self, group: Group) -> None:
        """Every shadow is to judge the group. Returns at once."""
        if self._pools:
            self._asked[group.prompt.serial] = {
                name: self._clerks[name].submit(submit, group, pool)
                for name, pool in self._pools.items()
            }

    def judge(self, groups: Sequence[ScoredGroup]) -> list[ScoredGroup]:
        """The groups with what the shadows say of them. Waits for at most the deadline of one
        answer; what is not judged by then is given up, and the shadow is silent about it."""
        if not self._pools:
            return list(groups)
        deadline = time.monotonic() + self._timeout_s
        judged: list[ScoredGroup] = []
        for group in groups:
            asked = self._asked.pop(group.group.prompt.serial)
            said: list[dict[str, Verdict]] = [{} for _ in group.verdicts]
            for name, futures in asked.items():
                for index, verdict in enumerate(_in_time(futures, deadline)):
                    if verdict is not None:
                        said[index][name] = verdict
            judged.append(replace(group, shadows=tuple(said)))
        return judged

    def close(self) -> None:
        """Nothing more is handed to the pools; what waits for room in one ends when that closes."""
        for clerk in self._clerks.values():
            clerk.shutdown(wait=False, cancel_futures=True)


@contextmanager
def open_shadows(recipe: Recipe) -> Iterator[ShadowVerifiers]:
    """Starts the recipe's shadows, each with as many workers as its verifier, and ends them."""
    config = recipe.verifier
    with ExitStack() as stack:
        pools = {
            shadow.shown_as: stack.enter_context(
                VerifierPool(
                    shadow.name,
                    shadow.options,
                    workers=config.workers,
                    timeout_s=config.timeout_s,
                    plugins=tuple(recipe.plugin_names()),
                )
            )
            for shadow in config.shadows
        }
        shadows = ShadowVerifiers(pools, config.timeout_s)
        stack.callback(shadows.close)
        yield shadows


def agreement(groups: Sequence[ScoredGroup], names: Sequence[str]) -> dict[str, float]:
    """How far each shadow pays what the verifier pays, over the answers that both judged; nan where
    there are none. A crash or a timeout is no judgement, whoever has it."""
    metrics: dict[str, float] = {}
    for name in names:
        pairs: list[tuple[bool, bool]] = []
        total = 0
        for group in groups:
            for verdict, said in zip(group.verdicts, group.shadows, strict=True):
                if verdict.was_stopped:
                    continue
                total += 1
                shadow = said.get(name)
                if shadow is not None and not shadow.was_stopped:
                    pairs.append((verdict.reward > 0, shadow.reward > 0))
        count = len(pairs)
        more = sum(shadow and not paid for paid, shadow in pairs)
        less = sum(paid and not shadow for paid, shadow in pairs)
        metrics |= {
            f"verdict/{name}/agreement": (count - more - less) / count if count else math.nan,
            f"verdict/{name}/accepts_more": more / count if count else math.nan,
            f"verdict/{name}/accepts_less": less / count if count else math.nan,
            f"verdict/{name}/missing": (total - count) / total if total else math.nan,
        }
    return metrics


def _in_time(asked: _Asked, deadline: float) -> list[Verdict | None]:
    """The verdicts that are there at the deadline; [] where the pool has not taken the group. What
    is late need not be judged any more."""
    try:
        futures = asked.result(_left_s(deadline))
    except TimeoutError:
        if not asked.cancel():  # the pool is taking it right now
            asked.add_done_callback(_give_up)
        return []
    except RunError:  # the pool has failed: the run does without it
        return []
    return [_verdict(future, deadline) for future in futures]


def _verdict(future: Future[Verdict], deadline: float) -> Verdict | None:
    try:
        return future.result(_left_s(deadline))
    except TimeoutError:
        future.cancel()
    except (RunError, CancelledError):
        pass  # the pool has failed: the run does without it
    return None


def _give_up(asked: _Asked) -> None:
    if asked.exception() is None:
        for future in asked.result():
            future.cancel()


def _left_s(deadline: float) -> float:
    return max(0.0, deadline - time.monotonic())
