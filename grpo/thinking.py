"""The tags around a model's thinking.

They stand in responses, and in prompts: the chat templates of Qwen3-Thinking, QwQ and DeepSeek-R1
open the thinking themselves, so that a response has nothing but the end of it.
"""

import re

TAGS = re.compile(r"<(/?)(?:think|thinking|thought)>|\[(/?)THINK\]")


def thinking_ends(text: str, is_open: bool = False) -> int | None:
    """Where in the text the thinking is over, 0 where there is none; None where it goes on to the
    end. `is_open`: it began before the text."""
    end = 0
    for tag in TAGS.finditer(text):
        is_open = not (tag[1] or tag[2])
        end = tag.end()
    return None if is_open else end
