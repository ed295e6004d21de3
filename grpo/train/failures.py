"""What an answer looks like on which the verifier crashed or ran out of time."""

from collections import Counter
from collections.abc import Sequence

from grpo.console import shorten
from grpo.train.collapse import Finding
from grpo.train.metrics import short_reason
from grpo.types import ScoredGroup

_CHARACTERS = 200


def with_example(finding: Finding, groups: Sequence[ScoredGroup]) -> str:
    """The finding's warning; where it is about failures of the verifier, with the most common
    reason and the first answer that had it."""
    failed = [
        (verdict.reason, response.text, group.group.prompt.row.asked)
        for group in groups
        for response, verdict in zip(group.group.responses, group.verdicts, strict=True)
        if finding.metric == f"verdict/{short_reason(verdict.reason)}/share" and verdict.was_stopped
    ]
    if not failed:
        return finding.warning
    reason, count = Counter(reason for reason, _, _ in failed).most_common(1)[0]
    text, problem = next((text, problem) for given, text, problem in failed if given == reason)
    return (
        f"{finding.warning}\n"
        f"  {count} of {len(failed)}: {reason!r}, for example on the answer\n"
        f"    {shorten(text, _CHARACTERS)!r}\n"
        f"  to {shorten(problem, _CHARACTERS)!r}"
    )
