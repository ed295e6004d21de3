r"""Numbers in words, `one hundred`, `minus 4`, `two thirds`, and ratios, `3 to 2`."""

import re

from grpo.verify.equivalence.numbers import read_number
from grpo.verify.equivalence.text import Same
from grpo.verify.equivalence.words import plain

_ONES = {
    word: number
    for number, word in enumerate(
        re.findall(
            r"\w+",
            """
            zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen
            fifteen sixteen seventeen eighteen nineteen
            """,
        )
    )
}
_TENS = {
    word: 10 * number
    for number, word in enumerate(
        re.findall(r"\w+", "twenty thirty forty fifty sixty seventy eighty ninety"), start=2
    )
}
_THOUSANDS = {"thousand": 10**3, "million": 10**6, "billion": 10**9}
_SCALES = frozenset(("hundred", *_THOUSANDS))
# "second" is a unit of time.
_PARTS = {
    word: number
    for number, word in enumerate(
        re.findall(r"\w+", "half third fourth fifth sixth seventh eighth ninth tenth"), start=2
    )
} | {"quarter": 4, "halve": 2, "twelfth": 12, "twentieth": 20, "hundredth": 100}
_MOST_WORDS = 16
_SIGN = re.compile(r"(minus|negative)\s+(.+)")
_RATIO = re.compile(r"[\d.]+(?:\s*(?:is\s+)?to\s+[\d.]+)+")
_TIME = re.compile(r"\d{1,2}:[0-5]\d:[0-5]\d")
_PARTED = re.compile(r"(?:\\[A-Za-z]+|(?<![A-Za-z])[A-Za-z](?![A-Za-z])|[^A-Za-z,;=\\])+")
_TO = re.compile(r"\s*(?:is\s+)?to\s*")


def spelled_number(gold: str, answer: str, same: Same) -> bool | None:
    """`twenty-one` for 21, `two thirds` for a fraction, `minus 4` and `negative 4` for -4."""
    texts = [plain(text) for text in (gold, answer)]
    digits = [_spoken(text.lower()) or text for text in texts]
    return same(digits[0], digits[1]) if digits != texts else None


def _spoken(text: str) -> str | None:
    """In digits; None for what is no number in words."""
    signed = _SIGN.fullmatch(text)
    if signed is not None:
        rest = signed[2] if read_number(signed[2]) is not None else _spoken(signed[2])
        return f"-{rest}" if rest is not None and not rest.startswith(("-", "+")) else None
    words = re.split(r"[\s-]+", text)
    if len(words) > _MOST_WORDS or re.search(r"[^a-z\s-]", text):
        return None
    part = _PARTS.get(words[-1]) or _PARTS.get(words[-1].removesuffix("s"))
    if part is not None and len(words) > 1:
        top = 1 if words[:-1] in (["a"], ["an"]) else _whole(words[:-1])
        # "twenty third" is an ordinal.
        is_ordinal = top != 1 and not words[-1].endswith(("s", "ves"))
        return f"\\frac{{{top}}}{{{part}}}" if top is not None and not is_ordinal else None
    whole = _whole(words)
    return str(whole) if whole is not None else None


def _whole(words: list[str]) -> int | None:
    """`two hundred and six thousand` -> 206000; None where the words are no number."""
    total = group = 0
    limit, last = 10**12, 1000  # what the next group, and the next word in a group, stays below
    for position, word in enumerate(words):
        if word == "and" and 0 < position < len(words) - 1 and words[position - 1] in _SCALES:
            continue
        if word in _THOUSANDS and group > 0 and _THOUSANDS[word] < limit:
            total, limit = total + group * _THOUSANDS[word], _THOUSANDS[word]
            group, last = 0, 1000
        elif word == "hundred" and 0 < group < 10:
            group, last = 100 * group, 100
        elif word in _TENS and last >= 100:
            group, last = group + _TENS[word], 10
        elif word in _ONES and (_ONES[word] < last) and last > 1:
            if _ONES[word] == 0 and len(words) > 1:
                return None
            group, last = group + _ONES[word], 1
        else:
            return None
    return total + group


def ratio(gold: str, answer: str, same: Same) -> bool | None:
    """`3 to 2` for `3:2`, and `2:4:6` for `1:2:3`, which is no quotient. Not `3 to 2` for 3/2:
    between numbers "to" may part the ends of a range. A time, `12:30:45`, is no ratio."""
    texts = [plain(text) for text in (gold, answer)]
    said = [_TO.sub(":", text) if _RATIO.fullmatch(text) else text for text in texts]
    if said != texts:
        return same(said[0], said[1]) if ":" in "".join(texts) else None
    if not all(map(_PARTED.fullmatch, texts)) or max(text.count(":") for text in texts) < 2:
        return None
    left, right = ([part.strip() for part in text.split(":")] for text in texts)
    if len(left) != len(right):
        return False
    golds, answers = ([read_number(part) for part in parts] for parts in (left, right))
    worths = [
        (gold.worth, answer.worth)
        for gold, answer in zip(golds, answers, strict=True)
        if gold is not None and answer is not None
    ]
    if len(worths) < len(left) or _TIME.fullmatch(texts[0]):
        return all(map(same, left, right))
    factors = {answer / gold for gold, answer in worths if gold}
    zeros_agree = all(bool(gold) == bool(answer) for gold, answer in worths)
    return zeros_agree and len(factors) == 1 and min(factors) > 0
