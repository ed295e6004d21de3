"""What Ray says when it kills a worker because the machine's memory is full, in a few lines."""

import re

_USED = re.compile(r"was ([\d.]+) ?GB used / ([\d.]+) ?GB limit")
_TOP = re.compile(r"^\d+\t([\d.]+)\t(.+)$", re.MULTILINE)
_MOST_PROCESSES = 4
_NAME_CHARACTERS = 60


def out_of_memory(words: str) -> str:
    """`words`: Ray's. How full the machine was, and of what."""
    used = _USED.search(words)
    full = f" ({used[1]} of {used[2]} GB)" if used else ""
    largest = [f"{name[:_NAME_CHARACTERS]} {size} GB" for size, name in _TOP.findall(words)]
    whose = f"; the largest processes: {', '.join(largest[:_MOST_PROCESSES])}" if largest else ""
    return (
        f"the machine's memory was full{full}, and Ray killed it{whose}. See what else runs there; "
        "a run needs less with a smaller learner.micro_batch_tokens, with "
        "model.gradient_checkpointing=true or with fewer rollout.engines"
    )
