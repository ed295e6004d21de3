"""Whether a run is well: steps that could not be taken, and the weights they leave."""

import math
from collections.abc import Callable

from grpo.console import Screen, shorten
from grpo.errors import Diverged
from grpo.train.update import Learned, Suspect

_CHARACTERS = 200


class SkippedSteps:
    """Tells of every optimizer step that was not taken, and gives up after `most` in a row."""

    def __init__(self, most: int, screen: Screen):
        self._most = most
        self._screen = screen
        self._suspects: list[Suspect] = []  # of the steps that were skipped in a row

    def look(self, step: int, learned: Learned, num_not_finite: Callable[[], int]) -> None:
        """Raises Diverged, with the groups that are to blame, where it makes no sense to go on.
        `num_not_finite`: counts the learner's weights that are not."""
        if not learned.suspects:
            if learned.optimizer_steps:
                self._suspects.clear()
            return
        if count := num_not_finite():
            raise Diverged(
                f"step {step}: {count:,} of the learner's weights are not finite numbers"
            )
        suspects, in_a_row = [*self._suspects, *learned.suspects], learned.skipped_in_a_row
        self._suspects = suspects[-in_a_row:] if in_a_row else []
        for suspect in learned.suspects:
            self._screen.warn(f"step {step}: {_described(suspect)}")
        if learned.skipped_in_a_row >= self._most:
            raise Diverged(
                f"step {step}: {learned.skipped_in_a_row} optimizer steps in a row had gradients "
                "that are not finite (health.max_skipped)",
                [s.group for s in self._suspects if not math.isfinite(s.part_of_loss)],
            )


def _described(suspect: Suspect) -> str:
    response = suspect.group.group.responses[suspect.index]
    prompt = suspect.group.group.prompt
    advantage = suspect.group.advantages[suspect.index]
    return (
        "an optimizer step was not taken, since its gradient is not finite. The answer that adds "
        f"most to its loss ({suspect.part_of_loss:g}), to row {prompt.row.id!r}, has "
        f"{len(response.token_ids)} tokens, reward "
        f"{suspect.group.rewards[suspect.index]:g} and advantage {advantage:g}: "
        f"{shorten(response.text, _CHARACTERS)!r}"
    )
