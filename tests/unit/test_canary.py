"""The check after a weight update: a nan is seen wherever it stands, and named for what it is."""

import math
from dataclasses import dataclass
from typing import Any

import pytest

from grpo.config.recipe import SyncConfig
from grpo.errors import RunError
from grpo.fleet.canary import Apart, Bounds
from grpo.fleet.weights import WeightSync

NAN, CANARY = math.nan, [5, 6, 7, 8]


@dataclass
class Side:
    """A learner, or engines, that score as they are told."""

    scores: Any
    names: tuple[str, ...] = ()

    @property
    def workers(self) -> list["Side"]:
        return [Side(None, (name,)) for name in self.names]

    @property
    def name(self) -> str:
        return self.names[0]

    def score(self, token_ids: list[int]) -> Any:
        assert token_ids == CANARY
        return self.scores


def check(
    learner: list[float], *engines: list[float], version: int = 7, dtype: str = "float32"
) -> Apart:
    sides: list[Any] = [
        Side(learner),
        Side(list(engines), tuple(f"rollout-{i}" for i in range(len(engines)))),
    ]
    sync = WeightSync(sides[0], sides[1], SyncConfig(), "gloo", CANARY)
    sync._version = version
    return sync.check_canary(dtype)


GOOD = [-1.0, -2.0, -3.0]


def test_the_largest_difference_of_any_engine_at_any_token():
    apart = check(GOOD, GOOD, [-1.0, -2.0005, -3.00025])
    assert apart.largest == pytest.approx(0.0005, abs=1e-12) and apart.position == 2
    assert apart.mean == pytest.approx(0.00025, abs=1e-12)


@pytest.mark.parametrize("position", [1, 2, 3])
@pytest.mark.parametrize("value", [NAN, -math.inf, math.inf])
def test_a_learner_that_diverged_is_told_apart_even_where_the_engine_agrees(position, value):
    bad = [value if i + 1 == position else score for i, score in enumerate(GOOD)]
    with pytest.raises(RunError, match="the learner itself scores") as raised:
        check(bad, bad)
    said = str(raised.value)
    assert f"{value} at token {position} of its check sequence: training has diverged" in said
    assert "did not arrive" not in said


@pytest.mark.parametrize("position", [1, 2, 3])
def test_an_engine_with_nan_is_named_and_the_learner_is_not_blamed(position):
    bad = [NAN if i + 1 == position else score for i, score in enumerate(GOOD)]
    with pytest.raises(RunError, match=f"rollout-1 scores nan at token {position}") as raised:
        check(GOOD, GOOD, bad)
    assert "the weights did not arrive whole" in str(raised.value)


def test_a_difference_above_the_tolerance_says_how_large_it_is():
    with pytest.raises(RunError) as raised:
        check(GOOD, GOOD, [-1.0, -2.5, -3.25])
    said = str(raised.value)
    assert "rollout-1 and the learner score the same 3 tokens 0.5 nats apart at one token" in said
    assert "(tolerance 0.001); furthest apart is token 2, which scores -2.5 in rollout-1" in said
    assert "-2 in the learner. The update did not arrive whole" in said


def test_it_is_due_by_the_number_of_the_step_whatever_was_sent_before():
    for every, due in ((1, [1, 2, 3, 4]), (2, [2, 4]), (0, [])):
        config = SyncConfig.model_validate({"canary": {"every": every}})
        sync = WeightSync(Side(None), Side(None), config, "gloo", CANARY)  # pyright: ignore
        assert [step for step in (1, 2, 3, 4) if sync.canary_due(step)] == due


def test_at_the_start_nobody_is_sent_to_a_checkpoint():
    for learner, engine, said in (
        ([NAN, -2.0, -3.0], GOOD, "nothing was trained yet, so look at the model's files"),
        (GOOD, [NAN, -2.0, -3.0], "To go on, try another sync.transport or model.dtype"),
        (GOOD, [-1.0, -2.0, -4.0], "To go on, try another sync.transport, or raise"),
    ):
        with pytest.raises(RunError) as raised:
            check(learner, engine, version=0)
        assert said in str(raised.value) and "heckpoint" not in str(raised.value)


TWENTY = [-2.0] * 20


def test_in_bfloat16_two_tokens_of_twenty_may_be_far_apart_and_three_may_not():
    """The 90th percentile of twenty is the eighteenth smallest: 0 with two far off, 0.5 with three.
    Both means, 0.05 and 0.075, are within 0.1."""
    apart = check(TWENTY, [-2.5, -2.5, *TWENTY[2:]], dtype="bfloat16")
    assert (apart.mean, apart.high, apart.largest) == (0.05, 0.0, 0.5)
    with pytest.raises(RunError, match=r"0\.5 nats apart at the 90th percentile \(tolerance 0\.3"):
        check(TWENTY, [-2.5, -2.5, -2.5, *TWENTY[3:]], dtype="bfloat16")


def test_in_bfloat16_the_mean_is_bounded():
    """All tokens 0.125 apart: no percentile is above 0.3."""
    with pytest.raises(RunError, match=r"0\.125 nats apart on average \(tolerance 0\.1\)"):
        check(TWENTY, [-2.125] * 20, dtype="bfloat16")


def test_a_tolerance_of_the_recipe_takes_the_place_of_the_default():
    assert Bounds.of("float32", 0.5) == Bounds(largest=0.5)
    assert Bounds.of("bfloat16", 0.5) == Bounds(mean=0.5, high=1.5)
    assert Bounds.of("float32").largest == 1e-3


def test_of_two_engines_the_one_that_is_wrong_is_named():
    for wrong in (0, 1):
        engines = [TWENTY, TWENTY]
        engines[wrong] = [-4.0] * 20
        for dtype in ("float32", "bfloat16"):
            with pytest.raises(RunError, match=f"rollout-{wrong} and the learner score"):
                check(TWENTY, *engines, dtype=dtype)
