"""Problems brought into a form in which they can be compared."""

import re
import unicodedata
from collections.abc import Iterator, Sequence

# Ideographs with their extension A and compatibility forms, Japanese syllables, Korean syllables.
_CJK = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u3040-\u30ff\uac00-\ud7af"
_ONE_CJK = re.compile(f"[{_CJK}]")
_NOT_COMPARED = re.compile(r"[\s$]+")
# A run of letters and digits; scripts that set no spaces have a word per character.
_WORD = re.compile(rf"[{_CJK}]|[^\W_{_CJK}]+")

_SIGNS = str.maketrans({"\u2212": "-", "\u2018": "'", "\u2019": "'", "\u00b0": r"^\circ "})
# What the same formula may be set with, and what stands for it here.
_STYLES = [
    (re.compile(pattern), plain)
    for pattern, plain in (
        (r"\\\\", " "),  # a new line
        (r"\\(left|right)\s*\.", " "),
        (r"\\(left|right|[bB]igg?[lr]?|displaystyle|textstyle|limits|q?quad)(?![a-zA-Z])", " "),
        (r"\\(text|textbf|textit|textrm|mathrm|mathbf|mbox)(?![a-zA-Z])", " "),
        (r"\\(begin|end)\{(equation|align|gather|center)\*?\}", " "),
        (r"\\[()\[\],;:!> ]|[$~&]", " "),
        (r"\\[dtc](frac|binom)", r"\\\1"),
        (r"\\(frac|binom)\s*(\d)\s*(\d|\{)", r"\\\1{\2} \3"),
        (r"\\(le|ge|ne)q(?![a-zA-Z])", r"\\\1"),
        (r"\\[lc]dots|\\dots[bcm]?", r"\\dots"),
        (r"(\d)(?:\{,\}|,)(?=\d{3}(?!\d))", r"\1"),  # 10,000
        (r"\\([a-zA-Z]+)", r"\\\1 "),
    )
]
# What tells no problem from another: stops (not those of decimals), braces, backslashes, spaces.
_STOPS = r"(?:[\s{}\\,;:?\"\u201c\u201d\u3002\uff0c\uff1f]|\.(?!\d))+"
_BETWEEN_NUMBERS = re.compile(rf"(\d){_STOPS}(?=\.?\d)")
_STOPS_ELSEWHERE = re.compile(_STOPS)
_APART = "\x01"  # no white space, and in no problem
_SENTENCE_ENDS = re.compile(r"(?<=[:;?\n\u3002\uff1f])|(?<=\.)(?!\d)|(?<=[\s*])(?=[A-Z][a-z])")


def squeezed(problem: str) -> str:
    """In lower case, without white space and $: two copies of a problem differ in these first."""
    return _NOT_COMPARED.sub("", problem.lower())


def has_cjk(text: str) -> bool:
    return _ONE_CJK.search(text) is not None


def in_one_style(text: str) -> str:
    r"""Formulas set in one style: \dfrac is \frac, \left( is (, and delimiters are spaces."""
    text = text.translate(_SIGNS)
    for pattern, instead in _STYLES:
        text = pattern.sub(instead, text)
    return text


def sentences(problem: str) -> list[str]:
    r"""The keys of its sentences, of which `joined` makes the problem's own: texts without case,
    full stops, spaces and the style of formulas. A sentence may begin behind a stop, on a new line
    and with a capital letter, as in "Compute $x$ Reason step by step"."""
    parts = _SENTENCE_ENDS.split(in_one_style(problem))
    return [key for part in parts if (key := _key(part))]


def joined(keys: Sequence[str]) -> str:
    """The key of sentences in a row. Two numbers stay two."""
    key = ""
    for part in keys:
        apart = key[-1:].isdigit() and (part[0].isdigit() or part[0] == ".")
        key += _APART + part if apart else part
    return key


def runs(keys: Sequence[str], longest: int) -> Iterator[str]:
    """The key of every run of whole sentences that has at most `longest` characters."""
    for start in range(len(keys)):
        for end in range(start + 1, len(keys) + 1):
            key = joined(keys[start:end])
            if len(key) > longest:
                break
            yield key


def _key(sentence: str) -> str:
    return _STOPS_ELSEWHERE.sub("", _BETWEEN_NUMBERS.sub(rf"\1{_APART}", sentence.casefold()))


def words(text: str) -> list[str]:
    r"""Runs of letters and digits in lower case; \frac{1}{2} has the words frac, 1 and 2."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def ngrams(text: str, n: int) -> Iterator[str]:
    """Every n words that stand in a row, joined by spaces; none of a shorter text."""
    found = words(text)
    for start in range(len(found) - n + 1):
        yield " ".join(found[start : start + n])
