r"""Residues: `3 \pmod 7`."""

import re
from typing import NamedTuple

from grpo.verify.equivalence.text import Same
from grpo.verify.equivalence.words import plain

_INTEGER = r"-?\d{1,40}"
_RESIDUE = re.compile(
    rf"(?:([A-Za-z])\s*\\equiv\s*)?({_INTEGER})\s*"
    rf"(?:\(\s*(?:\\?mod(?:ulo)?|\\bmod)\s*(\d{{1,40}})\s*\)"
    rf"|\(?(?:\\[pb]?mod|\bmod(?:ulo)?\b)\s*\{{?\s*(\d{{1,40}})\s*\}}?\)?)"
)
_BARE = re.compile(_INTEGER)


class Residue(NamedTuple):
    name: str
    value: int
    modulus: int | None

    @property
    def is_reduced(self) -> bool:
        return self.modulus is None or 0 <= self.value < self.modulus


def residue(gold: str, answer: str, same: Same) -> bool | None:
    """`10 \\pmod 7` for `3 \\pmod 7`. A side may leave out the modulus, and then both give the
    least residue: `3 \\pmod 7` for 3, but `10 \\pmod 7` says less than that."""
    left, right = read_residue(gold), read_residue(answer)
    if left is None or right is None or left.modulus == right.modulus is None:
        return None
    if left.name and right.name and left.name != right.name:
        return False
    if left.modulus is None or right.modulus is None:
        # "x is 3 modulo 7" does not say which number x is.
        bare, other = (left, right) if left.modulus is None else (right, left)
        is_least = other.is_reduced and bare.value >= 0
        return bare.value == other.value and is_least and (other is left or not other.name)
    if left.modulus != right.modulus or not left.modulus:
        return False
    return (left.value - right.value) % left.modulus == 0


def read_residue(text: str) -> Residue | None:
    """`3`, `3 \\pmod 7` or `x \\equiv 3 \\pmod 7`, None for anything else."""
    text = plain(text)
    if _BARE.fullmatch(text):
        return Residue("", int(text), None)
    match = _RESIDUE.fullmatch(text)
    if match is None:
        return None
    return Residue(match[1] or "", int(match[2]), int(match[3] or match[4]))
