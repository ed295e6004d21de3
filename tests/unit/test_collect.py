"""Which prompts a step takes: flat groups are replaced, whatever the order in which they finish."""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from io import StringIO
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo.config.recipe import Recipe
from grpo.console import Screen
from grpo.errors import Interrupted, RunError
from grpo.rollout.outlook import Outlook, SoFar
from grpo.train.collect import Collector
from grpo.train.groups import Collected
from grpo.types import Group, Prompt, Response, Row, Verdict
from tests.examples import examples


class Prompts:
    """An endless stream; `taken` counts."""

    taken = 0

    def take(self, count: int) -> list[Prompt]:
        start, self.taken = self.taken, self.taken + count
        return [Prompt(n, Row(str(n), "", ""), (1,)) for n in range(start, start + count)]


class Engines:
    """Finishes groups in an order of its own; the answers to a prompt are its reward pattern."""

    def __init__(self, flat: set[int], order: random.Random):
        self._flat, self._order = flat, order
        self._waiting: list[Prompt] = []
        self.aborted = False
        self.lost: dict[str, Any] = {}

    def stream(self, *_: Any) -> "Engines":
        return self

    @property
    def running(self) -> int:
        return len(self._waiting)

    def submit(self, prompts: Sequence[Prompt]) -> None:
        self._waiting += prompts

    def finished(self, wait_s: float) -> list[Group]:
        count = self._order.randint(0, len(self._waiting))
        self._order.shuffle(self._waiting)
        done, self._waiting = self._waiting[:count], self._waiting[count:]
        return [self._group(prompt) for prompt in done]

    def so_far(self) -> dict[int, SoFar]:
        return {}

    def abort(self) -> None:
        self.aborted = True
        self._waiting = []

    def _group(self, prompt: Prompt) -> Group:
        texts = ["0", "0"] if prompt.serial in self._flat else ["0", "1"]
        ids = np.zeros(1, np.int32)
        answers = [Response(ids, ids.astype(np.float32), "stop", (), text) for text in texts]
        return Group(prompt, tuple(answers))


class Judge:
    def submit(self, text: str, answer: str, **facts: object) -> Future[Verdict]:
        future: Future[Verdict] = Future()
        future.set_result(Verdict(float(text), text, "correct" if text == "1" else "wrong"))
        return future


def recipe(mode: str = "replace", wanted: int = 4, max_rounds: int = 10, k: int = 0) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "test",
            "model": {"path": "somewhere"},
            "data": {"name": "numbers", "path": "rows.jsonl"},
            "rollout": {"prompts": wanted, "group_size": 2},
            "flat_groups": {"mode": mode, "max_rounds": max_rounds},
            "schedule": {"max_staleness": k},
        }
    )


