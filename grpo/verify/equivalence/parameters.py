"""Families of solutions, up to the letter that numbers them."""

import re

from grpo.verify.equivalence.text import Same, trim

_LETTER = re.compile(r"(?<![\\A-Za-z])([A-Za-z])(?![A-Za-z])")
_MEMBER = r"([a-z])\s*\\in\s*\\mathbb\s*\{?[NZQR]\}?(?:_\{?[>0+\\\sge]*\}?|\^\{?[+*]\}?)?"
_INTEGER = (
    r"(?:an?\s+|any\s+|some\s+|arbitrary\s+)*(?:integer|real|whole|natural|number|constant)s?"
)
_DECLARED = re.compile(
    r"\s*[,(]?\s*(?:\\text\{)?\s*,?\s*(?:(?:for|where|with)\s+(?:(?:all|any|some|every)\s+)?)?"
    rf"(?:\}}\s*)?(?:{_MEMBER}|(?:integers?\s+)?\}}?\s*([a-z])\s*"
    rf"(?:(?:\\text\{{)?\s*(?:is|are)\s+{_INTEGER}(?:\s*\}})?)?)\s*[)}}]?$"
)
_SAID = re.compile(r"for (?:some|all|any|every)|where|with|\\in(?![A-Za-z])|integers?\s")
_ANGLE = re.compile(r"(?<![\\A-Za-z])([kmn])\s*\\pi|\\pi\s*([kmn])(?![A-Za-z])")


def parameter(gold: str, answer: str, same: Same) -> bool | None:
    """`x = k\\pi` and `n\\pi`, `(3t, 5t), t \\in \\mathbb{Z}` and `(3k, 5k)`: a letter that stands
    for every integer may be another. A side must declare it, or it must number an angle's turns.
    """
    (left, declared), (right, other) = _split(gold), _split(answer)
    letters = [set(_LETTER.findall(text)) for text in (left, right)]
    if not letters[0] and not letters[1]:
        return None
    ours = letters[0] - letters[1]
    theirs = letters[1] - letters[0]
    if not declared and not other:
        if not (_turns(left) and _turns(right) and _turns(left) != _turns(right)):
            return None
        ours, theirs = {_turns(left)}, {_turns(right)}
    if not ours and not theirs and (left, right) != (gold, answer):
        return same(left, right) or None
    if len(ours) != 1 or len(theirs) != 1 or theirs & letters[0]:
        return None
    if (declared and declared not in ours) or (other and other not in theirs):
        return None
    renamed = _LETTER.sub(lambda m: min(ours) if m[1] in theirs else m[1], right)
    return same(left, renamed) or None


def _split(text: str) -> tuple[str, str]:
    """The text without the declaration at its end, and the letter that it declares, "" for none."""
    match = _DECLARED.search(text)
    if match is None or not _SAID.search(match[0]) or not match.start():
        return text, ""
    head = text[: match.start()]
    if head.count("{") != head.count("}"):
        return text, ""  # the declaration begins within a text command
    return trim(head), match[1] or match[2] or ""


def _turns(text: str) -> str:
    match = _ANGLE.search(text)
    return (match[1] or match[2]) if match is not None else ""
