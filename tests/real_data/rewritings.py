r"""What a person may do to an answer without changing it: `\dfrac` for `\frac`, a full stop.

Each takes a reference and returns it rewritten, or as it was where the rewriting does not apply.
"""

import re

_TEXT = re.compile(r"(\\(?:text\w*|mbox|mathrm|mathbf|operatorname|begin|end)\s*\{[^{}]*\})")
_WORD = re.compile(r"(?<![\\A-Za-z{_])[A-Za-z]{3,}(?![A-Za-z}])")
_BARE_WORDS = re.compile(r"(?<![\\A-Za-z{_.])[A-Z]?[a-z]{3,}(?:[ '-]+[A-Za-z]+)*(?![A-Za-z}(])")
_SIGN = re.compile(r"(?<=[\w})\]])\s*([+=<>]|-(?!\\infty))\s*(?=[\w\\({\[])")
_LIST_COMMA = re.compile(r"(?<!\{),(?!\s|\d{3}(?!\d)|\\)")
_LONG_NUMBER = re.compile(r"(?<![\d.^_A-Za-z,])(?<![\^_]\{)\d{4,}(?![\d._,{])")
_SEVERAL = re.compile(r"[=<>,;]|\\(?:le|ge|ne|in|pm|cup|cap|to|approx|equiv|text|mbox|begin)")
_COEFFICIENT = re.compile(r"(?<=\d)\s*(?=\\(?:sqrt|frac|dfrac|pi|text|mathrm|cdot|times)(?![a-z]))")


def _outside_text(gold: str, pattern: re.Pattern[str], new: str) -> str:
    """Replaced in what is no word, no unit and no environment's name."""
    parts = _TEXT.split(gold)
    return "".join(part if i % 2 else pattern.sub(new, part) for i, part in enumerate(parts))


def itself(gold: str) -> str:
    return gold


def large_fraction(gold: str) -> str:
    return re.sub(r"\\frac(?![A-Za-z])", r"\\dfrac", gold)


def spaced(gold: str) -> str:
    if _WORD.search(_TEXT.sub("", gold)):
        return gold
    return _outside_text(_outside_text(gold, _SIGN, r" \1 "), _LIST_COMMA, ", ")


def words_as_text(gold: str) -> str:
    """Bare words in a text command; those that are in one, in another."""
    if "\\text{" in gold:
        return gold.replace("\\text{", "\\textrm{")
    return _outside_text(gold, _BARE_WORDS, r"\\text{ \g<0> }") if "$" not in gold else gold


def full_stop(gold: str) -> str:
    return gold if gold.endswith(".") else f"{gold}."


def dollars(gold: str) -> str:
    return gold if "$" in gold else f"${gold}$"


def round_delimiters(gold: str) -> str:
    return gold if "$" in gold or r"\(" in gold else rf"\({gold}\)"


def growing_brackets(gold: str) -> str:
    """Only where each has its partner."""
    opened, closed = (len(re.findall(kind, gold)) for kind in (r"[(\[]|\\\{", r"[)\]]|\\\}"))
    if re.search(r"\\(?:left|right|[bB]ig|sqrt\s*\[|text|mbox|begin|[()\[\]]|\\)|\$", gold):
        return gold
    if opened != closed or _WORD.search(gold):
        return gold
    gold = re.sub(r"\\\{|[(\[]", r"\\left\g<0>", gold)
    return re.sub(r"\\\}|[)\]]", r"\\right\g<0>", gold)


def thousands(gold: str) -> str:
    return gold if "," in gold else _LONG_NUMBER.sub(lambda match: f"{int(match[0]):,}", gold)


def named(gold: str) -> str:
    """In front of one value: no list, no relation, no words and no letter of multiple choice."""
    bare = gold.replace("$", "")
    if _SEVERAL.search(bare) or _WORD.search(bare) or re.fullmatch(r"\(?[A-H]\)?", bare.strip()):
        return gold
    return gold if "x" in bare or "\\(" in gold or "$" in gold else f"x = {gold}"


def display_style(gold: str) -> str:
    return gold if "$" in gold else rf"\displaystyle {gold}"


def thin_spaces(gold: str) -> str:
    return re.sub(r",\s+(?!\\)", r",\\, ", _outside_text(gold, _COEFFICIENT, r"\\,"))


REWRITINGS = (
    itself,
    large_fraction,
    spaced,
    words_as_text,
    full_stop,
    dollars,
    round_delimiters,
    growing_brackets,
    thousands,
    named,
    display_style,
    thin_spaces,
)
