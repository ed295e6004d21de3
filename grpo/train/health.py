"""Whether a run is well: steps that could not be taken, and the weights they leave."""

from collections.abc import Callable

from grpo.console import Screen, shorten
from grpo.errors import Diverged
from grpo.train.update import Learned, Suspect
from grpo.types import ScoredGroup

_CHARACTERS = 200


class SkippedSteps:
    """Tells of every optimizer step that was not taken, and gives up after `most` in a row."""

    def __init__(self, most: int, screen: Screen):
        self._most = most
        self._screen = screen
        self._suspected: list[ScoredGroup] = []  # since an optimizer step was taken

    def look(self, step: int, learned: Learned, num_not_finite: Callable[[], int]) -> None:
        """Raises Diverged, with the groups that are to blame, where it makes no sense to go on.
        `num_not_finite`: counts the learner's weights that are not."""
        if not learned.suspects:
            if learned.optimizer_steps:
                self._suspected.clear()
            return
        if count := num_not_finite():
            raise Diverged(
                f"step {step}: {count:,} of the learner's weights are not finite numbers"
            )
        if learned.skipped_in_a_row < len(learned.suspects):  # one was taken between them
            self._suspected.clear()
        self._suspected += [suspect.group for suspect in learned.suspects]
        for suspect in learned.suspects:
            self._screen.warn(f"step {step}: {_described(suspect)}")
        if learned.skipped_in_a_row >= self._most:
            raise Diverged(
                f"step {step}: {learned.skipped_in_a_row} optimizer steps in a row had gradients "
                "that are not finite (health.max_skipped)",
                self._suspected,
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
