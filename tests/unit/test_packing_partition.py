"""Parts of equal sum: nothing is lost, and largest differencing is not worse than greed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo.batch.partition import best_fit, differencing, split_to
from tests.examples import examples

few = examples(50)
numbers = st.lists(st.integers(1, 1000), max_size=60)


def greedy(costs: list[float], parts: int) -> list[list[int]]:
    """The next largest to the part with the least."""
    found: list[list[int]] = [[] for _ in range(parts)]
    for i in sorted(range(len(costs)), key=lambda i: -costs[i]):
        min(found, key=lambda part: sum(costs[j] for j in part)).append(i)
    return found


def spread(costs: list[float], parts: list[list[int]]) -> float:
    sums = [sum(costs[i] for i in part) for part in parts]
    return max(sums) - min(sums)


def test_differencing_by_hand():
    """8 7 6 5 4 in two parts, the example of the method's authors: 8-7, 6-5, then 4 against the
    differences 1 and 1. Greed leaves 4 of 30, differencing 2, the best is 0."""
    costs = [8.0, 7.0, 6.0, 5.0, 4.0]
    assert spread(costs, differencing(costs, 2)) == 2
    assert spread(costs, greedy(costs, 2)) == 4


@few
@given(numbers, st.integers(1, 12))
def test_every_number_lies_in_exactly_one_part_and_no_part_is_empty_without_need(
    costs: list[int], parts: int
):
    found = differencing(costs, parts)
    assert len(found) == parts
    assert sorted(i for part in found for i in part) == list(range(len(costs)))
    assert sum(not part for part in found) == max(0, parts - len(costs))


@few
@given(numbers, st.integers(1, 12))
def test_the_same_numbers_are_always_parted_the_same_way(costs: list[int], parts: int):
    assert differencing(costs, parts) == differencing(costs, parts)


@few
@given(numbers, st.integers(2, 12))
def test_parts_differ_by_no_more_than_the_largest_number(costs: list[int], parts: int):
    if costs:
        assert spread(list(map(float, costs)), differencing(costs, parts)) <= max(costs)


@pytest.mark.parametrize("parts", [2, 8, 40])
def test_lengths_as_they_occur_are_parted_more_evenly_than_by_greed(parts: int):
    rng = np.random.default_rng(0)
    ours, theirs = [], []
    for _ in range(20):
        lengths = np.exp(rng.normal(7, 0.8, 400))
        costs = (lengths * (1 + lengths / 16384)).tolist()
        ours.append(spread(costs, differencing(costs, parts)) * parts / sum(costs))
        theirs.append(spread(costs, greedy(costs, parts)) * parts / sum(costs))
    assert sum(ours) < sum(theirs)
    assert all(x <= y + 0.002 for x, y in zip(ours, theirs, strict=True)), (ours, theirs)


@few
@given(numbers, st.integers(1, 1200))
def test_best_fit_holds_the_capacity_and_opens_a_part_only_where_it_must(
    sizes: list[int], capacity: int
):
    parts = best_fit(sizes, capacity)
    sums = [sum(sizes[i] for i in part) for part in parts]
    assert sorted(i for part in parts for i in part) == list(range(len(sizes)))
    assert all(total <= capacity or len(part) == 1 for total, part in zip(sums, parts, strict=True))
    for number, part in enumerate(parts):
        for other in sums[:number]:
            assert other + sizes[part[0]] > capacity, "it would have fitted"


def test_best_fit_by_hand():
    # 7 | 5 4 | 3 2: the 3 leaves least room beside the 7, then the 2 finds 1 and 10 - 5 - 4
    assert best_fit([2, 3, 4, 5, 7], 10) == [[4, 1], [3, 2], [0]]


def test_the_largest_part_is_split_until_there_are_enough():
    assert split_to([[0, 1, 2], [3]], [5, 4, 3, 20], 3) == [[0, 2], [1], [3]]
    assert split_to([[0], [1]], [1, 1], 5) == [[0], [1]]
