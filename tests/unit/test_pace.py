"""How long a step takes as a rule."""

import pytest

from grpo.train.pace import Pace


def usual(*seconds: float) -> float | None:
    pace = Pace()
    for each in seconds:
        pace.took(each)
    return pace.usual_s


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ((), None),
        ((60,), 60),
        ((60, 10), 10),  # the first after a start is slower, and only counts alone
        ((60, 10, 20), 15),
        ((60, 10, 500, 20), 20),  # one that waited for something says nothing of the others
        ((60, 10, 20, 30, 500), 25),
        ((60, 1, 1, *[10] * 10), 10),  # ten steps back and no further
        ((60, 1, 1, *[10] * 5, 18, 18, 26, 26, 90), 16),  # 10 x 4, 18 x 2, 26 x 2 of ten
    ],
)
def test_the_usual_time_is_the_mean_of_the_last_ten_without_the_extremes(
    seconds: tuple[float, ...], expected: float | None
) -> None:
    assert usual(*seconds) == (expected if expected is None else pytest.approx(expected))
