"""The first half of a step: prompts become scored groups, flat ones are replaced as found.

    engines have the weights of step v  ->  the prompts of steps v+1 .. v+1+k may be sent out

k is schedule.max_staleness. With k = 0 a step's prompts go out when the step is asked for, so that
nothing is under way between two steps: exactly on-policy. With k > 0 the engines go on while the
learner works. Every step has prompts of its own, so no token that it learns from was sampled by
weights older than those of step s - 1 - k, and what a step consists of does not depend on the order
in which answers finish: a step waits for its longest answer, and meanwhile the engines are busy
with the steps after it. Taking whatever finishes first instead would favour short answers. Requests
go on through weight updates; their tokens know who sampled them.
"""

import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from grpo.config.recipe import Recipe
from grpo.console import Screen
from grpo.data import PromptStream
from grpo.errors import Interrupted
from grpo.fleet.engines import POLL_S, RolloutPool, RolloutStream
from grpo.rollout.outlook import Outlook, SoFar
from grpo.rollout.sampling import Sampling, group_seed
from grpo.train.groups import (
    Collected,
    PendingVerdicts,
    mean_length,
    num_replaced,
    num_tokens,
    select_groups,
)
from grpo.train.shadows import ShadowVerifiers
from grpo.types import Group, Prompt, ScoredGroup
from grpo.verify.pool import VerifierPool

VERDICT_POLL_S = 0.05  # a group that may have to be replaced waits no longer for its verdicts


@dataclass(slots=True)
class _Pending:
    """What one step has taken from the stream and got back; it is complete once both are equal."""

    step: int
    prompts: dict[int, Prompt] = field(default_factory=dict)  # by serial
    back: dict[int, SoFar] = field(default_factory=dict)  # groups on their way to verdicts, judged
    judged: list[ScoredGroup] = field(default_factory=list)
    stale_tokens: int = 0
    aborted_tokens: int = 0

    @property
    def is_complete(self) -> bool:
        return len(self.judged) == len(self.prompts) > 0

    def so_far(self, under_way: dict[int, SoFar]) -> SoFar:
        """`under_way`: how far the groups are that engines have, by serial."""
        there = under_way | self.back
        return SoFar.of(there[serial] for serial in self.prompts if serial in there)


