"""What Ray says when it kills a worker because the machine's memory is full, in a few lines."""

import re

_USED = re.compile(r"was ([\d.]+) ?GB used / ([\d.]+) ?GB limit")
_TOP = re.compile(r"^\d+\t([\d.]+)\t(.+)$", re.MULTILINE)
_MOST_PROCESSES = 4
_NAME_CHARACTERS = 60
# By the role of a worker: what it needs less with.
_LESS = {
    "learner": "a smaller learner.micro_batch_tokens or model.gradient_checkpointing=true",
    "rollout": "fewer engines or a smaller kv_cache_memory_bytes for each (rollout.engine, or "
    "--engine of grpo eval)",
}


def out_of_memory(name: str, words: str) -> str:
    """`words`: Ray's, of the worker that it killed. How full the machine was, and of what."""
    used = _USED.search(words)
    full = f" ({used[1]} of {used[2]} GB)" if used else ""
    largest = [f"{who[:_NAME_CHARACTERS]} {size} GB" for size, who in _TOP.findall(words)]
    whose = f"; the largest processes: {', '.join(largest[:_MOST_PROCESSES])}" if largest else ""
    less = _LESS.get(name.partition("-")[0], "fewer workers")
    return (
        f"the machine's memory was full{full}, and Ray killed it{whose}. See what else runs there; "
        f"it needs less with {less}"
    )
