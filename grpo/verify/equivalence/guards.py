"""Answers that would cost more to read than any right answer does are not read at all."""

import re

# The longest published answers have 200; math-verify's parser takes seconds for 1,000.
_LONGEST_CHARS = 600
_DEEPEST = 40
_MOST_BARS = 12
# 2^9999 has three thousand digits; published answers stop at 2^2025.
_LARGEST_EXPONENT = 10_000
_STACKED = 100
_MOST_DIGITS = 200_000
_LARGEST_FACTORIAL = 3_000
_EXPONENT = re.compile(r"(?:\^|\*\*)\s*(\{|\(|[+-]?\d+|\\?[A-Za-z]+)")
_FACTORIAL = re.compile(r"(\d+|[)}\]!])\s*!(?!=)")
_BINOMIAL = re.compile(r"binom\s*\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}")


def too_complex(answer: str, gold: str) -> str | None:
    """Why an answer is not worth a look at its characters, or None. It may be as long as twice
    the gold."""
    if len(answer) > max(_LONGEST_CHARS, 2 * len(gold)):
        return "too long"
    # Which bar opens an absolute value is guessed, and tried in every way.
    bars = answer.count("|") > max(_MOST_BARS, gold.count("|"))
    return "nested too deep" if bars or _depth(answer) > _DEEPEST else None


def too_large(text: str) -> bool:
    """Are there powers, factorials or binomials in the text whose digits would fill memory?"""
    return _largest_exponent(text) > _LARGEST_EXPONENT or _large_product(text)


def _depth(text: str) -> int:
    depth = deepest = 0
    for character in text:
        if character in "([{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in ")]}":
            depth -= 1
    return deepest


def _largest_exponent(text: str) -> float:
    """A bound on the size of the exponents in the text: each one's digits read as a number, and
    a power within an exponent as a power. Letters count as 1."""
    largest, stacked = 0.0, 1.0
    for match in _EXPONENT.finditer(text):
        token, rest = match[1], text[match.end() :]
        if token in "{(":
            body = rest[: _close(rest)]
            tail = rest[len(body) + 1 :]
        else:
            body, tail = token, rest
        size = _size(body)
        if re.match(r"\s*(?:\^|\*\*)\s*[\d{(]", tail) and size > 1:  # 9^9^9, read as a tower
            return float("inf")
        largest = max(largest, size)
        base = text[: match.start()].rstrip()
        if base.endswith((")", "}", "]")):  # ((2^9)^9)^9
            stacked *= max(size, 1.0)
        digits = len(base) - len(base.rstrip("0123456789"))
        largest = max(largest, size * digits / _MOST_DIGITS * _LARGEST_EXPONENT)
    return max(largest, stacked * max(largest, 1.0) if stacked > _STACKED else 0.0)


def _close(text: str) -> int:
    depth = 1
    for position, character in enumerate(text):
        depth += (character in "({") - (character in ")}")
        if depth == 0:
            return position
    return len(text)


def _size(body: str) -> float:
    numbers = [float(number) for number in re.findall(r"\d{1,300}", body)]
    if not numbers:
        return 1.0
    if "^" not in body and "**" not in body:
        product = 1.0
        for number in numbers if re.search(r"times|cdot|\*|\(|!|\}\{", body) else [max(numbers)]:
            product = min(product * max(number, 1.0), 1e300)
        return float("inf") if "!" in body and max(numbers) > 7 else product
    inner = _largest_exponent(body)
    base = max(max(numbers), 2.0)
    return float("inf") if inner > 20 else base**inner if inner * len(str(base)) < 300 else 1e300


def _large_product(text: str) -> bool:
    for match in _FACTORIAL.finditer(text):
        if match[1].isdigit():
            if len(match[1]) > 4 or int(match[1]) > _LARGEST_FACTORIAL:
                return True
        elif match[1] == "!" or _large_inside(text, match.start()):
            return True
    return any(min(len(match[1]), len(match[2])) > 4 for match in _BINOMIAL.finditer(text))


def _large_inside(text: str, end: int) -> bool:
    """Does the bracket that closes at `end` hold more than a factorial should be taken of?"""
    depth, start = 0, end
    while start >= 0:
        depth += (text[start] in ")]}") - (text[start] in "([{")
        if depth == 0:
            break
        start -= 1
    inside = text[max(start, 0) : end]
    return "!" in inside or _size(inside) > _LARGEST_FACTORIAL
