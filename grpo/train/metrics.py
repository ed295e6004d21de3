"""A step in numbers: rewards, lengths, verdicts, staleness."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import compress

import numpy as np

from grpo.algo.shaping import is_flat
from grpo.types import ScoredGroup

# Nats per token between the policy that sampled and the one that learns. Beyond this the demo gets
# worse as it trains; at a fifth of it, training behaves as on-policy (docs/speed.md).
FAR_POLICY = 0.03
ON_THE_MEAN = 1e-9  # a reward this close to its group's mean is neither above nor below


def short_reason(reason: str) -> str:
    """`verifier crashed: KeyError` counts as `verifier crashed`."""
    return reason.split(":", 1)[0].strip()


def group_metrics(groups: Sequence[ScoredGroup]) -> dict[str, float]:
    """Rewards, lengths (tokens) and verdicts of a step's responses; {} without groups.

    Rewards are the verdicts' own, of the answers that count; what shaping took is reward/penalty.
    Standard deviations divide by N. A flat group counts as all right where its reward is positive,
    as all wrong otherwise; one that is left out whole is neither.
    length/positive_minus_negative compares answers above and below their own group's mean reward;
    nan where no group has both.
    """
    if not groups:
        return {}
    rewards_N = np.array([reward for group in groups for reward in group.accuracies], dtype=float)
    responses = [response for group in groups for response in group.group.responses]
    lengths_N = np.array([len(response.token_ids) for response in responses], dtype=float)
    reasons = Counter(
        short_reason(verdict.reason) for group in groups for verdict in group.verdicts
    )
    judged = [group.accuracies for group in groups if any(group.counted)]
    flat = [rewards[0] for rewards in judged if is_flat(rewards)]
    metrics = {
        "reward/mean": rewards_N.mean() if judged else math.nan,
        "reward/std": rewards_N.std() if judged else math.nan,
        "length/mean": lengths_N.mean(),
        "length/cv": lengths_N.std() / lengths_N.mean() if lengths_N.any() else math.nan,
        "length/max": lengths_N.max(),
        "length/positive_minus_negative": _positive_minus_negative(groups),
        "truncated/share": np.mean([r.finish_reason == "length" for r in responses]),
        "no_answer/share": reasons["no answer"] / len(responses),
        "groups/flat_share": len(flat) / len(groups),
        "groups/unjudged_share": (len(groups) - len(judged)) / len(groups),
        "groups/all_right_share": sum(reward > 0 for reward in flat) / len(groups),
        "groups/all_wrong_share": sum(reward <= 0 for reward in flat) / len(groups),
    }
    penalties = [penalty for group in groups for penalty in group.penalties]
    if penalties:
        metrics["reward/penalty"] = np.mean(penalties)
    for reason in sorted(reasons.keys()):
        metrics[f"verdict/{reason}/share"] = reasons[reason] / len(responses)
    return {name: float(value) for name, value in metrics.items()}


def staleness_metrics(used: Sequence[ScoredGroup], version: int) -> dict[str, float]:
    """How many weight updates lie between the tokens' weights and those that learn from them,
    which are `version`; {} without tokens. A token counts once whatever its weight."""
    responses = [response for group in used for response in group.group.responses]
    spans = [span for response in responses for span in response.versions if span.end > span.start]
    if not spans:
        return {}
    tokens = sum(span.end - span.start for span in spans)
    total = sum((version - span.version) * (span.end - span.start) for span in spans)
    return {
        "staleness/mean": total / tokens,
        "staleness/max": float(version - min(span.version for span in spans)),
    }


def drift_warning(step: int, metrics: Mapping[str, float]) -> str | None:
    """What to tell the user where stale answers come from too different a policy, or where the
    two policies cannot be compared at all, as logprobs are not finite."""
    if math.isnan(metrics.get("mismatch/kl", 0.0)):
        return (
            f"step {step}: mismatch/kl is nan, so logprobs are not finite: training has probably "
            "diverged. Stop it and resume from an earlier checkpoint (--resume DIR) with a lower "
            "learner.lr"
        )
    if not metrics.get("staleness/max") or metrics.get("mismatch/kl", 0.0) <= FAR_POLICY:
        return None
    return (
        f"step {step}: the policy that sampled is {metrics['mismatch/kl']:.2g} nats per token away "
        f"from the one that learns (mismatch/kl); above {FAR_POLICY} stale answers can do more "
        "harm than good. Lower learner.lr, or set schedule.max_staleness=0"
    )


def _positive_minus_negative(groups: Sequence[ScoredGroup]) -> float:
    above: list[int] = []
    below: list[int] = []
    for group in groups:
        rewards = group.accuracies
        if not rewards or is_flat(rewards):
            continue  # these differ from their mean by rounding alone
        mean = math.fsum(rewards) / len(rewards)
        responses = compress(group.group.responses, group.counted)
        for response, reward in zip(responses, rewards, strict=True):
            if abs(reward - mean) > ON_THE_MEAN:
                (above if reward > mean else below).append(len(response.token_ids))
    if not above or not below:
        return math.nan
    return sum(above) / len(above) - sum(below) / len(below)
