"""HA-DW, history-aware difficulty weighting (arXiv 2601.08521): advantages of a group are
reweighed by how hard its prompt is next to what the policy usually solves.

A group's own mean is a biased baseline (`grpo.algo.bias`): on hard prompts right answers are
undervalued, on easy ones overvalued. The anchor C follows the accuracy of past steps; a group of
accuracy phat multiplies its advantages by

    Phi_i = scale * exp(-sign(A_i) (phat - C))

which is eq. 13 to 16 of the paper without their case distinctions. Phi is positive, so it may stand
inside or outside of a clip.
"""

import math
from collections import deque
from typing import Any, Literal

import torch
from torch import Tensor

from grpo.algo.bias import debias_factors


class DifficultyAnchor:
    """The running accuracy C, and the factors that follow from it.

    kind `hard`: the mean of the last `window` accuracies (the paper's appendix F, and what its
    authors run). kind `kalman` (eq. 7 to 10): C moves towards the new accuracy by
    eta * std of the last `window` values of C, kept within [eta_min, 1]; for the first `window`
    steps, in which that deviation says nothing, C is the plain mean. With eta_min 0 the paper's
    formula is taken at its word, and a constant history freezes C for good.

    `includes_current`: factors use C after the step's own accuracy (the authors' code) instead of
    before (the paper). At the first step both are that accuracy.

    mode `exact_debias` is not from the paper: factors are the exact inverse of the sign-conditional
    bias (`debias_factors`) at p = (G phat + strength C) / (G + strength).

    `scale` is the paper's lambda; None is its best value, 1.3, and 1 for `exact_debias`. The
    defaults of all others are those of the recipe's section `difficulty`.
    """

    def __init__(
        self,
        *,
        kind: Literal["hard", "kalman"],
        window: int,
        scale: float | None,
        eta: float,
        eta_min: float,
        includes_current: bool,
        mode: Literal["ha_dw", "exact_debias"],
        strength: float,
    ):
        self._kind = kind
        self._window = window
        default = 1.3 if mode == "ha_dw" else 1.0
        self._scale = default if scale is None else scale
        self._eta = eta
        self._eta_min = eta_min
        self._includes_current = includes_current
        self._mode = mode
        self._strength = strength
        self._accuracies: deque[float] = deque(maxlen=window)
        self._values: deque[float] = deque(maxlen=window)  # of C, newest last
        self._steps = 0
        self._before: float | None = None  # C before the newest observation

    @property
    def value(self) -> float:
        """C as the next `factors` use it. Raises RuntimeError before the first `observe`."""
        if not self._values:
            raise RuntimeError("the anchor has observed nothing yet")
        if self._includes_current or self._before is None:
            return self._values[-1]
        return self._before

    def observe(self, accuracy: float) -> None:
        """The mean accuracy in [0, 1] of all answers of a step, flat groups included.

        Raises ValueError outside of [0, 1]: rewards must be mapped there first.
        """
        if not 0 <= accuracy <= 1:
            raise ValueError(f"an accuracy lies in [0, 1], got {accuracy}")
        self._before = self._values[-1] if self._values else None
        self._accuracies.append(accuracy)
        self._steps += 1
        self._values.append(self._moved(accuracy))

    def _moved(self, accuracy: float) -> float:
        if self._kind == "hard" or self._steps <= self._window:
            return math.fsum(self._accuracies) / len(self._accuracies)
        old = self._values[-1]
        mean = math.fsum(self._values) / len(self._values)
        variance = math.fsum((value - mean) ** 2 for value in self._values) / len(self._values)
        eta = min(1.0, max(self._eta_min, self._eta * math.sqrt(variance)))
        return (1 - eta) * old + eta * accuracy

    def factors(self, advantages_G: Tensor, group_accuracy: float) -> Tensor:
        """Phi, one factor per sibling, [G] float64; `group_accuracy` is the group's share of right
        answers, in [0, 1]. A response without advantage keeps none whatever its factor."""
        signs_G = advantages_G.double().sign()
        if self._mode == "ha_dw":
            return self._scale * torch.exp(-signs_G * (group_accuracy - self.value))
        size = len(advantages_G)
        p = (size * group_accuracy + self._strength * self.value) / (size + self._strength)
        right, wrong = debias_factors(min(1 - 1e-6, max(1e-6, p)), size)
        return self._scale * torch.full_like(signs_G, wrong).masked_fill(signs_G > 0, right)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on; floats survive JSON bit for bit."""
        return {
            "accuracies": list(self._accuracies),
            "values": list(self._values),
            "steps": self._steps,
            "before": self._before,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._accuracies = deque(state["accuracies"], maxlen=self._window)
        self._values = deque(state["values"], maxlen=self._window)
        self._steps = state["steps"]
        self._before = state["before"]