class Collector:
    """Samples prompts and judges the answers while others are still being sampled.

    One thread, the feeder, repeats `turn` from the first `collect` to `close`; only it touches the
    engines and the verifier. What it shares with the driver's thread is guarded by `_changed`.
    """

    def __init__(
        self,
        recipe: Recipe,
        stream: PromptStream,
        rollouts: RolloutPool,
        verifier: VerifierPool,
        shadows: ShadowVerifiers | None = None,
        left_out: Collection[int] = (),
    ):
        """`left_out`: serials of the prompts that nothing is learned from."""
        self._recipe = recipe
        self._k = recipe.schedule.max_staleness
        self._left_out = frozenset(left_out)
        # The feeder's own.
        self._rollouts = rollouts.stream(
            recipe.rollout.group_size, sampling_of(recipe), self._seed_of
        )
        self._verdicts = PendingVerdicts(recipe, verifier)
        self._shadows = shadows or ShadowVerifiers({}, 0.0)
        # Shared.
        self._changed = threading.Condition()
        self._stream = stream
        self._steps: dict[int, _Pending] = {}  # by step, until the step is finished
        self._step_of: dict[int, _Pending] = {}  # by serial
        self._version = self._asked = self._next = 0
        self._under_way: dict[int, SoFar] = {}  # what the engines say of their groups, by serial
        self._rollout_s, self._rollout_tokens = 0.0, 0
        self._closing = False
        self._failure: Exception | None = None
        # Brings lost engines back while the driver waits for a step; None: it cannot be done.
        self.revive: Callable[[RolloutStream, int, int], None] | None = None
        self._feeder: threading.Thread | None = None
        self._mean_length: float | None = None  # of the answers of the last step

    # --- the driver's thread ---

    def collect(self, step: int, screen: Screen, stop: Callable[[], bool]) -> Collected:
        """The groups of one step, once all of them are judged; engines that are lost meanwhile are
        brought back. Raises Interrupted where `stop` says so, with nothing under way any more;
        WorkerFault where a lost engine cannot be brought back; RunError where every group is flat
        and flat_groups.mode is replace; and whatever went wrong in the feeder since."""
        if self._feeder is None:
            self.begin(step)
            self._feeder = threading.Thread(target=self._feed, name="rollout-feeder", daemon=True)
            self._feeder.start()
        self.ask(step)
        answers = self._recipe.rollout.prompts * self._recipe.rollout.group_size
        outlook = Outlook(self._recipe.rollout.max_tokens, self._mean_length)
        with screen.progress(f"step {step}: rollouts", answers, "answers") as bar:
            while not self.is_complete(step):
                if stop():
                    self.close()
                    self._rollouts.abort()
                    raise Interrupted
                self.bring_back(step, step - 1)
                total, so_far = self._wait(step)
                judging = so_far.ended == total and not self.is_complete(step)
                outlook.show(bar, total, so_far, ", being judged" if judging else "")
            outlook.show(bar, *self._wait(step))
        collected = self.take(step, screen)
        self._mean_length = mean_length(collected.sampled)
        return collected

    def bring_back(self, step: int, version: int) -> None:
        """Revives the engines that were lost, if any were, while the learner has nothing to do;
        `version`: of the learner's weights. Raises WorkerFault where that cannot be done."""
        if lost := self._rollouts.lost:
            if self.revive is None:
                raise next(iter(lost.values()))
            self.revive(self._rollouts, step, version)

    def begin(self, step: int) -> None:
        """The engines have the weights of the step before this one, the first to be collected."""
        with self._changed:
            self._version, self._next = step - 1, step

    def ask(self, step: int) -> None:
        """The driver waits for this step: on-policy its prompts may go out now."""
        with self._changed:
            self._asked = step
            self._changed.notify_all()

    def is_complete(self, step: int) -> bool:
        """Whether every group of the step is judged, those in the place of flat ones included."""
        with self._changed:
            if self._failure is not None:
                raise self._failure
            return step in self._steps and self._steps[step].is_complete

    def take(self, step: int, screen: Screen) -> Collected:
        """The groups of a step that is complete."""
        with self._changed:
            pending = self._steps[step]
            seconds, self._rollout_s = self._rollout_s, 0.0
            tokens, self._rollout_tokens = self._rollout_tokens, 0
        sampled, used = select_groups(self._recipe, step, pending.judged, screen, self._left_out)
        return Collected(
            sampled, used, pending.stale_tokens, pending.aborted_tokens, seconds, tokens
        )

    def finish(self, step: int) -> None:
        """The engines have the weights of this step: it is settled, a later one may begin."""
        with self._changed:
            for serial in self._steps.pop(step).prompts:
                del self._step_of[serial]
            self._version = step
            self._changed.notify_all()

    def cursor(self, learned: int = 0) -> dict[str, Any]:
        """The data's place after the last finished step, or after step `learned` where the engines
        do not have its weights yet: what was taken since comes first again, whether it is being
        sampled, being judged or ready, as nothing was learned from it."""
        with self._changed:
            return self._stream.state_dict(
                [
                    prompt
                    for number, step in self._steps.items()
                    if number > learned
                    for prompt in step.prompts.values()
                ]
            )

    def close(self) -> None:
        """Ends the feeder. What is being sampled ends with the engines."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._feeder is not None:
            self._feeder.join()

    def _wait(self, step: int) -> tuple[int, SoFar]:
        """After a change, or after a while: the answers that the step takes, and how far they are.
        An answer of which nobody knows yet has not ended."""
        with self._changed:
            if not self.is_complete(step):
                self._changed.wait(POLL_S)
            pending = self._steps.get(step, _Pending(step))
            prompts = max(len(pending.prompts), self._recipe.rollout.prompts)
            return prompts * self._recipe.rollout.group_size, pending.so_far(self._under_way)

    # --- the feeder ---

    def _feed(self) -> None:
        try:
            while not self._closing:
                self.turn()
                if not self._rollouts.running and not self._verdicts.waiting:
                    with self._changed:
                        self._changed.wait_for(lambda: self._closing or self._may_open(), POLL_S)
        except Exception as error:  # whatever it is, the driver's thread raises it
            with self._changed:
                self._failure = error
                self._changed.notify_all()

    def turn(self) -> None:
        """Takes in what has come back, has it judged, and sends out what is due."""
        began, was_running = time.monotonic(), self._rollouts.running > 0
        back = self._rollouts.finished(VERDICT_POLL_S)
        under_way = self._rollouts.so_far()
        again: list[Prompt] = []
        for group in back:
            if self._throw_away(group):
                again.append(group.prompt)
            else:
                self._shadows.ask(group)
                self._verdicts.add(group)
        scored = self._verdicts.finished(0 if self._rollouts.running else VERDICT_POLL_S)
        with self._changed:
            self._under_way = under_way
            due = [*again, *self._file(scored), *self._open()]
            if was_running:
                self._rollout_s += time.monotonic() - began
            self._rollout_tokens += sum(num_tokens(group) for group in back)
            self._changed.notify_all()
        self._rollouts.submit(due)

    def _throw_away(self, group: Group) -> bool:
        """Whether the group may not be learned from: its prompt is sampled once more, at once and
        for the same step, and its tokens are lost. Else it is back."""
        with self._changed:
            pending = self._step_of[group.prompt.serial]
            if any(response.finish_reason == "abort" for response in group.responses):
                pending.aborted_tokens += num_tokens(group)
                return True
            spans = [span for response in group.responses for span in response.versions]
            if any(span.version < pending.step - 1 - self._k for span in spans):
                pending.stale_tokens += num_tokens(group)
                return True
            pending.back[group.prompt.serial] = SoFar(len(group.responses), num_tokens(group))
        return False

    def _file(self, scored: Sequence[ScoredGroup]) -> list[Prompt]:
        """Adds judged groups to their steps; the prompts that replace flat ones. As many are taken
        in all as it takes to find the wanted number, whatever the order in which groups finish."""
        more: list[Prompt] = []
        for group in scored:
            pending = self._step_of[group.group.prompt.serial]
            pending.judged.append(group)
            more += self._more(pending, num_replaced(self._recipe, len(pending.prompts), [group]))
        return more

    def _open(self) -> list[Prompt]:
        """The prompts of the steps whose time has come."""
        due: list[Prompt] = []
        while self._may_open():
            pending = self._steps[self._next] = _Pending(self._next)
            due += self._more(pending, self._recipe.rollout.prompts)
            self._next += 1
        return due

    def _may_open(self) -> bool:
        newest = self._version + 1 + self._k if self._k else self._asked
        return 0 < self._next <= min(newest, self._recipe.schedule.steps)

    def _more(self, pending: _Pending, count: int) -> list[Prompt]:
        prompts = self._stream.take(count)
        for prompt in prompts:
            pending.prompts[prompt.serial] = prompt
            self._step_of[prompt.serial] = pending
        return prompts

    def _seed_of(self, prompt: Prompt) -> int:
        with self._changed:
            step = self._step_of[prompt.serial].step
        return group_seed(self._recipe.seed, step, prompt.serial)


def sampling_of(recipe: Recipe) -> Sampling:
    rollout = recipe.rollout
    return Sampling(rollout.max_tokens, rollout.temperature, rollout.top_p, rollout.top_k)
