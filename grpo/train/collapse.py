"""Signs in a run's metrics that it has collapsed: what it had learned is gone, or nothing more can
be learned.

    metrics of a step -> each guard: no evidence, or (value, threshold, whether the sign is there)
    a sign that has come -> one Finding, which says what to do

Only `CollapseGuards.look` is called from outside. It is a function of the metrics that it has seen:
a resumed run, which loads its state, finds what the uninterrupted one would have.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median, pvariance
from typing import Any, Literal, Protocol

from grpo.config.health import HealthConfig

Action = Literal["warn", "stop", "rollback"]
Metrics = Mapping[str, float | None]  # None: not finite, as metrics.jsonl has it

# A best running mean is the luckiest of many, so a fall from it must be beyond chance: 5 standard
# errors of a difference of two means, by the window whose values differ more. In 300 made-up runs
# of 500 steps of very uneven problems, without any trend, that was two false alarms; a reward that
# drops to nothing is found within 15 steps.
_BEYOND_CHANCE = 5.0
_FEW_VALUES = 5  # a median of fewer says little
_GO_BACK = "go on from a checkpoint before it, with a lower learner.lr (name=NAME --resume DIR)"


@dataclass(frozen=True, slots=True)
class Finding:
    """A sign that is there. `warning` holds all the rest, in words."""

    key: str
    metric: str
    value: float
    threshold: float
    action: Action
    warning: str


@dataclass(frozen=True, slots=True)
class _Reading:
    value: float
    threshold: float
    is_there: bool


class _Guard(Protocol):
    def read(self, metrics: Metrics) -> _Reading | None:
        """None where the step says nothing of the sign."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class _Streak:
    """There once a value has been beyond its threshold for some steps in a row."""

    def __init__(
        self,
        value_of: Callable[[Metrics], float | None],
        is_beyond: Callable[[float], bool],
        threshold: float,
        steps: int,
    ):
        self._value_of = value_of
        self._is_beyond = is_beyond
        self._threshold = threshold
        self._steps = steps
        self._count = 0

    def read(self, metrics: Metrics) -> _Reading | None:
        value = self._value_of(metrics)
        if value is None or math.isnan(value):
            return None
        self._count = self._count + 1 if self._is_beyond(value) else 0
        return _Reading(value, self._threshold, self._count >= self._steps)

    def state_dict(self) -> dict[str, Any]:
        return {"count": self._count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._count = state["count"]


class _RewardFall:
    """There while the running mean of the reward is below a share of its best one, by more than
    chance would have it. Rewards are measured from the lowest that the verifier gives."""

    def __init__(self, share: float, window: int, lowest_reward: float):
        self._share = share
        self._lowest = lowest_reward
        self._values: deque[float] = deque(maxlen=window)
        self._best: tuple[float, float] | None = None  # with its squared standard error

    def read(self, metrics: Metrics) -> _Reading | None:
        value = _finite(metrics, "reward/mean")
        if value is None:
            return None
        self._values.append(value - self._lowest)
        if len(self._values) < (self._values.maxlen or 0):
            return None
        now = fmean(self._values)
        error2 = pvariance(self._values) / len(self._values)
        if self._best is None or now > self._best[0]:
            self._best = now, error2
        best, best_error2 = self._best
        chance = _BEYOND_CHANCE * math.sqrt(2 * max(error2, best_error2))
        is_there = best > 0 and now < self._share * best and best - now > chance
        return _Reading(now + self._lowest, self._share * best + self._lowest, is_there)

    def state_dict(self) -> dict[str, Any]:
        return {"values": list(self._values), "best": self._best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._values = deque(state["values"], maxlen=self._values.maxlen)
        best = state["best"]
        self._best = None if best is None else (best[0], best[1])


class _MismatchRise:
    """There once the mismatch has been far above its lowest running median for some steps in a row.

    The lowest one, because a slow rise takes its own median along; and what is far above stays out
    of the median.
    """

    def __init__(self, rise: float, floor: float, window: int, steps: int):
        self._rise = rise
        self._floor = floor
        self._steps = steps
        self._values: deque[float] = deque(maxlen=window)
        self._lowest: float | None = None
        self._count = 0

    def read(self, metrics: Metrics) -> _Reading | None:
        if "mismatch/kl" not in metrics:
            return None
        value = metrics["mismatch/kl"]
        if value is None or math.isnan(value):
            value = math.inf  # further apart than a number can say
        usual = math.inf if self._lowest is None else self._rise * self._lowest
        threshold = max(self._floor, usual)
        if value > threshold:
            self._count += 1
        else:
            self._count = 0
            self._values.append(value)
            if len(self._values) >= min(_FEW_VALUES, self._values.maxlen or _FEW_VALUES):
                now = median(self._values)
                self._lowest = now if self._lowest is None else min(now, self._lowest)
        return _Reading(value, threshold, self._count >= self._steps)

    def state_dict(self) -> dict[str, Any]:
        return {"values": list(self._values), "lowest": self._lowest, "count": self._count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._values = deque(state["values"], maxlen=self._values.maxlen)
        self._lowest = state["lowest"]
        self._count = state["count"]


@dataclass(frozen=True, slots=True)
class _Sign:
    """A guard, and how its sign is told: `says` of a value and a threshold, and what to do."""

    key: str
    metric: str
    guard: _Guard
    says: Callable[[str, str], str]
    mend: str
    is_of_policy: bool = True  # going back may mend it

    def warning(self, step: int, reading: _Reading) -> str:
        says = self.says(f"{reading.value:.3g}", f"{reading.threshold:.3g}")
        return f"step {step}: {self.metric} {says} (health.{self.key}). {self.mend}"


class CollapseGuards:
    """All guards of a run. `lowest_reward`: the least that its verifier gives."""

    def __init__(self, config: HealthConfig, lowest_reward: float = 0.0):
        self._action: Action = config.on_collapse
        self._signs = {sign.metric: sign for sign in _signs(config, lowest_reward)}
        self._window = config.window
        # By metric, of the signs that count as there: for how many steps they have been away since.
        self._away: dict[str, int] = {}

    def look(self, step: int, metrics: Metrics) -> list[Finding]:
        """Of the step's metrics, every step once and in order. Where they are warned of, signs that
        were not there within the window before; else every sign that is there."""
        findings: list[Finding] = []
        for metric, sign in self._signs.items():
            reading = sign.guard.read(metrics)
            if reading is None:
                continue
            if not reading.is_there:
                self._stays_away(metric)
                continue
            is_new = metric not in self._away
            self._away[metric] = 0
            action: Action = self._action if sign.is_of_policy else "warn"
            if is_new or action != "warn":
                findings.append(
                    Finding(
                        key=f"health.{sign.key}",
                        metric=metric,
                        value=reading.value,
                        threshold=reading.threshold,
                        action=action,
                        warning=sign.warning(step, reading),
                    )
                )
        return findings

    def _stays_away(self, metric: str) -> None:
        """What comes and goes is told once; gone for a whole window it is news again."""
        if metric in self._away:
            self._away[metric] += 1
            if self._away[metric] >= self._window:
                del self._away[metric]

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next `look` depends on; JSON keeps it bit for bit."""
        guards = {metric: sign.guard.state_dict() for metric, sign in self._signs.items()}
        return {"guards": guards, "away": dict(self._away)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """{} leaves the guards as new ones; those that were off until now begin."""
        for metric, saved in state.get("guards", {}).items():
            if metric in self._signs:
                self._signs[metric].guard.load_state_dict(saved)
        away = state.get("away", {})
        self._away = {metric: steps for metric, steps in away.items() if metric in self._signs}


def diagnosis(findings: Sequence[Finding]) -> str:
    """Why a run ends, or goes back."""
    return "the run has collapsed.\n" + "\n".join(finding.warning for finding in findings)


def _signs(config: HealthConfig, lowest_reward: float) -> Iterator[_Sign]:
    """Those that the recipe has not turned off."""
    steps = config.patience
    if (share := config.reward_share) is not None:
        yield _Sign(
            "reward_share",
            "reward/mean",
            _RewardFall(share, config.window, lowest_reward),
            lambda value, threshold: (
                f"averages {value} over the last {config.window} steps, below {threshold}, which "
                f"is {share:g} of its best"
            ),
            f"What was learned is being lost: {_GO_BACK}",
        )
    if (flat_steps := config.flat_steps) is not None:
        yield _Sign(
            "flat_steps",
            "groups/flat_share",
            _Streak(_flat_share, lambda value: value >= 1, 1.0, flat_steps),
            lambda value, _: f"has been {value} for {flat_steps} steps: nothing is learned from",
            "Read some rollouts; take data of another difficulty, or larger groups "
            "(rollout.group_size)",
        )
    if (most_cut := config.truncated_share) is not None:
        yield _Sign(
            "truncated_share",
            "truncated/share",
            _Streak(_reader("truncated/share"), lambda value: value >= most_cut, most_cut, steps),
            lambda value, least: (
                f"is {value}, {least} or more for {steps} steps: answers never end"
            ),
            f"Where they did before, {_GO_BACK}; else raise rollout.max_tokens",
        )
    if (least := config.entropy) is not None:
        yield _Sign(
            "entropy",
            "learn/entropy",
            _Streak(_reader("learn/entropy"), lambda value: value < least, least, steps),
            lambda value, least: f"is {value}, below {least} for {steps} steps: answers are alike",
            f"Raise surrogate.clip_high or regularization.entropy, or {_GO_BACK}",
        )
    if (rise := config.mismatch_rise) is not None:
        yield _Sign(
            "mismatch_rise",
            "mismatch/kl",
            _MismatchRise(rise, config.mismatch_floor, config.window, steps),
            lambda value, most: (
                f"is {value}, above {most} for {steps} steps: sampler and learner part"
            ),
            f"Turn on a correction or lower schedule.max_staleness, and {_GO_BACK}",
        )
    if (failed := config.verifier_failures) is not None:
        yield _failing("timeout", failed, "Raise verifier.timeout_s or verifier.workers")
        yield _failing("verifier crashed", failed, "Mend the verifier")


def _failing(kind: str, most: float, mend: str) -> _Sign:
    metric = f"verdict/{kind}/share"
    return _Sign(
        "verifier_failures",
        metric,
        _Streak(_failures(metric), lambda value: value > most, most, 1),
        lambda value, most: f"is {value}, above {most}",
        f"{mend}; until then verifier.on_failure says what such answers get",
        is_of_policy=False,
    )


def _finite(metrics: Metrics, name: str) -> float | None:
    value = metrics.get(name)
    return value if value is not None and math.isfinite(value) else None


def _reader(name: str) -> Callable[[Metrics], float | None]:
    return lambda metrics: _finite(metrics, name)


def _failures(name: str) -> Callable[[Metrics], float | None]:
    """A step that judged has no share of a reason that nobody gave."""
    return lambda metrics: metrics.get(name, 0.0) if "groups/flat_share" in metrics else None


def _flat_share(metrics: Metrics) -> float | None:
    """Of groups that teach nothing, unjudged ones included. 0 where all of them are right: that is
    no collapse."""
    flat = _finite(metrics, "groups/flat_share")
    if flat is None:
        return None
    if _finite(metrics, "groups/all_right_share") == 1:
        return 0.0
    return flat + (_finite(metrics, "groups/unjudged_share") or 0.0)
