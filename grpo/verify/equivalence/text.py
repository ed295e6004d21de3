"""Answers as text: one spelling for what LaTeX and Unicode spell in many ways, and its parts."""

import re
from collections.abc import Callable
from functools import lru_cache

# Whether an answer says the same as a gold; rules get one for the parts that they cut out.
Same = Callable[[str, str], bool]

_SIGNS = {
    "∞": r"\infty ",
    "∪": r"\cup ",
    "∩": r"\cap ",
    "≤": r"\le ",
    "⩽": r"\le ",
    "≥": r"\ge ",
    "⩾": r"\ge ",
    "≠": r"\ne ",
    "≈": r"\approx ",
    "×": r"\times ",
    "÷": r"\div ",
    "·": r"\cdot ",
    "⋅": r"\cdot ",
    "±": r"\pm ",
    "∓": r"\mp ",
    "∈": r"\in ",
    "∅": r"\emptyset ",
    "∀": r"\forall ",
    "＞": ">",
    "＜": "<",
    "＝": "=",
    "ℝ": r"\mathbb{R}",
    "π": r"\pi ",
    "θ": r"\theta ",
    "α": r"\alpha ",
    "β": r"\beta ",
    "γ": r"\gamma ",
    "λ": r"\lambda ",
    "φ": r"\phi ",
    "°": r"^\circ ",
    "−": "-",
    "–": "-",
    "—": "-",
    "’": "'",
    "′": "'",
    "½": r"\frac{1}{2}",
    "¼": r"\frac{1}{4}",
    "¾": r"\frac{3}{4}",
    "（": "(",
    "）": ")",
    "，": ",",
    "；": ";",
    "、": ",",
    "。": ".",
    "％": "%",
    "－": "-",
    "：": ":",
    "<=": r"\le ",
    ">=": r"\ge ",
    "!=": r"\ne ",
}
_SIGN = re.compile("|".join(map(re.escape, _SIGNS)))
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ", "0123456789-+n")
_LOWERED = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_ROOT = re.compile(r"√\s*(\d+|[A-Za-z]|\([^()]*\))")

