"""The tags around a model's thinking.

They stand in responses, and in prompts: the chat templates of Qwen3-Thinking, QwQ and DeepSeek-R1
open the thinking themselves, so that a response has nothing but the end of it.
"""

import re

_FENCE = r"(?:^|(?<=>))[ \t]*```"
TAGS = re.compile(r"<(/?)(?:think|thinking|thought)>|\[(/?)THINK\]")

_TAGS_AND_FENCES = re.compile(rf"{TAGS.pattern}|{_FENCE}", re.MULTILINE)


def thinking_ends(text: str, is_open: bool = False) -> int | None:
    """Where in the text the thinking is over, 0 where there is none; None where it goes on to the
    end. `is_open`: it began before the text. Within a block of code behind the thinking a tag is
    part of the program."""
    end, in_block = 0, False
    for tag in _TAGS_AND_FENCES.finditer(text):
        if tag[0].endswith("`"):
            in_block = not in_block and not is_open
        elif not in_block:
            is_open = not (tag[1] or tag[2])
            end = tag.end()
    return None if is_open else end
