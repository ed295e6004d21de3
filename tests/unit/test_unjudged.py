"""Answers that no verifier came to an end with: what they get, and what they leave alone."""

import math
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from io import StringIO
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from grpo.algo import ADVANTAGES, AGGREGATORS
from grpo.algo.shaping import is_informative, settle_stopped
from grpo.batch.build import make_batch, rollout_lengths, with_advantages
from grpo.config.recipe import Recipe
from grpo.console import Screen
from grpo.errors import RunError
from grpo.train.goodput import goodput
from grpo.train.groups import Collected, PendingVerdicts, least_siblings, select_groups
from grpo.train.metrics import group_metrics
from grpo.train.paid import PaidFor
from grpo.train.shadows import agreement
from grpo.train.update import PolicyUpdate
from grpo.types import Batch, Group, Prompt, Response, Row, ScoredGroup, Verdict
from tests.examples import examples
from tests.unit.test_step import Learner, recipe

CRASH, TIMEOUT = "verifier crashed: KeyError: 'x'", "timeout"
Judged = tuple[float, int] | str  # (reward, tokens) of an answer, or why there is no verdict
UNJUDGED_TOKENS = 7
SCREEN = Screen(StringIO(), StringIO())


def group(*answers: Judged, serial: int = 0) -> ScoredGroup:
    """As the verifier pool gives it: a failure comes with a reward of 0."""
    lengths = [UNJUDGED_TOKENS if isinstance(answer, str) else answer[1] for answer in answers]
    responses = [
        Response(np.full(n, i, np.int32), np.zeros(n, np.float32), "stop", (), f"answer {i}")
        for i, n in enumerate(lengths)
    ]
    verdicts = [
        Verdict(0.0, "", answer) if isinstance(answer, str) else Verdict(answer[0], "", "judged")
        for answer in answers
    ]
    prompt = Prompt(serial, Row(str(serial), "", ""), (1,))
    return ScoredGroup(Group(prompt, tuple(responses)), tuple(verdicts))


def dropped(*answers: Judged, serial: int = 0, least: int = 2) -> ScoredGroup:
    return settle_stopped(
        group(*answers, serial=serial), on_failure="drop", lowest_reward=None, least=least
    )


def lowest(*answers: Judged, declared: float | None = None) -> list[float]:
    settled = settle_stopped(group(*answers), on_failure="lowest", lowest_reward=declared, least=2)
    assert settled.left_out == ()
    return settled.accuracies


class Judge:
    """Gives the verdicts of a group, one for each answer."""

    def __init__(self, verdicts: Sequence[Verdict]):
        self._verdicts = iter(verdicts)

    def submit(self, text: str, answer: str, **facts: object) -> Future[Verdict]:
        future: Future[Verdict] = Future()
        future.set_result(next(self._verdicts))
        return future


def advantages(recipe: Recipe, *answers: Judged) -> tuple[float, ...]:
    """What the answers of one group get on their way from the verifier to the learner."""
    judge: Any = Judge(group(*answers).verdicts)
    pending = PendingVerdicts(recipe, judge)
    pending.add(group(*answers).group)
    (scored,) = pending.finished(0)
    learner: Any = Learner()
    learned = PolicyUpdate(recipe, learner).learn(Collected([scored], [scored]), 0)
    return learned.collected.used[0].advantages


@pytest.mark.parametrize("reason", [CRASH, TIMEOUT])
@pytest.mark.parametrize("mode", ["drop", "lowest"])
def test_a_failure_of_the_verifier_never_beats_a_wrong_answer(mode: str, reason: str):
    """With rewards of -1 and 1 a reward of 0 would stand between wrong and right."""
    chosen = recipe(
        rollout={"prompts": 1, "group_size": 3, "max_tokens": 10},
        verifier={"name": "math", "on_failure": mode},
    )
    right, wrong, failed = advantages(chosen, (1.0, 3), (-1.0, 3), reason)
    if mode == "drop":
        assert (right, wrong, failed) == (1.0, -1.0, 0.0), "as in a group of two"
    else:  # rewards 1, -1, -1: mean -1/3, deviation sqrt(8/9)
        assert failed == wrong
        assert right == pytest.approx(4 / 3 / math.sqrt(8 / 9))


def test_a_failure_is_left_out_unless_the_recipe_says_otherwise():
    assert recipe().verifier.on_failure == "drop"
    chosen = recipe(rollout={"prompts": 1, "group_size": 3, "max_tokens": 10})
    assert advantages(chosen, (1.0, 3), (-1.0, 3), CRASH) == (1.0, -1.0, 0.0)


def test_the_lowest_reward_is_the_declared_one_or_0_and_never_above_a_sibling():
    assert lowest((1.0, 3), (0.0, 3), CRASH) == [1, 0, 0]
    assert lowest((1.0, 3), (-1.0, 3), CRASH) == [1, -1, -1]
    assert lowest((1.0, 3), (1.0, 3), CRASH) == [1, 1, 0]
    assert lowest((1.0, 3), (1.0, 3), TIMEOUT, declared=-1.0) == [1, 1, -1]
    assert lowest((5.0, 3), (2.0, 3), TIMEOUT, declared=1.0) == [5, 2, 1]
    assert lowest((0.5, 3), (-2.0, 3), TIMEOUT, declared=-1.0) == [0.5, -2, -2]
    assert lowest(CRASH, TIMEOUT, declared=-1.0) == [-1, -1]


