"""Whether what a program printed is what its test expects."""

import re
from decimal import Decimal

from grpo.verify.sandbox.calls import is_close

_NUMBER = re.compile(
    r"(?<![\w.])[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?(?![\w.])"
)
_INTEGER = re.compile(r"[+-]?[0-9]+")


def same_output(printed: str, expected: str, tolerance: float = 0.0) -> bool:
    """Line by line, stripped, as LiveCodeBench compares. Lines of numbers may differ in white space
    and in how a number is written; what is expected as a decimal, 0.5 or 1e-7, may be off by the
    tolerance (`is_close`), in lines with words, too. All else is exact."""
    printed, expected = printed.strip(), expected.strip()
    if printed.count("\n") != expected.count("\n"):
        return False
    pairs = zip(printed.split("\n"), expected.split("\n"), strict=True)
    allowed = Decimal(tolerance)
    return all(_same_line(ours.strip(), theirs.strip(), allowed) for ours, theirs in pairs)


def _same_line(printed: str, expected: str, tolerance: Decimal) -> bool:
    if printed == expected:
        return True
    ours, theirs = printed.split(), expected.split()
    if all(map(_NUMBER.fullmatch, ours)) and all(map(_NUMBER.fullmatch, theirs)):
        return len(ours) == len(theirs) and all(
            _same_number(*pair, tolerance) for pair in zip(ours, theirs, strict=True)
        )
    if not tolerance or _NUMBER.sub("0", printed) != _NUMBER.sub("0", expected):
        return False
    ours, theirs = _NUMBER.findall(printed), _NUMBER.findall(expected)
    return len(ours) == len(theirs) and all(
        own == other or (not _INTEGER.fullmatch(other) and _same_number(own, other, tolerance))
        for own, other in zip(ours, theirs, strict=True)
    )


def _same_number(printed: str, expected: str, tolerance: Decimal) -> bool:
    ours, theirs = Decimal(printed), Decimal(expected)
    return ours == theirs or (
        not _INTEGER.fullmatch(expected) and is_close(ours, theirs, tolerance)
    )