# The first alternative keeps a line break's two backslashes together.
_SPACING = re.compile(
    r"(?P<keep>\\\\)|(?P<space>\\(?:[,;:\s]|(?:q?quad|displaystyle|textstyle)(?![A-Za-z]))|~)"
    r"|\\(?:!|(?:left|right|[bB]igg?[lrm]?)(?![A-Za-z])\.?)"
)
_COMMANDS = {
    **dict.fromkeys(("dfrac", "tfrac", "cfrac", "nicefrac"), r"\frac"),
    **dict.fromkeys(("leq", "leqslant"), r"\le"),
    **dict.fromkeys(("geq", "geqslant"), r"\ge"),
    **dict.fromkeys(
        ("mbox", "textbf", "textit", "textrm", "textnormal", "texttt", "textsf", "emph"), r"\text"
    ),
    **dict.fromkeys(("mathrm", "mathbf", "mathit", "mathsf"), r"\text"),
    **dict.fromkeys(("dots", "cdots", "dotsc"), r"\ldots"),
    **dict.fromkeys(("land", "wedge"), r"\text{ and }"),
    **dict.fromkeys(("lor", "vee"), r"\text{ or }"),
    **dict.fromkeys(("varnothing",), r"\emptyset"),
    "lt": "<",
    "gt": ">",
    "neq": r"\ne",
    "degree": r"^\circ",
    "mid": "|",
    "lbrace": r"\{",
    "rbrace": r"\}",
    "colon": ":",
    "langle": "(",
    "rangle": ")",
    "ast": "*",
    "boxed": "",
    "fbox": "",
}
# What colours, weights and sizes a value, with an argument of its own or without.
_STYLED = re.compile(
    r"\\(?:textcolor|colorbox|color|bbox)\s*(?:\[[^\]]*\]|\{[^{}]*\})"
    r"|\\(?:underline|boldsymbol|pmb|bm|hbox|bf|rm|it|tt|sf|large|Large|LARGE|huge|Huge|normalsize"
    r"|small|mathtt|mathcal|framebox)(?![A-Za-z])"
)
_THIN = re.compile(r"(?<![\d.])\d{1,3}(?:\\,\d{3})+(?!\d)")
_BOLD = re.compile(r"^\s*\*\*([^*].*)\*\*\s*$", re.DOTALL)
# As programs write it.
_CODE = {"sqrt": r"\sqrt", "pi": r"\pi ", "infinity": r"\infty ", "inf": r"\infty "}
_CODED = re.compile(r"(?<![\\A-Za-z])(sqrt(?=\s*\()|pi(?![A-Za-z])|infinity|inf(?![A-Za-z]))")
_ROUND_ROOT = re.compile(r"\\sqrt\s*\(([^()]*)\)")
_DOLLARS = re.compile(
    r"\\\$\s*((?:\d{1,3}(?:(?:,|\{,\}|,?\\!)\d{3})+|\d+)?(?:\.\d+)?)(?<=\d)(?!\d|\s*(?:\\text|[A-Za-z]))"
)
_CURRENCIES = {"£": "pounds", "€": "euros", "¥": "yen", "￥": "yuan", "₹": "rupees"}
_CURRENCY = re.compile(r"([£€¥￥₹])\s*(\d[\d,]*(?:\.\d+)?)|(\d[\d,]*(?:\.\d+)?)\s*([£€¥￥₹])")
_COMMAND = re.compile(r"\\([A-Za-z]+)(?![A-Za-z])")
_FUNCTIONS = "sin|cos|tan|cot|sec|csc|ln|log|exp|arcsin|arccos|arctan|max|min|gcd|lcm|mod|det|sgn"
FUNCTION = re.compile(rf"(?:{_FUNCTIONS})")
FUNCTION_OF = re.compile(rf"\\(?:{_FUNCTIONS})(?![A-Za-z])")
_DAMAGED = re.compile(r"\\?([\x07\x08\x0b\x0c])(?=[A-Za-z])")
_TAB = re.compile(r"\t(?=ext\{[A-Za-z ]|imes|heta|riangle)")
_ONE_LETTER = re.compile(r"\\text\s*\{\s*([A-Za-z0-9]?)\s*\}")
_UNIT_LETTERS = frozenset("AFJKLNTVWghlms")
_POWER_OF_TEN = re.compile(r"10\s*\^\s*\{?-?\d+\}?$")
_CIS = re.compile(
    r"\\?(?:(?:text|operatorname)\s*\{\s*)?(?<![A-Za-z])cis(?![A-Za-z])(?:\s*\})?\s*"
    r"(\([^()]*\)|\d+(?:\.\d+)?\s*\^\s*\{?\\circ\s*\}?|\\frac\s*\{[^{}]*\}\s*\{[^{}]*\}|\\[a-z]+)"
)
_RAISED_TAG = re.compile(r"<(sup|sub)>([^<>]{1,60})</\1>")
_ORDINAL = re.compile(
    r"(?<=\d)(?:\s*\^\s*)?(?:\{\s*)?(?:\\text\{\s*)?(?:st|nd|rd|th)\b(?:\s*\})?(?:\s*\})?"
)
_ESCAPES = {"\x07": r"\a", "\x08": r"\b", "\x0b": r"\v", "\x0c": r"\f"}
_OPENERS, _CLOSERS = "([{", ")]}"
_SEPARATOR = re.compile(
    r"[,;]\s*(?:\\text\{\s*(?:and|or)\s*\}|(?:and|or)(?![A-Za-z]))?"
    r"|\\text\{\s*,?\s*(?:and|or)\s*\}|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])"
)
_THOUSANDS = re.compile(r"(?<![\d.])\d{1,3}(?:,\d{3})+(?!\d)")


def mend(text: str) -> str:
    """A text whose backslashes were eaten (form feed + "rac") or doubled on the way."""
    text = _TAB.sub(r"\\t", _DAMAGED.sub(lambda match: _ESCAPES[match[1]], text))
    if r"\begin" not in text:
        text = re.sub(r"\\\\(?=[A-Za-z])", r"\\", text)
    return text


@lru_cache(maxsize=8192)
def tidy(text: str) -> str:
    """One spelling; the value does not change. Math delimiters go, words outside of them stay."""
    text = _THIN.sub(lambda match: match[0].replace("\\,", ""), text)
    text = _DOLLARS.sub(r"\1\\text{ dollars}", text).replace("\\$", "").replace("$", " ")
    text = _BOLD.sub(r"\1", _CURRENCY.sub(_currency, _STYLED.sub(" ", text))).replace("**", "^")
    text = re.sub(r"(?<!\\)\\[()\[\]]", " ", text)
    text = _CODED.sub(lambda match: _CODE[match[1]], text)
    text = _ROOT.sub(r"\\sqrt{\1}", _SIGN.sub(lambda match: _SIGNS[match[0]], text))
    text = re.sub(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ]+", lambda m: f"^{{{m[0].translate(_RAISED)}}}", text)
    text = re.sub(r"[₀₁₂₃₄₅₆₇₈₉]+", lambda m: f"_{{{m[0].translate(_LOWERED)}}}", text)
    text = re.sub(r"[£€¥₹]|,(?=\\!)", lambda m: "{,}" if m[0] == "," else "", text)
    text = re.sub(r"\{,\}\\!\s*", "{,}", text)
    text = re.sub(r"(?<=\d)\{,\}(?=\d{3}(?!\d))", "", text)
    text = _RAISED_TAG.sub(lambda m: f"{'^' if m[1] == 'sup' else '_'}{{{m[2]}}}", text)
    text = _ROUND_ROOT.sub(r"\\sqrt{\1}", _SPACING.sub(_space, text))
    text = _COMMAND.sub(lambda m: _COMMANDS.get(m[1], m[0]), text)
    text = re.sub(rf"\\text\s*\{{\s*({_FUNCTIONS})\s*\}}", r"\\\1 ", text)
    text = _CIS.sub(r"(\\cos \1 + i\\sin \1)", text)
    text = _ONE_LETTER.sub(_one_letter, text)
    text = _ORDINAL.sub("", re.sub(r"\\text\s+\{", r"\\text{", text))
    text = re.sub(r"\^\s*\{\s*\\circ\s*\}|\{\}\s*\^\s*\\circ", r"^\\circ ", text)
    text = re.sub(
        r"\\?%|\\text\{\s*(?:percent(?:age)?|pct)\s*\}|\b(?:percent(?:age)?|pct)\b", "%", text
    )
    text = re.sub(r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"(?<![\w})\]])\+\s*\\infty", r"\\infty", text)
    text = re.sub(r"\.\s*(?=[)\]}])(?<=\}\.)", "", text)
    return trim(re.sub(r"^\s*(?:=(?!=)|\\(?:approx|sim)(?![A-Za-z]))", "", " ".join(text.split())))