def test_a_group_without_failures_is_left_as_it_is():
    whole = group((1.0, 3), (0.0, 3))
    for mode in ("drop", "lowest"):
        settled = settle_stopped(whole, on_failure=mode, lowest_reward=-1.0, least=2)
        assert settled is whole


def test_what_is_left_out_is_in_no_statistic():
    some = dropped((1.0, 3), CRASH, (0.0, 5))
    assert some.left_out == (False, True, False)
    assert some.accuracies == some.rewards == [1.0, 0.0]
    assert some.learned_from == (True, False, True)
    assert replace(some, penalties=(-1.0, -9.0, -2.0)).rewards == [0.0, -2.0]
    masked = replace(some, masked=(False, False, True))
    assert masked.accuracies == [1.0, 0.0] and masked.learned_from == (True, False, False)


def test_a_group_with_fewer_than_two_judged_answers_is_left_out_whole():
    alone = dropped((1.0, 3), CRASH, TIMEOUT)
    assert alone.left_out == (True, True, True)
    assert alone.accuracies == [] and not is_informative(alone)
    none = dropped(CRASH, CRASH)
    assert none.accuracies == [] and not is_informative(none)
    mixed = dropped((1.0, 3), (0.0, 3), CRASH, serial=1)
    assert is_informative(mixed)
    for mode in ("drop", "keep"):
        chosen = recipe(flat_groups={"mode": mode})
        sampled, used = select_groups(chosen, 1, [alone, mixed], SCREEN)
        assert (sampled, used) == ([alone, mixed], [mixed])


def test_a_step_in_which_nothing_was_judged_says_so():
    groups = [dropped(CRASH, CRASH), dropped((0.0, 2), (0.0, 2), serial=1)]
    with pytest.raises(RunError) as error:
        select_groups(recipe(), 1, groups, SCREEN)
    assert "0: 1 groups, too few judged answers: 1 groups" in str(error.value)
    assert "judged: 2, verifier crashed: 2" in str(error.value)
    assert "Use data of another difficulty" in str(error.value), "half of them is not most"
    with pytest.raises(RunError) as error:
        select_groups(recipe(), 1, [*groups, dropped(TIMEOUT, CRASH, CRASH, serial=2)], SCREEN)
    assert f"most often with {CRASH!r}: mend it" in str(error.value)
    assert "difficulty" not in str(error.value)


def test_an_advantage_that_needs_more_answers_gets_no_smaller_group():
    """Best of 3 says nothing of 2 answers, and must not end the run."""
    chosen = recipe(
        advantage={"name": "pass_at_k", "k": 3},
        rollout={"prompts": 1, "group_size": 4, "max_tokens": 10},
    )
    assert least_siblings(chosen) == 3
    assert least_siblings(recipe(rollout={"prompts": 4, "group_size": 4})) == 2
    assert least_siblings(recipe()) == 2
    assert dropped((1.0, 3), (0.0, 3), CRASH, TIMEOUT, least=3).left_out == (True,) * 4
    assert dropped((1.0, 3), (0.0, 3), (0.0, 3), TIMEOUT, least=3).left_out[:3] == (False,) * 3


ANSWERS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.integers(1, 9)),
        st.sampled_from([CRASH, TIMEOUT]),
    ),
    min_size=2,
    max_size=6,
)
OPTIONS: dict[str, dict[str, Any]] = {"pass_at_k": {"k": 2}}


def judged_alone(answers: Sequence[Judged]) -> list[Judged]:
    return [answer for answer in answers if not isinstance(answer, str)]


@pytest.mark.parametrize("name", sorted(ADVANTAGES))
@examples(40)
@given(step=st.lists(ANSWERS, min_size=1, max_size=4))
def test_judged_answers_get_the_advantages_that_they_get_in_a_group_without_the_others(
    name: str, step: list[list[Judged]]
):
    step = [answers for answers in step if len(judged_alone(answers)) >= 2]
    assume(step)
    advantage = ADVANTAGES.bind(name, OPTIONS.get(name, {}))
    whole = with_advantages([dropped(*answers) for answers in step], advantage)
    small = with_advantages([group(*judged_alone(answers)) for answers in step], advantage)
    for with_all, without in zip(whole, small, strict=True):
        pairs = zip(with_all.advantages, with_all.counted, strict=True)
        assert tuple(a for a, counted in pairs if counted) == without.advantages
        assert not any(np.array(with_all.advantages)[list(with_all.left_out)])


def same(left: Batch, right: Batch) -> bool:
    return all(torch.equal(getattr(left, name), getattr(right, name)) for name in Batch.__slots__)


