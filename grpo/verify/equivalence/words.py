"""Answers wrapped in words, and answers that are words."""

import re

from grpo.verify.equivalence.text import Same, trim
from grpo.verify.equivalence.units import LOADED

_TEXT = re.compile(r"\\text\{([^{}]*)\}")
_LEAD = re.compile(
    r"(?:(?:so|thus|hence|therefore)\b,?\s*)?"
    r"(?:(?:the\s+)?(?:(?:final|correct)\s+)?(?:answer|value|result|solution|total)s?"
    r"\s*(?:is|are|:|=)\s*:?|(?:it|this)\s+(?:is|equals)\b|only\b|exactly\b)\s*",
    re.IGNORECASE,
)
_ONLY = re.compile(r"\s*(?:\(?\bonly\b\)?|\bexactly\b)\s*$", re.IGNORECASE)
_SENTENCE = re.compile(
    r"(?:The|This|It|Its|the|this|it|its|a|an|they|their|these)\b(?:[^.!?]|\.(?=\d)){0,120}?\b(?:is|are|equals|was)\s+"
    r"(?:an?\s+|the\s+)?((?:[^.!?]|\.(?=\d)){1,80})",
    re.IGNORECASE,
)
_SUBJECT = re.compile(
    r"([A-Z][a-z]{2,20})\s+(?:will|wins?|has|gets?|is|receives?|was|can|always)\b[^.!?]{0,120}"
)
_OVER = re.compile(r"\bleft(?: over)?\.?$")
_NEGATION = re.compile(
    r"\b(?:not?|never|none|neither|nor|cannot|without|except|unless|if|or|lose[sr]?)\b|n't", re.I
)
_YES = re.compile(r"(yes|no|true|false)(?=[,.;:]|$)")
_NOTHING = re.compile(
    r"\\emptyset|\\\{\\\}|none|(?:thereareno|thereisno|no)(?:real)?solutions?(?:exists?)?"
    r"|(?:therearenosuch|nosuch)(?:number|integer|function|pair|triple|value)s?(?:exists?)?"
)
_SET = "integer|number|real|rational|natural|complex|value"
_EVERY = rf"(?:positive|non-?negative|real|natural|rational|complex|integer|{_SET}|such|possible)s?"
_QUALIFIER = re.compile(
    r"(?:\s*,|\s*\(|\s)\s*(?:for|where|with|,)?\s*"
    rf"(?:for\s+(?:all|any|every|each)|for|where|with)\s+(?:{_EVERY}\s+)*"
    rf"\$?[A-Za-z]?\s*(?:is|are)?\s*(?:an?|any)?\s*(?:arbitrary)?\s*(?:{_EVERY}\s*)*"
    r"(?:[A-Za-z]?\s*\\in\s*\\mathbb\s*\{?[NZQRC]\}?(?:_\{?[>+0\s]*\}?|\^\{?[+*]\}?)?)?\s*\)?$"
)

# Of a letter that counts, from one of its first values on: what the formula is about.
_FROM = re.compile(
    r"\s*[,(]?\s*(?:\b(?:for|where|with|when|if)\b)?\s*(?:\b(?:all|every|any|each)\b)?\s*"
    r"(?:\b(?:(?:positive|natural)\s+)?(?:integers?|numbers?)\b)?\s*"
    r"(?<![\w\\^_+*/=-])([kmnN])\s*(?:\\ge\s*[0-3]|>\s*[0-2])\s*\)?$"
)
# What an adjective may be of, without saying more.
_BEARERS = "function|number|integer|triangle|quadrilateral|polygon|sequence|series|graph|curve"
_BEARER = re.compile(
    rf"(?:an?\s+|any\s+|the\s+|all\s+)?([a-z]{{3,20}})\s+(?:{_BEARERS})s?(?:\s+of\s+[a-z]+)?",
    re.IGNORECASE,
)
_WINNER = re.compile(
    r"([A-Z][a-z]{2,20})\s+(?:(?:always|will|can always|can)\s+)?wins?(?:\s+the game)?"
    r"|([A-Z][a-z]{2,20})\s+(?:has|have)\s+(?:a|the)\s+winning\s+strategy"
)


def plain(text: str) -> str:
    """Text commands opened: `5\\text{ cm}` -> `5 cm`."""
    return trim(" ".join(_TEXT.sub(r" \1 ", text).split()))


def same_words(gold: str, answer: str, same: Same) -> bool | None:
    """Words are equal up to case, spaces and full stops: `\\text{Odd}` and `odd`."""
    left, right = _letters(gold), _letters(answer)
    return True if left == right and re.search(r"[a-z]{3}|[ap]m$", left) else None


