"""What a step's tokens cost and what became of them: the share that became gradient, and why the
rest did not."""

from itertools import compress

from grpo.algo.shaping import is_flat
from grpo.batch.build import rollout_lengths
from grpo.train.groups import Collected
from grpo.types import ScoredGroup

CAUSES = ("flat", "truncated", "unjudged", "stale", "aborted")


def throughput_metrics(
    collected: Collected, learn_s: float, verifier_workers: int
) -> dict[str, float]:
    """Seconds of sampling and judging, tokens per second, goodput. The groups that the learner got
    have their advantages; it took `learn_s` for them."""
    judging_s = sum(v.seconds for group in collected.sampled for v in group.verdicts)
    metrics = {
        "time/rollout_s": collected.rollout_s,
        "time/verify_s": judging_s / verifier_workers,
        "throughput/learned_tokens_per_s": float(rollout_lengths(collected.used).sum()) / learn_s,
    }
    if collected.rollout_s > 0:
        metrics["throughput/sampled_tokens_per_s"] = collected.rollout_tokens / collected.rollout_s
    return metrics | goodput(collected)


def goodput(collected: Collected) -> dict[str, float]:
    """Shares of all answer tokens whose fate the step decided; they add up to 1. {} without tokens.

    A group is flat where none of its answers has an advantage; within any other, an answer whose
    own advantage is 0 counts as learned from: its siblings are measured against it.
    """
    lost = dict.fromkeys(CAUSES, 0)
    lost |= {"stale": collected.stale_tokens, "aborted": collected.aborted_tokens}
    learned = 0
    for group in collected.sampled:
        flat = _is_flat(group)
        fates = zip(group.group.responses, group.counted, group.learned_from, strict=True)
        for response, is_counted, is_learned_from in fates:
            if not is_counted:
                lost["unjudged"] += len(response.token_ids)
            elif flat:
                lost["flat"] += len(response.token_ids)
            elif not is_learned_from:
                lost["truncated"] += len(response.token_ids)
            else:
                learned += len(response.token_ids)
    total = learned + sum(lost.values())
    if total == 0:
        return {}
    shares = {f"goodput/lost_{cause}": tokens / total for cause, tokens in lost.items()}
    return {"goodput/share": learned / total} | shares


def _is_flat(group: ScoredGroup) -> bool:
    if not any(group.counted):
        return False  # nobody knows
    if not group.advantages:  # the learner did not get it
        return is_flat(group.accuracies)
    return not any(compress(group.advantages, group.learned_from))
