"""How long sampling still takes, by hand: 8 answers of at most 100 tokens, ten seconds in."""

import pytest

from grpo.rollout.outlook import Outlook, SoFar
from tests.unit.test_console import Clock


class Bar:
    """Keeps what it was told last."""

    told: tuple[int, int, str, str]

    def advance(self, n: int = 1) -> None: ...

    def update(self, done: int, total: int, detail: str = "", left: str = "") -> None:
        self.told = done, total, detail, left


def after_ten_seconds(
    ended: int, tokens: int, mean: float | None = None, total: int = 8, before: int = 0
) -> tuple[int, int, str, str]:
    clock, bar = Clock(), Bar()
    outlook = Outlook(100, mean, clock)
    outlook.show(bar, 8, SoFar(0, before))
    clock.now_s = 10
    outlook.show(bar, total, SoFar(ended, tokens))
    return bar.told


@pytest.mark.parametrize(
    ("ended", "tokens", "mean", "left"),
    [
        # 20 tokens/s; 200 tokens and two ends are 100 tokens each: 800 - 200 are to come.
        (2, 200, None, "30.0s"),
        # Nothing has ended, so that only the limit is known.
        (0, 200, None, "at most 30.0s"),
        # 400 tokens and one end: no answer is longer than 100. 800 - 400 at 40 tokens/s.
        (1, 400, None, "10.0s"),
        # 50 tokens in the last step: 400 - 200 at 20 tokens/s.
        (1, 200, 50.0, "10.0s"),
        (0, 200, 50.0, "10.0s"),
        # Half of them have ended, with 75 tokens each: 600 - 300 at 30 tokens/s.
        (4, 300, 50.0, "10.0s"),
        # Longer than in the last step already: each of the seven has at least one token to come.
        (1, 70, 5.0, "1.0s"),
        (8, 500, None, "0.0s"),
        (0, 0, None, "?"),
        # Not a token for each: the prompts are still being read.
        (0, 7, None, "?"),
        (1, 6, 50.0, "?"),
    ],
)
def test_what_is_left_by_tokens(ended: int, tokens: int, mean: float | None, left: str) -> None:
    assert after_ten_seconds(ended, tokens, mean)[3] == left


def test_answers_tokens_and_their_rate_are_told() -> None:
    """12,000 tokens are more than eight answers may have, and six more at least are to come."""
    assert after_ten_seconds(2, 12_000) == (2, 8, "12,000 tokens, 1,200 tokens/s", "0.0s")


def test_tokens_that_were_there_before_do_not_count_as_sampled_since() -> None:
    """Of a step that was sampled ahead: 300 - 100 in ten seconds; 800 - 300 are to come."""
    assert after_ten_seconds(3, 300, before=100)[2:] == ("300 tokens, 20 tokens/s", "25.0s")


def test_prompts_in_the_place_of_flat_groups_are_more_to_do() -> None:
    """10 answers of 100 tokens: 1000 - 200 at 20 tokens/s."""
    assert after_ten_seconds(2, 200, total=10) == (2, 10, "200 tokens, 20 tokens/s", "40.0s")
