"""From groups to optimizer steps: what the learner is given, and what the anchor has seen."""

from typing import Any

import numpy as np
import pytest
import torch

from grpo.batch.cut import QUADRATIC_LENGTH
from grpo.config.recipe import Recipe
from grpo.errors import RunError
from grpo.train.groups import Collected
from grpo.train.update import PolicyUpdate
from grpo.types import Group, MicroBatch, Prompt, Response, Row, ScoredGroup, Verdict


class Learner:
    """Takes what it is given and says how often it was asked."""

    def __init__(self) -> None:
        self.workers = [object()]
        self.loaded: list[list[list[MicroBatch]]] = []
        self.remembered = 0
        self.steps: list[tuple[int, int]] = []

    def load(self, minibatches: list[list[list[MicroBatch]]]) -> None:
        self.loaded = minibatches

    def remember_logprobs(self) -> None:
        self.remembered += 1

    def step(self, index: int, number: int) -> dict[str, float]:
        self.steps.append((index, number))
        return {"learn/loss": float(number), "learn/skipped": 0.0}


def recipe(**changes: Any) -> Recipe:
    base: dict[str, Any] = {
        "name": "test",
        "model": {"path": "somewhere"},
        "data": {"name": "numbers", "path": "rows.jsonl"},
        "rollout": {"prompts": 4, "group_size": 2, "max_tokens": 10},
    }
    return Recipe.model_validate(base | changes)


def group(
    serial: int, rewards: list[float], lengths: list[int], prompt_length: int = 1
) -> ScoredGroup:
    answers = [
        Response(np.ones(n, np.int32), np.zeros(n, np.float32), "stop", (), "") for n in lengths
    ]
    prompt = Prompt(serial, Row(str(serial), "", ""), (1,) * prompt_length)
    return ScoredGroup(Group(prompt, tuple(answers)), tuple(Verdict(r, "", "") for r in rewards))


def updater(**changes: Any) -> tuple[PolicyUpdate, Learner]:
    learner = Learner()
    stand_in: Any = learner
    return PolicyUpdate(recipe(**changes), stand_in), learner


def step_of(used: list[ScoredGroup], *flat: ScoredGroup) -> Collected:
    """A step's groups, of which the flat ones are not learned from."""
    return Collected([*used, *flat], used)


PARTS = [(0, [1.0, 0.0], [2, 4]), (1, [0.0, 1.0], [3, 3])]
MIXED = [group(serial, rewards, lengths) for serial, rewards, lengths in PARTS]


def test_one_optimizer_step_needs_no_logprobs_of_its_own():
    under_test, learner = updater()
    learned = under_test.learn(step_of(MIXED), 5)
    assert (learned.optimizer_steps, learner.steps, learner.remembered) == (1, [(0, 5)], 0)
    assert learned.metrics["learn/loss"] == 5


def test_ranks_wait_for_the_one_whose_sequences_cost_more():
    update, learner = updater(learner={"shared_prefix": False})
    metrics = update.learn(step_of(MIXED), 0).metrics
    assert metrics["learn/imbalance"] == 0, "a rank alone waits for nobody"
    learner.workers.append(object())
    metrics = update.learn(step_of(MIXED), 0).metrics
    # 3 + 5 tokens and 4 + 4: as many, but attention is quadratic, 34 against 32.
    eight = (8 + 34 / QUADRATIC_LENGTH, 8 + 32 / QUADRATIC_LENGTH)
    assert metrics["learn/imbalance"] == pytest.approx(1 - sum(eight) / (2 * max(eight)))


