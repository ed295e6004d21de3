r"""Letters of multiple choice, one or several."""

import re

from grpo.verify.equivalence.text import Same
from grpo.verify.equivalence.words import plain

_CHOICE = re.compile(r"\(?([A-H])\)?(?:[.:)]\s*|(?<=\))\s*)(?=\S)(.+)", re.DOTALL)
_LETTER = re.compile(r"\(?([A-H])\)?")
_ANNOUNCED = re.compile(r"(?:(?:the|options?|choices?|answers?|statements?)\s*)+(?=\(?[A-H])", re.I)
# Another letter, or words that take the choice back: whoever names several has chosen none.
_TAKEN_BACK = re.compile(
    r"(?:^|[\s,;/])\(?[A-H]\)?(?:[.:)]|\s*(?:$|[,;/]|or\b|and\b|is\b))"
    r"|\b(?:not|wrong|incorrect|false)\b",
    re.IGNORECASE,
)
_SEVERAL = re.compile(r"\(?[A-H]\)?\.?(?:(?:\s*[,;&]\s*|\s+)?(?:and\s+)?\(?[A-H]\)?\.?)+")
_CIRCLED = re.compile("[①-⑳]")
_CIRCLED_LIST = re.compile(r"[①-⑳](?:\s*[,;]?\s*(?:and\s*)?[①-⑳])*")


def choice(gold: str, answer: str, same: Same) -> bool | None:
    """A letter of multiple choice with or without parentheses, "option" before it, or with what it
    stands for: `(E)`, `e`, `Option E` and `(E) 5` for E; `(E) 5` for 5."""
    given = plain(answer)
    letter = _LETTER.fullmatch(plain(gold))
    if letter is not None:
        given = _ANNOUNCED.sub("", given, count=1)
        match = _CHOICE.fullmatch(given)
        if match is not None and _TAKEN_BACK.search(match[2]):
            return False
        other = match[1] if match is not None else given.strip("()")
        return letter[1] == (other.upper() if re.fullmatch("[a-h]", other) else other)
    match = _CHOICE.fullmatch(given)
    return same(gold, match[2]) if match is not None else None


def choices(gold: str, answer: str, same: Same) -> bool | None:
    """Several letters, as a word or as a list, in one order: `ACD`, `A, C, D`, `(A), (C) and (D)`.
    None where both are lists, which may be in any order, or both are words."""
    texts = [_ANNOUNCED.sub("", plain(text), count=1) for text in (gold, answer)]
    if not all(_SEVERAL.fullmatch(text) for text in texts):
        return None
    letters = [re.findall("[A-H]", text) for text in texts]
    if any(len(set(each)) < len(each) for each in letters):
        return None
    return True if letters[0] == letters[1] else None


def circled(gold: str, answer: str, same: Same) -> bool | None:
    """Numbered statements: `②③` for `2, 3`."""
    texts = [_opened(text) for text in (gold, answer)]
    return same(texts[0], texts[1]) if texts != [gold, answer] else None


def _opened(text: str) -> str:
    whole = plain(text)
    if _CIRCLED_LIST.fullmatch(whole) is None:
        return text
    return ", ".join(str(ord(sign) - ord("①") + 1) for sign in _CIRCLED.findall(whole))