@pytest.mark.parametrize("name", sorted(AGGREGATORS))
@examples(20)
@given(step=st.lists(ANSWERS, min_size=1, max_size=4))
def test_the_learner_gets_the_batch_without_them(name: str, step: list[list[Judged]]):
    step = [answers for answers in step if len(judged_alone(answers)) >= 2]
    assume(step)
    aggregate = AGGREGATORS.bind(name, {})
    batches: list[Batch] = []
    for groups in (
        [dropped(*answers) for answers in step],
        [_numbered(answers) for answers in step],
    ):
        filled = with_advantages(groups, ADVANTAGES["group_norm"])
        lengths_N = rollout_lengths(filled)
        batches.append(make_batch(filled, aggregate, max_tokens=9, rollout_lengths_N=lengths_N))
    assert same(*batches)


def _numbered(answers: Sequence[Judged]) -> ScoredGroup:
    """The judged ones alone, with the tokens that they have beside the others."""
    whole = group(*answers)
    kept = [not verdict.was_stopped for verdict in whole.verdicts]
    responses = [r for r, k in zip(whole.group.responses, kept, strict=True) if k]
    verdicts = [v for v, k in zip(whole.verdicts, kept, strict=True) if k]
    return ScoredGroup(Group(whole.group.prompt, tuple(responses)), tuple(verdicts))


@pytest.mark.parametrize("mode", ["ha_dw", "exact_debias"])
def test_the_difficulty_of_a_group_is_that_of_its_judged_answers(mode: str):
    answers: tuple[Judged, ...] = ((1.0, 3), CRASH, (0.0, 3), (0.0, 3))
    learned: list[tuple[list[float], dict[str, Any]]] = []
    for scored in (dropped(*answers), group(*judged_alone(answers))):
        learner: Any = Learner()
        update = PolicyUpdate(recipe(difficulty={"mode": mode}), learner)
        (used,) = update.learn(Collected([scored], [scored]), 0).collected.used
        learned.append(
            (
                [a for a, c in zip(used.advantages, used.counted, strict=True) if c],
                update.state_dict(),
            )
        )
    assert learned[0] == learned[1]
    assert learned[0][1]["anchor"]["accuracies"] == [1 / 3]


def test_an_anchor_learns_nothing_of_a_step_without_a_judgement():
    learner: Any = Learner()
    update = PolicyUpdate(recipe(difficulty={}), learner)
    before = update.state_dict()
    learned = update.learn(Collected([dropped(CRASH, CRASH)], []), 0)
    assert (learned.optimizer_steps, learned.metrics) == (0, {})
    assert update.state_dict() == before


def test_a_steps_metrics_by_hand():
    mixed = dropped((1.0, 10), CRASH, (0.0, 30))
    flat = dropped((1.0, 20), (1.0, 20), TIMEOUT)
    alone = dropped((0.0, 40), CRASH, CRASH)
    metrics = group_metrics([mixed, flat, alone])
    # rewards that count: 1 0 1 1
    assert metrics["reward/mean"] == 3 / 4
    assert metrics["reward/std"] == pytest.approx(math.sqrt(3 / 4 * 1 / 4))
    assert metrics["groups/flat_share"] == metrics["groups/all_right_share"] == 1 / 3
    assert metrics["groups/unjudged_share"] == 1 / 3
    assert metrics["verdict/verifier crashed/share"] == 3 / 9
    assert metrics["verdict/timeout/share"] == 1 / 9
    assert metrics["length/positive_minus_negative"] == 10 - 30
    assert metrics["length/mean"] == (120 + 4 * UNJUDGED_TOKENS) / 9, "they were sampled"
    nothing = group_metrics([dropped(CRASH, CRASH)])
    assert math.isnan(nothing["reward/mean"]) and math.isnan(nothing["reward/std"])
    assert nothing["groups/flat_share"] == 0.0


def test_their_tokens_are_lost_under_a_name_of_their_own():
    mixed = replace(dropped((1.0, 10), CRASH, (0.0, 30)), advantages=(1.0, 0.0, -1.0))
    flat = dropped((1.0, 20), (1.0, 20), TIMEOUT)
    alone = dropped((0.0, 38), CRASH)
    shares = goodput(Collected([mixed, flat, alone], [mixed]))
    # 47 with 7 unjudged, 47 with 7 unjudged, 45 all lost: 139 tokens
    assert shares == {
        "goodput/share": 40 / 139,
        "goodput/lost_flat": 40 / 139,
        "goodput/lost_truncated": 0.0,
        "goodput/lost_unjudged": (7 + 7 + 45) / 139,
        "goodput/lost_stale": 0.0,
        "goodput/lost_aborted": 0.0,
    }


def test_a_failure_is_neither_paid_nor_compared_with_a_shadow():
    paid = settle_stopped(group((5.0, 3), CRASH), on_failure="lowest", lowest_reward=1.0, least=2)
    assert paid.accuracies == [5.0, 1.0]
    assert PaidFor(recipe().verifier).look_at([paid]).count == 1
    says = {"exact": Verdict(1.0, "", "correct")}
    assert agreement([replace(paid, shadows=(says, says))], ["exact"]) == {
        "verdict/exact/agreement": 1.0,
        "verdict/exact/accepts_more": 0.0,
        "verdict/exact/accepts_less": 0.0,
        "verdict/exact/missing": 0.0,
    }