def _one_letter(match: re.Match[str]) -> str:
    """Without its text command; but behind a digit it may be a unit."""
    before = match.string[: match.start()].rstrip()
    is_number = before[-1:].isdigit() or _POWER_OF_TEN.search(before) is not None
    return match[0] if match[1] in _UNIT_LETTERS and is_number else f" {match[1]} "


def _currency(match: re.Match[str]) -> str:
    return f"{match[2] or match[3]}\\text{{ {_CURRENCIES[match[1] or match[4]]}}}"


def _space(match: re.Match[str]) -> str:
    if match["keep"]:
        return match["keep"]
    return " " if match["space"] else ""


def trim(text: str) -> str:
    """Without punctuation at the ends, and without braces around the whole."""
    while True:
        shorter = text.strip(" \t\n\"'`*").rstrip(".,;:").lstrip(",;:").strip()
        if shorter.startswith("{") and closing(shorter, 0) == len(shorter) - 1:
            shorter = shorter[1:-1]
        if shorter == text:
            return text
        text = shorter


def squeeze(text: str) -> str:
    """For comparing texts: no text commands, no braces around one character, and a space only
    where it parts two words."""
    text = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", text)
    text = re.sub(r"([_^])\{(\w)\}(?!\w)", r"\1\2", text)
    return re.sub(r"\s+(?!\w)|(?<!\w)\s+", "", text).strip().rstrip(".")


def closing(text: str, start: int) -> int:
    """Where the bracket that opens at `start` closes, -1 where it does not. The three kinds count
    as one: half-open intervals mix them."""
    depth = 0
    for position in range(start, len(text)):
        if text[position] in _OPENERS:
            depth += 1
        elif text[position] in _CLOSERS:
            depth -= 1
            if depth == 0:
                return position
    return -1


def outside(text: str, pattern: re.Pattern[str]) -> list[re.Match[str]]:
    """Matches that begin outside of all brackets."""
    depths, depth = [], 0
    for character in text:
        if character in _CLOSERS:
            depth -= 1
        depths.append(depth)
        if character in _OPENERS:
            depth += 1
    return [match for match in pattern.finditer(text) if depths[match.start()] <= 0]


def cut(text: str, pattern: re.Pattern[str]) -> list[str]:
    """The pieces between the matches that lie outside of all brackets; empty ones left out."""
    pieces, start = [], 0
    for match in outside(text, pattern):
        pieces.append(text[start : match.start()])
        start = match.end()
    pieces.append(text[start:])
    return [piece for piece in (trim(piece) for piece in pieces) if piece]


def items(text: str) -> list[list[str]]:
    """What commas, semicolons, "and" and "or" part: two readings where a comma may as well stand
    between thousands (`1,000, 2,000`), else one."""
    readings = [cut(text, _SEPARATOR)]
    if _THOUSANDS.search(text):
        joined = _THOUSANDS.sub(lambda match: match[0].replace(",", "{,}"), text)
        readings.append(cut(joined, _SEPARATOR))
    return readings


def unwrap(text: str) -> tuple[str, str]:
    """The kind of bracket around the whole, "" for none, and what it holds."""
    for opener, closer in (("(", ")"), ("[", "]"), (r"\{", r"\}")):
        if text.startswith(opener) and text.endswith(closer):
            start = len(opener) - 1
            if closing(text, start) == len(text) - 1:
                return opener, trim(text[len(opener) : -len(closer)])
    return "", text