@pytest.mark.parametrize(
    ("asked", "on_gpu", "tokens"),
    # Two prompts of 100 and 12 tokens of answers; four prompts where each answer has its own.
    [("auto", False, 212), ("auto", True, 412), (False, False, 412), (True, True, 212)],
)
def test_on_a_cpu_siblings_share_their_prompt(
    asked: object, on_gpu: bool, tokens: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("grpo.train.update.on_gpu", lambda: on_gpu)
    update, learner = updater(learner={"shared_prefix": asked})
    update.learn(step_of([group(n, r, m, 100) for n, r, m in PARTS]), 0)
    micros = [micro for part in learner.loaded for rank in part for micro in rank]
    assert sum(len(micro.input_ids_S) for micro in micros) == tokens


def test_passes_and_minibatches_are_steps_under_one_set_of_old_logprobs():
    under_test, learner = updater(schedule={"minibatches": 2, "passes": 2})
    learned = under_test.learn(step_of(MIXED), 8)
    assert (learned.optimizer_steps, learner.remembered) == (4, 1)
    assert learner.steps == [(0, 8), (1, 9), (0, 10), (1, 11)]
    assert learned.metrics["learn/loss"] == 9.5, "the mean over the steps"


def test_every_rule_is_watched_beside_the_chosen_one():
    under_test, _ = updater(aggregate={"name": "token_mean"})
    metrics = under_test.learn(step_of(MIXED), 0).metrics
    # right answers hold 2 and 3 of the 12 tokens, and as much of the mass as the others on balance
    assert metrics["shadow/token_mean/positive_share"] == pytest.approx(5 / 12)
    assert metrics["shadow/balanced/positive_share"] == pytest.approx(1 / 2)
    assert metrics["shadow/token_mean/effective_responses"] == pytest.approx(4)


def test_difficulty_weighs_a_group_by_the_runs_accuracy_before_it():
    under_test, _ = updater(difficulty={"scale": 1.0})
    flat = group(2, [1, 1], [1, 1])
    first = under_test.learn(step_of([], flat), 0)
    assert first.metrics["difficulty/anchor"] == 1, "at first its own accuracy"
    assert first.optimizer_steps == 0, "nothing to learn from"
    learned = under_test.learn(step_of(MIXED, flat, group(3, [1, 1], [1, 1])), 0)
    assert learned.metrics["difficulty/anchor"] == 1.0
    assert learned.metrics["difficulty/accuracy"] == 0.75
    weighed = learned.collected.used[0].advantages
    assert learned.collected.sampled[0].advantages == weighed, "the same group, wherever it stands"
    assert learned.collected.sampled[2].advantages == (), "a flat one was not learned from"
    # exp(-sign (0.5 - 1)): a right answer in a group harder than usual counts more
    assert weighed == pytest.approx((float(np.exp(0.5)), -float(np.exp(-0.5))))


def test_flat_groups_move_the_anchor_whether_or_not_they_are_used():
    """I47."""
    rewards = [group(0, [1, 0], [1, 1]), group(1, [1, 1], [1, 1])]
    anchors = []
    for used in (rewards[:1], rewards):
        under_test, _ = updater(difficulty={"includes_current": True})
        under_test.learn(Collected(rewards, used), 0)
        anchors.append(under_test.state_dict())
    assert anchors[0] == anchors[1]


def test_a_resumed_run_weighs_as_the_uninterrupted_one():
    """I45."""
    left, _ = updater(difficulty={"kind": "kalman", "window": 3})
    for n in range(5):
        left.learn(step_of([], group(0, [1, n % 2], [1, 1])), 0)
    right, _ = updater(difficulty={"kind": "kalman", "window": 3})
    right.load_state_dict(left.state_dict())
    one, other = (under_test.learn(step_of(MIXED), 0) for under_test in (left, right))
    assert left.state_dict() == right.state_dict()
    assert one.collected == other.collected


def test_rewards_of_minus_one_and_one_are_mapped_to_accuracies():
    under_test, _ = updater(difficulty={"reward_low": -1.0, "reward_high": 1.0})
    learned = under_test.learn(step_of([group(0, [-1, 1], [1, 1])]), 0)
    assert learned.metrics["difficulty/accuracy"] == 0.5


def test_a_reward_that_is_no_accuracy_stops_the_run_and_names_the_keys():
    under_test, _ = updater(difficulty={})
    with pytest.raises(RunError, match=r"mean reward of 2 is.*reward_low.*reward_high"):
        under_test.learn(step_of([], group(0, [2, 2], [1, 1])), 0)


def test_without_difficulty_nothing_is_kept():
    under_test, _ = updater()
    metrics = under_test.learn(step_of(MIXED), 0).metrics
    assert not [name for name in metrics if name.startswith("difficulty/")]
    assert under_test.state_dict() == {"skipped_in_a_row": 0}
    under_test.load_state_dict({"optimizer_steps": 3})


def test_an_advantage_that_rewards_do_not_suit_is_named():
    under_test, _ = updater(advantage={"name": "max_rl"})
    with pytest.raises(RunError, match=r"advantage 'max_rl': .*>= 0"):
        under_test.learn(step_of([group(0, [-1, 1], [1, 1])]), 0)


def test_weights_reach_the_learner():
    under_test, learner = updater(aggregate={"name": "seq_mean_token_mean"})
    under_test.learn(step_of(MIXED[:1]), 0)
    ((micro,),) = learner.loaded[0]
    order = torch.argsort(micro.rows_N)
    assert micro.weights_N[order].tolist() == pytest.approx([1 / 4, 1 / 8])
    assert micro.regular_weights_N[order].tolist() == pytest.approx([1 / 6, 1 / 6])
