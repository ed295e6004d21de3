"""Evaluation statistics against numbers worked out by hand."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo.eval.scores import (
    Score,
    best_at_k,
    bootstrap_interval,
    majority,
    mean_score,
    pass_at_k,
    problem_scores,
    score_problems,
)
from tests.examples import examples


@pytest.mark.parametrize(
    ("n", "c", "k", "expected"),
    [
        (4, 0, 2, 0.0),
        (4, 4, 1, 1.0),
        (4, 1, 1, 1 / 4),
        (4, 1, 2, 1 - 3 / 6),
        (4, 2, 2, 1 - 1 / 6),
        (4, 3, 2, 1.0),
        (10, 3, 5, 1 - 21 / 252),
    ],
)
def test_pass_at_k_by_hand(n: int, c: int, k: int, expected: float) -> None:
    assert pass_at_k(n, c, k) == pytest.approx(expected)


def test_pass_at_k_is_the_share_of_all_draws_that_hold_a_correct_answer() -> None:
    for n, c, k in [(6, 2, 3), (7, 1, 4), (5, 3, 2)]:
        marks = [i < c for i in range(n)]
        draws = list(itertools.combinations(marks, k))
        assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_pass_at_k_refuses_more_draws_than_samples() -> None:
    with pytest.raises(ValueError, match="pass@5 needs 1 <= k <= the 4 samples"):
        pass_at_k(4, 1, 5)
    with pytest.raises(ValueError, match="5 correct of 4"):
        pass_at_k(4, 5, 1)


def test_best_at_k_by_hand() -> None:
    # Pairs of 0, 1/2, 1: their highest are 1/2, 1, 1.
    assert best_at_k([0.5, 1.0, 0.0], 2) == pytest.approx(5 / 6)
    assert best_at_k([0.5, 1.0, 0.0], 1) == pytest.approx(1 / 2)
    assert best_at_k([0.5, 1.0, 0.0], 3) == 1.0
    assert best_at_k([0.5, 0.5], 2) == 0.5


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=7), st.data())
@examples(50)
def test_best_at_k_is_the_mean_of_the_highest_over_all_draws(rewards, data) -> None:
    k = data.draw(st.integers(1, len(rewards)))
    highest = [max(draw) for draw in itertools.combinations(rewards, k)]
    assert best_at_k(rewards, k) == pytest.approx(sum(highest) / len(highest), abs=1e-9)


@given(st.lists(st.booleans(), min_size=1, max_size=12), st.data())
@examples(50)
def test_best_at_k_of_right_and_wrong_is_pass_at_k(marks, data) -> None:
    k = data.draw(st.integers(1, len(marks)))
    expected = pass_at_k(len(marks), sum(marks), k)
    assert best_at_k([float(mark) for mark in marks], k) == pytest.approx(expected)


def test_best_at_k_of_thousands_of_samples_is_a_number() -> None:
    assert best_at_k([0.0] * 3000 + [1.0] * 3000, 1) == pytest.approx(0.5)


def test_best_at_k_refuses_more_draws_than_samples() -> None:
    with pytest.raises(ValueError, match="best@3 needs 1 <= k <= the 2 samples"):
        best_at_k([0.0, 1.0], 3)


def test_the_most_frequent_answer_decides() -> None:
    assert majority(["7", "8", "8"], [False, True, True])
    assert not majority(["7", "7", "8"], [False, False, True])


def test_the_first_seen_wins_a_tie() -> None:
    assert majority(["8", "7", "7", "8"], [True, False, False, True])
    assert not majority(["7", "8", "8", "7"], [False, True, True, False])


def test_answers_that_are_missing_do_not_vote() -> None:
    assert majority(["", "", "8"], [False, False, True])
    assert not majority(["", ""], [False, False])


def test_one_timeout_does_not_make_the_majority_wrong() -> None:
    assert majority(["8", "8"], [False, True])


def test_the_interval_of_equal_values_is_a_point() -> None:
    assert bootstrap_interval([0.5] * 7) == (0.5, 0.5)
    assert bootstrap_interval([0.25]) == (0.25, 0.25)


def test_the_interval_of_two_coin_flips_is_exactly_known() -> None:
    # Resampled means of [0, 1] are 0, 1/2, 1 with chances 1/4, 1/2, 1/4.
    assert bootstrap_interval([0.0, 1.0], level=0.95) == (0.0, 1.0)
    assert bootstrap_interval([0.0, 1.0], level=0.40) == (0.5, 0.5)


def test_the_interval_agrees_with_the_normal_one_for_many_problems() -> None:
    # 400 problems, half right: standard error sqrt(0.25 / 400) = 0.025, times 1.96 = 0.049
    low, high = bootstrap_interval([0.0, 1.0] * 200)
    assert low == pytest.approx(0.451, abs=0.004)
    assert high == pytest.approx(0.549, abs=0.004)


def test_the_interval_does_not_depend_on_the_day_but_on_the_seed() -> None:
    values = [0.1, 0.4, 0.35, 0.8, 0.9]
    assert bootstrap_interval(values) == bootstrap_interval(values)
    assert bootstrap_interval(values, resamples=100) != bootstrap_interval(
        values, resamples=100, seed=1
    )


def test_a_memory_chunk_smaller_than_the_problems_still_fills_every_resample() -> None:
    low, high = bootstrap_interval([0.0, 1.0] * 600_000, resamples=3)
    assert low == pytest.approx(0.5, abs=0.005) and high == pytest.approx(0.5, abs=0.005)


def test_two_benchmarks_count_the_same_whatever_their_size() -> None:
    # Means 1 and 1/4: their mean is 5/8, not the 2/5 of all five problems.
    score = mean_score("avg", [[1.0], [0.0, 1.0, 0.0, 0.0]])
    assert score.value == pytest.approx(5 / 8)
    # The first does not vary, so only half of the second's range is left.
    low, high = bootstrap_interval([0.0, 1.0, 0.0, 0.0], seed=0)
    assert score.high - score.low == pytest.approx((high - low) / 2, abs=0.13)
    assert 0.5 <= score.low <= 5 / 8 <= score.high <= 1.0


def test_independent_benchmarks_narrow_the_interval_of_their_mean() -> None:
    coin = [0.0, 1.0] * 200
    one = mean_score("avg", [coin])
    four = mean_score("avg", [coin] * 4)
    assert four.high - four.low == pytest.approx((one.high - one.low) / 2, rel=0.05)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
@examples(30)
def test_an_interval_lies_within_the_values(values) -> None:
    low, high = bootstrap_interval(values, resamples=200)
    assert min(values) - 1e-9 <= low <= high <= max(values) + 1e-9


def test_no_values_have_no_interval() -> None:
    with pytest.raises(ValueError, match="no values"):
        bootstrap_interval([])


def test_scores_of_two_problems_by_hand() -> None:
    correct = [[True, False, False, False], [True, True, False, True]]
    parsed = [["1", "2", "2", ""], ["5", "5", "6", "5"]]
    scores = score_problems(correct, parsed)
    assert list(scores) == ["avg@4", "pass@1", "pass@2", "pass@4", "best@4", "maj@4"]
    assert scores["avg@4"].value == pytest.approx((1 / 4 + 3 / 4) / 2)
    assert scores["pass@1"].value == pytest.approx(scores["avg@4"].value)
    assert scores["pass@2"].value == pytest.approx((1 / 2 + 1) / 2)
    assert scores["pass@4"] == Score("pass@4", 1.0, 1.0, 1.0)
    assert scores["maj@4"] == Score("maj@4", 0.5, 0.0, 1.0)
    assert (scores["avg@4"].low, scores["avg@4"].high) == (0.25, 0.75)


def test_pass_at_k_stops_below_a_count_that_is_no_power_of_two() -> None:
    scores = score_problems([[True, False, True]], [["1", "2", "1"]])
    assert list(scores) == ["avg@3", "pass@1", "pass@2", "best@3", "maj@3"]


def test_problems_with_unequal_numbers_of_answers_are_refused() -> None:
    with pytest.raises(ValueError, match="problem 1 has 1 rewards and 1 answers, the first one 2"):
        score_problems([[True, False], [True]], [["1", "2"], ["1"]])
    with pytest.raises(ValueError, match="no problems"):
        score_problems([], [])


def test_part_of_the_tests_is_not_right_but_counts_in_best_at_k() -> None:
    scores = problem_scores([[0.75, 0.5]], [["a", "b"]])
    assert scores["avg@2"] == [0.0]
    assert scores["pass@2"] == [0.0]
    assert scores["best@2"] == [0.75]
    assert scores["maj@2"] == [0.0]