def collect(
    recipe: Recipe,
    flat: set[int],
    order: int = 0,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[Collected, Prompts, str]:
    prompts, warnings = Prompts(), StringIO()
    engines: Any = Engines(flat, random.Random(order))
    stream: Any = prompts
    judge: Any = Judge()
    collector = Collector(recipe, stream, engines, judge)
    try:
        collected = collector.collect(1, Screen(StringIO(), warnings), stop)
    finally:
        collector.close()
    return collected, prompts, warnings.getvalue()


def serials(groups: Sequence[Any]) -> list[int]:
    return [group.group.prompt.serial for group in groups]


def test_each_flat_group_is_replaced_by_the_next_prompt():
    collected, prompts, _ = collect(recipe(), flat={1, 2, 4})
    assert serials(collected.used) == [0, 3, 5, 6]
    assert serials(collected.sampled) == [0, 1, 2, 3, 4, 5, 6]
    assert prompts.taken == 7


@examples(100)
@given(flat=st.sets(st.integers(0, 30)), order=st.integers(0, 2**32), rounds=st.integers(1, 5))
def test_the_order_in_which_groups_finish_changes_nothing(flat: set[int], order: int, rounds: int):
    flat |= {100}  # never all of them
    expected = next(n for n in range(4, 200) if n == 4 * rounds or len(set(range(n)) - flat) == 4)
    useful = sorted(set(range(expected)) - flat)
    if not useful:
        with pytest.raises(RunError):
            collect(recipe(max_rounds=rounds), flat, order)
        return
    collected, prompts, _ = collect(recipe(max_rounds=rounds), flat, order)
    assert prompts.taken == expected
    assert serials(collected.sampled) == list(range(expected))
    assert serials(collected.used) == useful


def test_the_bound_on_rounds_bounds_the_prompts_and_is_told():
    collected, prompts, warnings = collect(recipe(max_rounds=2), flat=set(range(1, 50)))
    assert prompts.taken == 8
    assert serials(collected.used) == [0]
    assert "only 1 of 8 groups" in warnings and "flat_groups.max_rounds" in warnings


def test_where_everything_stays_flat_the_run_stops_with_the_histogram():
    with pytest.raises(RunError) as stopped:
        collect(recipe(max_rounds=3), flat=set(range(50)))
    message = str(stopped.value)
    assert "all 12 groups had equal rewards" in message
    assert "mean reward of a group: 0: 12 groups" in message
    assert "wrong: 24" in message


@pytest.mark.parametrize(("mode", "used"), [("drop", [0, 3]), ("keep", [0, 1, 2, 3])])
def test_drop_and_keep_take_no_more_prompts(mode: str, used: list[int]):
    collected, prompts, _ = collect(recipe(mode), flat={1, 2})
    assert serials(collected.used) == used
    assert prompts.taken == 4


def test_a_step_of_flat_groups_that_are_dropped_has_nothing_to_use():
    collected, _, _ = collect(recipe("drop"), flat=set(range(4)))
    assert collected.used == [] and len(collected.sampled) == 4


def test_a_stop_aborts_what_is_under_way_and_leaves_the_step():
    engines = Engines(set(), random.Random(0))
    engines.finished = lambda wait_s: []
    stand_in: Any = engines
    prompts: Any = Prompts()
    judge: Any = Judge()
    collector = Collector(recipe(), prompts, stand_in, judge)
    with pytest.raises(Interrupted):
        collector.collect(1, Screen(StringIO(), StringIO()), lambda: engines.running == 4)
    assert engines.aborted and engines.running == 0


# --- what is shown meanwhile ---


class Watched(Screen):
    """Keeps what its bar was told of answers and tokens."""

    def __init__(self) -> None:
        super().__init__(StringIO(), StringIO())
        self.told: list[tuple[int, int, str]] = []

    @contextmanager
    def progress(self, title: str, total: int, unit: str = "") -> Iterator[Any]:
        assert (title, total, unit) == ("step 1: rollouts", 8, "answers")
        yield self

    def update(self, done: int, total: int, detail: str = "", left: str = "") -> None:
        self.told.append((done, total, detail.split(",")[0]))


class Slow(Engines):
    """Ends no group before `told` is what the screen was told last; `says` how far they are."""

    def __init__(self, flat: set[int], screen: Watched, stages: list[Any]):
        super().__init__(flat, random.Random(0))
        self._screen = screen
        self._stages = stages

    def so_far(self) -> dict[int, SoFar]:
        return self._stages[0][0] if self._stages else {}

    def finished(self, wait_s: float) -> list[Group]:
        """A stage is what the engines say, what the screen is to be told of it, and the serials
        of the groups that end thereupon."""
        if not self._stages or self._stages[0][1] not in self._screen.told:
            return []
        _, _, ended = self._stages.pop(0)
        done = [prompt for prompt in self._waiting if prompt.serial in ended]
        self._waiting = [prompt for prompt in self._waiting if prompt.serial not in ended]
        return [self._group(prompt) for prompt in done]


def shown(recipe: Recipe, flat: set[int], stages: list[Any]) -> None:
    screen = Watched()
    engines: Any = Slow(flat, screen, stages)
    stream: Any = Prompts()
    judge: Any = Judge()
    collector = Collector(recipe, stream, engines, judge)
    deadline = time.monotonic() + 60
    try:
        collector.collect(1, screen, lambda: time.monotonic() > deadline)
    except Interrupted:
        raise AssertionError(f"never told {stages[0][1]}, but {screen.told[-1]}") from None
    finally:
        collector.close()
    assert not stages


def test_answers_are_counted_before_their_group_is_whole():
    """Four prompts with two answers each; a group that is back has two of one token."""
    shown(
        recipe("keep"),
        set(),
        [
            ({}, (0, 8, "0 tokens"), set()),
            ({0: SoFar(1, 7), 3: SoFar(0, 4)}, (1, 8, "11 tokens"), {0}),
            ({3: SoFar(1, 9)}, (3, 8, "11 tokens"), {3, 1}),
            ({2: SoFar(1, 1)}, (7, 8, "7 tokens"), {2}),
        ],
    )


def test_a_prompt_in_the_place_of_a_flat_group_is_two_more_answers():
    shown(
        recipe(),
        {1},
        [
            ({}, (0, 8, "0 tokens"), {0, 1, 2}),
            ({3: SoFar(1, 5)}, (7, 10, "11 tokens"), {3}),
            ({4: SoFar(1, 5)}, (9, 10, "13 tokens"), {4}),
        ],
    )


def test_what_is_sampled_ahead_for_later_steps_does_not_count():
    """Serials 4 to 7 are those of step 2."""
    shown(
        recipe("keep", k=1),
        set(),
        [
            ({1: SoFar(1, 3), 4: SoFar(2, 50), 6: SoFar(1, 9)}, (1, 8, "3 tokens"), {0, 4}),
            ({1: SoFar(1, 3)}, (3, 8, "5 tokens"), {1, 2, 3}),
        ],
    )


def test_the_last_steps_answers_say_how_long_this_steps_will_be(monkeypatch: pytest.MonkeyPatch):
    """Every answer has one token."""
    known: list[float | None] = []

    class Noted(Outlook):
        def __init__(self, max_tokens: int, mean: float | None = None):
            super().__init__(max_tokens, mean)
            known.append(mean)

    monkeypatch.setattr("grpo.train.collect.Outlook", Noted)
    engines: Any = Engines(set(), random.Random(0))
    stream: Any = Prompts()
    judge: Any = Judge()
    collector = Collector(recipe("keep"), stream, engines, judge)
    try:
        for step in (1, 2):
            collector.collect(step, Screen(StringIO(), StringIO()), lambda: False)
            collector.finish(step)
    finally:
        collector.close()
    assert known == [None, 1.0]
