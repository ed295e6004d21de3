"""Which part of a response is its answer."""

import re

from grpo.verify.exact import answer_line, last_box

_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_TOKEN = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
_MOST_BOXES = 40
_LONGEST_GAP = 60
# What may stand between the boxes of one answer: "and", "or", commas, and the next one's name.
_DELIMITERS = re.compile(r"\\[()\[\]]|\$|\\q?quad|\\[,;: ]|\\text\{([^{}]*)\}|\s+")
_GAP = re.compile(
    r"[,;&]?(?: ?for part \(?\w\)?)?,? ?(?:and|or|[,;&]|)"
    r"(?: ?\\?[A-Za-z]\w{0,3}(?:_\{?\w+\}?)?(?:\([a-z\d]\))? ?=)? ?"
)
_SEPARATOR = re.compile(r"\b(?:and|or)\b|[,;]")
_MINERVA = "I hope it is correct"
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z\[<])|\.?\s*I hope it|<\|")


def marked(text: str, loose: bool = False) -> str | None:
    """The answer that the text marks: its last box, together with those right before it that only
    "and", "or" or a comma parts from it; else what follows the last "Answer:". "" where a box is
    never closed, None where nothing is marked.

    A line "The final answer is ... I hope it is correct", as in Minerva's prompt, counts where it
    comes after the box. `loose`: any words with a comma, "and" or "or" may stand between the boxes
    of one answer; for references, which nobody writes to deceive.
    """
    boxes = _boxes(text)
    if boxes is None:
        return last_box(text)
    line = text.find(_MINERVA, boxes[-1][1]) if boxes else 0
    if boxes and line < 0:
        return _joined(text, boxes, loose)
    said = answer_line(text[boxes[-1][1] :] if boxes else text)
    if said is None:
        return _joined(text, boxes, loose) if boxes else None
    said = _SENTENCE_END.split(said)[0].strip()
    return said.removeprefix('\\"').removesuffix('\\"').strip()


def _boxes(text: str) -> list[tuple[int, int, str]] | None:
    """Start, end and content of the outermost boxes; None where one is never closed."""
    if _BOX.search(text) is None:
        return []
    found: list[tuple[int, int, str]] = []
    depth, start, inside = 0, 0, 0
    at: int | None = None
    for match in _TOKEN.finditer(text):
        token = match[0]
        if token[0] == "\\" and token[-1] == "{" and len(token) > 2:
            if at is None:
                at, start, inside = depth, match.start(), match.end()
            depth += 1
        elif token == "{":
            depth += 1
        elif token == "}":
            depth = max(0, depth - 1)
            if at is not None and depth == at:
                found.append((start, match.end(), text[inside : match.start()].strip()))
                at = None
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
