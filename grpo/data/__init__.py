"""Rows from files, hubs and tasks, rendered for a model and dealt out in a seeded order.

`read` opens a source, `rows` turns what it holds into rows, `filters` leaves some out, `load` does
all three; `stream` renders and deals. `benchmarks`, `contamination`, `prepare` and `inspect` are
behind `grpo data`.
"""

from grpo.data import stories  # registers its task
from grpo.data.load import load_rows
from grpo.data.stream import PromptStream, eval_prompts, render

__all__ = ["PromptStream", "eval_prompts", "load_rows", "render", "stories"]