def _letters(text: str) -> str:
    words = re.sub(r"\b(?:the|an?)\s|[\s.\"]", "", plain(text).lower())
    return words if "\\" not in words else ""


def yes_or_no(gold: str, answer: str, same: Same) -> bool | None:
    """`Yes` with or without what follows a comma or a full stop."""
    texts = [plain(text).lower() for text in (gold, answer)]
    said = [_YES.match(text) for text in texts]
    if said[0] is None or said[1] is None:
        return None
    opposite = {"yes": "no", "no": "yes", "true": "false", "false": "true"}[said[0][1]]
    denied = any(re.search(rf"\b{opposite}\b", text) for text in texts)
    return said[0][1] == said[1][1] and not denied


def no_solution(gold: str, answer: str, same: Same) -> bool | None:
    """The empty set, said in words: `\\emptyset` and `no solutions`."""
    said = [re.sub(r"[\s.]", "", plain(text).lower()) for text in (gold, answer)]
    return True if all(_NOTHING.fullmatch(text) for text in said) else None


def lead_in(gold: str, answer: str, same: Same) -> bool | None:
    """Words in front of the value: `the answer is 5`, `only 5`."""
    left, right = _without_lead(gold), _without_lead(answer)
    return same(left, right) if (left, right) != (gold, answer) else None


def _without_lead(text: str) -> str:
    opened = plain(text)
    match = _LEAD.match(opened)
    shorter = opened[match.end() :] if match is not None and match.end() < len(opened) else text
    return trim(_ONLY.sub("", shorter)) or text


def statement(gold: str, answer: str, same: Same) -> bool | None:
    """A sentence that says what a quantity is, `The area of the square is 9`, or that holds one
    number behind its subject and verb, and no word that limits it, `Ann left 3 hours ago`."""
    text = plain(answer)
    if _NEGATION.search(text):
        return None
    said = _SENTENCE.fullmatch(text)
    if said is not None and same(gold, trim(said[1])):
        return True
    numbers = re.findall(r"(?<![\w.\\^])-?\d+(?:[.,]\d+)*", text)
    spoken = re.findall(r"[A-Za-z]{2,}", text)
    # What is over is left: "she has 64 coins left".
    limited = any(
        word.lower() in LOADED for word in re.findall(r"[A-Za-z]{2,}", _OVER.sub("", text))
    )
    if len(numbers) != 1 or len(spoken) < 3 or limited or re.search(r"[\\^=<>+*/|]", text):
        return None
    if len(re.findall(r"[A-Za-z]+", text[: text.index(numbers[0])])) < 2:
        return None
    return True if re.fullmatch(r"-?[\d.,]+", gold) and same(gold, numbers[0]) else None


def qualifier(gold: str, answer: str, same: Same) -> bool | None:
    """`for all real x` behind a formula, where the other side says nothing of the kind."""
    left, right = _without_qualifier(gold), _without_qualifier(answer)
    if (left == gold) == (right == answer):
        return None
    return same(left, right)


def _without_qualifier(text: str) -> str:
    opened = plain(text)
    match = _QUALIFIER.search(opened)
    if match is None:
        match = _FROM.search(opened)
        letter = rf"(?<![A-Za-z]){match[1]}(?![A-Za-z])" if match is not None else ""
        if match is None or re.search(letter, opened[: match.start()]) is None:
            return text
    return trim(opened[: match.start()])


def sentence(gold: str, answer: str, same: Same) -> bool | None:
    """One side is a sentence whose subject or predicate is the other: `The function is odd.` and
    `odd`, `Ann will win.` and `Ann`. Not where a word denies or limits it."""
    texts = [plain(text) for text in (gold, answer)]
    for long, short in (texts, texts[::-1]):
        if not re.fullmatch(r"[A-Za-z]{2,20}", short) or _NEGATION.search(long):
            continue
        winner = _WINNER.fullmatch(long)
        if winner is not None and short in winner.groups():
            return True
        borne = _BEARER.fullmatch(long)
        if borne is not None and borne[1].lower() == short.lower():
            return True
        subject = _SUBJECT.fullmatch(long)
        if long is texts[0] and subject is not None:
            others = re.findall(r"[A-Z][a-z]{2,}", long[subject.end(1) :])
            if not others and subject[1] == short:
                return True
        said = _SENTENCE.fullmatch(long)
        if said is not None and said[1].strip().lower() == short.lower():
            return True
    return None
