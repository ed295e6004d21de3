"""What a response gives as its answer, decided here for every verifier.

    thinking ends -> the last \\boxed{} -> else <answer>...</answer> -> else an "Answer:" line

A mark that was begun and never closed is no answer, and neither is thinking that never ended: what
stands in them is a draft. A verifier of your own asks `final_answer`, or `after_thinking` where its
answers have no such mark.
"""

import re
from dataclasses import dataclass
from functools import cache
from typing import Literal

from grpo.thinking import thinking_ends

# Whether an answer that no mark announces may count: "required" says no.
Marked = Literal["required", "preferred"]

PARSED_CAP = 200
# Only the end of a response is searched.
TAIL_CHARS = 50_000

_BOX = re.compile(r"\\(?:boxed|fbox|framebox)(?![A-Za-z])\s*\{|\\bbox(?:\[[^\]]*\])?\s*\{")
# A backslash takes the next character with it, so \{ and \} do not count.
_TOKEN = re.compile(_BOX.pattern + r"|\\.|[{}]", re.DOTALL)
_BARE_BOX = re.compile(r"\\boxed\s*(\d)(?!\d)")
_MOST_BOXES = 40
_LONGEST_GAP = 60
# What may stand between the boxes of one answer: "and", "or", commas, and the next one's name.
_DELIMITERS = re.compile(r"\\[()\[\]]|\$|\\q?quad|\\[,;: ]|\\text\{([^{}]*)\}|\s+")
_GAP = re.compile(
    r"[,;&]?(?: ?for part \(?\w\)?)?,? ?(?:and|or|[,;&]|)"
    r"(?: ?\\?[A-Za-z]\w{0,3}(?:_\{?\w+\}?)?(?:\([a-z\d]\))? ?=)? ?"
)
_SEPARATOR = re.compile(r"\b(?:and|or)\b|[,;]")
_TAG = re.compile(r"<(/?)answer>", re.IGNORECASE)
# "Final Answer: The final answer is 5" is Minerva's form.
_ANSWER = (
    r"(?:\b(?:answer|respuesta|antwort|r[eé]ponse|risposta|resposta)|ответ|答案|答え|答|정답)"
    r"\s*(?:is\s*)?[*_]*\s*[:：]"
)
_WHAT_FOLLOWS = r"\s*[*_]*\s*(?:the final answer is\b:?\s*)?([^\n]+)"
_MINERVA = "I hope it is correct"
_WHITE = " \t\n。*_"
_BLANKS = re.compile(r"[^\S\n]+")
_BLANK_LINES = re.compile(r" ?\n[ \n]*")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z\[<])|。|\.?\s*I hope it|<\|")
_SAID = re.compile(
    r"(?:\b(?:(?:final|correct|right)\s+)?answer\s+(?:is|equals)\b:?|答案(?:是|为|為)|故选|应选)"
    r"\s*[*_]*\s*([^\n]+)",
    re.IGNORECASE,
)
_CLAUSE = re.compile(
    r"(.*?\S)(?:\s*[,;]\s*|\s+[-–—]+\s+|\s+)"
    r"((?:because|since|as|which|in total|altogether|so|the|in all)\b.*)"
)
_TAKES_BACK = re.compile(r"\b(?:or|not|but|if|unless|maybe|perhaps|wrong|instead|rather)\b|n't")


@dataclass(frozen=True, slots=True)
class Given:
    """An answer and what announces it. `text` is "" where a mark was begun and not finished."""

    text: str
    mark: Literal["box", "tag", "line"]


def final_answer(
    response: str, *, truncated: bool = False, thinking: bool = False, mark: str = ""
) -> Given | None:
    """The answer that the response marks, None where it marks nothing.

    The last box counts, together with those right before it that only "and", "or" or a comma parts
    from it; else what the last <answer> holds; else what follows the last "Answer:" (or its like
    in another language, or `mark`, the data's own, such as "####") on its line. A line "The final
    answer is ... I hope it is correct", as in Minerva's prompt, counts where it comes after the
    box. `truncated`: the response was cut off, so that its last line may lack its end. `thinking`:
    its prompt has opened the thinking, so that there is no answer before the end of that.
    """
    spoken = after_thinking(response, thinking=thinking)
    if spoken is None:
        return Given("", "tag")
    return marked(spoken, truncated=truncated, mark=mark)


def after_thinking(response: str, *, thinking: bool = False, most: int = TAIL_CHARS) -> str | None:
    """What follows the thinking, the last `most` characters of it; None where it has no end."""
    end = thinking_ends(response, thinking)
    return None if end is None else response[end:][-most:]


