"""Problems brought into a form in which they can be compared."""

import re
import unicodedata
from collections.abc import Iterator

# Ideographs with their extension A and compatibility forms, Japanese syllables, Korean syllables.
_CJK = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u3040-\u30ff\uac00-\ud7af"
_ONE_CJK = re.compile(f"[{_CJK}]")
_NOT_COMPARED = re.compile(r"[\s$]+")
# A run of letters and digits; scripts that set no spaces have a word per character.
_WORD = re.compile(rf"[{_CJK}]|[^\W_{_CJK}]+")


def squeezed(problem: str) -> str:
    """In lower case, without white space and $: two copies of a problem differ in these first."""
    return _NOT_COMPARED.sub("", problem.lower())


def has_cjk(text: str) -> bool:
    return _ONE_CJK.search(text) is not None


def words(text: str) -> list[str]:
    r"""Runs of letters and digits in lower case; \frac{1}{2} has the words frac, 1 and 2."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def ngrams(text: str, n: int) -> Iterator[str]:
    """Every n words that stand in a row, joined by spaces; none of a shorter text."""
    found = words(text)
    for start in range(len(found) - n + 1):
        yield " ".join(found[start : start + n])
