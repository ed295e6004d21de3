"""What became of every sampled token."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo.algo.shaping import is_informative
from grpo.train.goodput import CAUSES, goodput, throughput_metrics
from grpo.train.groups import Collected
from grpo.types import Group, Prompt, Response, Row, ScoredGroup, Verdict
from tests.examples import examples


def group(
    serial: int,
    rewards: list[float],
    lengths: list[int],
    advantages: tuple[float, ...] = (),
    masked: tuple[bool, ...] = (),
) -> ScoredGroup:
    answers = [
        Response(np.ones(n, np.int32), np.zeros(n, np.float32), "stop", (), "") for n in lengths
    ]
    return ScoredGroup(
        Group(Prompt(serial, Row(str(serial), "", ""), (1,)), tuple(answers)),
        tuple(Verdict(reward, "", "", seconds=0.5) for reward in rewards),
        advantages=advantages,
        masked=masked,
    )


FLAT = group(0, [1, 1], [10, 20])
MIXED = group(1, [1, 0], [30, 40])
LEARNED = group(1, [1, 0], [30, 40], advantages=(1.0, -1.0))


def test_shares_by_hand():
    cut = group(2, [1, 0], [5, 15], advantages=(1.0, -1.0), masked=(False, True))
    all_cut = group(3, [1, 0], [25, 25], masked=(True, True))
    step = Collected([FLAT, LEARNED, cut, all_cut], [], stale_tokens=8, aborted_tokens=2)
    # 30 flat, 70 learned, 5 learned and 15 cut, 50 cut, 8 and 2 thrown away: 180 tokens
    assert goodput(step) == {
        "goodput/share": 75 / 180,
        "goodput/lost_flat": 30 / 180,
        "goodput/lost_truncated": 65 / 180,
        "goodput/lost_unjudged": 0.0,
        "goodput/lost_stale": 8 / 180,
        "goodput/lost_aborted": 2 / 180,
    }


def test_flat_groups_that_are_kept_are_lost_all_the_same():
    """They stay in the denominators, and have no gradient."""
    kept = group(0, [1, 1], [10, 20], advantages=(0.0, 0.0))
    assert goodput(Collected([kept, LEARNED], []))["goodput/lost_flat"] == 0.3


def test_an_answer_without_an_advantage_of_its_own_is_learned_from_beside_its_siblings():
    quantile = group(1, [1, 0], [30, 40], advantages=(2.0, 0.0))
    assert goodput(Collected([quantile], []))["goodput/share"] == 1


def test_a_punished_length_makes_gradient_of_a_flat_group_that_is_kept():
    punished = group(0, [1, 1], [10, 20], advantages=(0.5, -0.5))
    assert goodput(Collected([punished], []))["goodput/share"] == 1


def test_no_tokens_have_no_shares():
    assert goodput(Collected([], [])) == {}


GROUPS = st.lists(
    st.tuples(
        st.lists(st.sampled_from([0.0, 1.0]), min_size=2, max_size=2),
        st.lists(st.integers(1, 50), min_size=2, max_size=2),
        st.sampled_from([(), (False, True), (True, True)]),
    ),
    max_size=8,
)


@examples(50)
@given(parts=GROUPS, stale=st.integers(0, 99), aborted=st.integers(0, 99))
def test_every_token_is_counted_once(
    parts: list[tuple[list[float], list[int], tuple[bool, ...]]], stale: int, aborted: int
):
    sampled = [
        group(n, rewards, lengths, masked=masked)
        for n, (rewards, lengths, masked) in enumerate(parts)
    ]
    sampled = [
        replace(scored, advantages=(1.0, -1.0)) if is_informative(scored) else scored
        for scored in sampled
    ]
    shares = goodput(Collected(sampled, [], stale, aborted))
    if sum(sum(lengths) for _, lengths, _ in parts) + stale + aborted == 0:
        assert shares == {}
        return
    assert shares.keys() == {"goodput/share", *(f"goodput/lost_{cause}" for cause in CAUSES)}
    assert all(share >= 0 for share in shares.values())
    assert math.fsum(shares.values()) == pytest.approx(1)


def test_what_a_step_cost():
    collected = Collected([FLAT, LEARNED], [LEARNED], rollout_s=4.0, rollout_tokens=200)
    metrics = throughput_metrics(collected, 2.0, verifier_workers=2)
    assert metrics["time/rollout_s"] == 4.0
    assert metrics["time/verify_s"] == 1.0, "4 answers of half a second each, 2 at a time"
    assert metrics["throughput/sampled_tokens_per_s"] == 50.0
    assert metrics["throughput/learned_tokens_per_s"] == 35.0
    assert metrics["goodput/share"] == 0.7


def test_engines_that_had_nothing_left_to_do_have_no_rate():
    """All answers of a run's last step may have come back in the steps before it."""
    metrics = throughput_metrics(Collected([LEARNED], [LEARNED]), 2.0, verifier_workers=1)
    assert "throughput/sampled_tokens_per_s" not in metrics
    assert metrics["time/rollout_s"] == 0.0


def test_a_step_without_an_update_learned_from_nothing():
    metrics = throughput_metrics(Collected([FLAT], []), 0.1, verifier_workers=1)
    assert metrics["throughput/learned_tokens_per_s"] == 0.0
    assert metrics["goodput/lost_flat"] == 1.0