def marked(
    text: str, *, truncated: bool = False, mark: str = "", loose: bool = False
) -> Given | None:
    """`final_answer` of a text without thinking. `loose`: any words with a comma, "and" or "or" may
    stand between the boxes of one answer; for references, which nobody writes to deceive."""
    text = _BARE_BOX.sub(r"\\boxed{\1}", _folded(text))
    boxes = _boxes(text)
    if boxes is None:
        return Given(last_box(text) or "", "box")
    is_minerva = bool(boxes) and text.find(_MINERVA, boxes[-1][1]) >= 0
    if boxes and not is_minerva:
        return Given(_joined(text, boxes, loose), "box")
    tagged = None if boxes else _tagged(text)
    if tagged is not None:
        return Given(tagged, "tag")
    said = _line(text[boxes[-1][1] :] if boxes else text, truncated, mark)
    if said is None:
        return Given(_joined(text, boxes, loose), "box") if boxes else None
    said = _SENTENCE_END.split(said)[0].strip(_WHITE)
    return Given(said.removeprefix('\\"').removesuffix('\\"').strip(), "line")


def last_box(text: str) -> str | None:
    """What the last box holds; "" where it is never closed, None where there is none."""
    start = None
    for match in _BOX.finditer(text):
        start = match.end()
    if start is None:
        return None
    depth = 1
    for match in _TOKEN.finditer(text, start):
        if match[0].endswith("{") and match[0] != "\\{":
            depth += 1
        elif match[0] == "}":
            depth -= 1
        if depth == 0:
            return text[start : match.start()].strip()
    return ""


def stated(text: str) -> str | None:
    """What prose says that the answer is: "the answer is 5", "答案是5". None where it does not."""
    found = _SAID.findall(text)
    return _SENTENCE_END.split(found[-1])[0].strip(_WHITE).rstrip(".*_") if found else None


def without_clause(said: str) -> str:
    """The value of a line that goes on in words: `64` of "64, since 8 * 8 = 64" and of "64 - the
    number of coins". The whole where what follows may take it back."""
    match = _CLAUSE.match(said)
    return said if match is None or _TAKES_BACK.search(match[2]) else match[1]


def last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else ""


def fold(text: str) -> str:
    """Without white space at the ends, and with single spaces inside."""
    return " ".join(text.split())


def _folded(text: str) -> str:
    """With single spaces and no empty lines: expressions with several \\s* in a row take a time
    that grows with the square of a run of white space."""
    return _BLANK_LINES.sub("\n", _BLANKS.sub(" ", text))


def _boxes(text: str) -> list[tuple[int, int, str]] | None:
    """Start, end and content of the outermost boxes; None where one is never closed."""
    if _BOX.search(text) is None:
        return []
    found: list[tuple[int, int, str]] = []
    depth, start, inside = 0, 0, 0
    at: int | None = None
    for match in _TOKEN.finditer(text):
        token = match[0]
        if token == "{":
            depth += 1
        elif token == "}":
            depth = max(0, depth - 1)
            if at is not None and depth == at:
                found.append((start, match.end(), text[inside : match.start()].strip()))
                at = None
        elif token.endswith("{") and len(token) > 2:
            if at is None:
                at, start, inside = depth, match.start(), match.end()
            depth += 1
    return None if at is not None else found


def _joined(text: str, boxes: list[tuple[int, int, str]], loose: bool) -> str:
    contents = [boxes[-1][2]]
    for before, after in zip(boxes[-2::-1], boxes[:0:-1], strict=True):
        gap = text[before[1] : after[0]]
        if len(gap) > _LONGEST_GAP or len(contents) == _MOST_BOXES or not _connects(gap, loose):
            break
        if before[2] not in contents:
            contents.append(before[2])
    return ", ".join(reversed(contents))


def _connects(gap: str, loose: bool) -> bool:
    if loose and _SEPARATOR.search(gap):
        return True
    opened = _DELIMITERS.sub(lambda match: f" {match[1] or ''} ", gap)
    return _GAP.fullmatch(" ".join(opened.split())) is not None


def _tagged(text: str) -> str | None:
    """What the last <answer> holds."""
    tags = list(_TAG.finditer(text))
    if not tags or (tags[-1][1] and len(tags) == 1):
        return None
    if not tags[-1][1]:
        return ""
    return text[tags[-2].end() : tags[-1].start()].strip() if not tags[-2][1] else ""


def _line(text: str, truncated: bool, mark: str) -> str | None:
    """What follows the last "Answer:" on its line, or on the next where that line ends there."""
    found = list(_line_of(mark).finditer(text))
    if not found:
        return None
    if truncated and found[-1].end() == len(text):
        return ""
    return found[-1][1].strip(_WHITE)


@cache
def _line_of(mark: str) -> re.Pattern[str]:
    own = rf"|(?<!\w){re.escape(mark)}" if mark else ""
    return re.compile(rf"(?:{_ANSWER}{own}){_WHAT_FOLLOWS}", re.IGNORECASE)
