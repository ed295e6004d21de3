"""One spelling for what LaTeX, Unicode, programs and Markdown spell in many ways."""

import re
from collections.abc import Callable
from functools import lru_cache

from grpo.verify.equivalence.text import FUNCTIONS, trim

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
_CODE = {"sqrt": r"\sqrt", "pi": r"\pi ", "infinity": r"\infty ", "inf": r"\infty "}
_CURRENCIES = {"£": "pounds", "€": "euros", "¥": "yen", "￥": "yuan", "₹": "rupees"}
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ", "0123456789-+n")
_LOWERED = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_UNIT_LETTERS = frozenset("AFJKLNTVWghlms")
_POWER_OF_TEN = re.compile(r"10\s*\^\s*\{?-?\d+\}?$")
_NTH = r"(?:st|nd|rd|th)"
_NO_ARGUMENT = re.compile(r"\s*(?:\^\s*\{?-?\d\}?\s*)?(?:[,;)\]}]|$)")

_DAMAGED = re.compile(r"\\?([\x07\x08\x0b\x0c])(?=[A-Za-z])")
_TAB = re.compile(r"\t(?=ext\{[A-Za-z ]|imes|heta|riangle)")
_ESCAPES = {"\x07": r"\a", "\x08": r"\b", "\x0b": r"\v", "\x0c": r"\f"}


def mend(text: str) -> str:
    """A text whose backslashes were eaten (form feed + "rac") or doubled on the way."""
    text = _TAB.sub(r"\\t", _DAMAGED.sub(lambda match: _ESCAPES[match[1]], text))
    if r"\begin" not in text:
        text = re.sub(r"\\\\(?=[A-Za-z])", r"\\", text)
    return text


@lru_cache(maxsize=8192)
def tidy(text: str) -> str:
    """One spelling; the value does not change. Math delimiters go, words outside of them stay."""
    for pattern, new in _REWRITES:
        text = pattern.sub(new, text)
    return trim(_LEADING_SIGN.sub("", " ".join(text.split())))


def _out_of_text(match: re.Match[str]) -> str:
    if match[3]:
        return match[3]
    return match[1] + (f"\\text{{{match[2]}}}" if match[2].strip() else "")


def _currency(match: re.Match[str]) -> str:
    return f"{match[2] or match[3]}\\text{{ {_CURRENCIES[match[1] or match[4]]}}}"


def _function(match: re.Match[str]) -> str:
    """As a command; but behind a number and without an argument min and sec are units, and max is
    a word."""
    name, rest = match[match.lastindex or 0], match.string[match.end() :]
    before = match.string[: match.start()].rstrip()[-1:]
    behind_number = before != "" and before in "0123456789}/"
    if name in ("min", "max", "sec") and behind_number and _NO_ARGUMENT.match(rest):
        return match[0]
    return f"\\{name}" if rest[:1] in ("(", "^", "_") else f"\\{name} "


def _space(match: re.Match[str]) -> str:
    if match["keep"]:
        return match["keep"]
    return " " if match["space"] else ""


def _one_letter(match: re.Match[str]) -> str:
    """Without its text command; but behind a digit it may be a unit."""
    before = match.string[: match.start()].rstrip()
    is_number = before[-1:].isdigit() or _POWER_OF_TEN.search(before) is not None
    return match[0] if match[1] in _UNIT_LETTERS and is_number else f" {match[1]} "


_LEADING_SIGN = re.compile(r"^\s*(?:=(?!=)|\\(?:approx|sim)(?![A-Za-z]))")
# In this order.
_REWRITES: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = (
    # "\ " whose space was stripped
    (re.compile(r"(?<!\\)\\\s*$"), ""),
    # \text{18 dollars}, \text{3/4}, \text{3, 5, and 7}
    (
        re.compile(
            r"(?<![\w}^_])(?<![\w}^_]\s)\\(?:text\w*|mbox|mathrm|mathbf)\s*\{\s*(?:"
            rf"((?:\\?\$\s*)?[+-]?\d[\d,]*(?:\.\d+)?)({_NTH}|\s+[A-Za-z][A-Za-z /.]*|)"
            r"|([+-]?\d[\d ,./]*(?:(?:and|or) [\d ,./]+)?))\s*\}(?!\s*\w)"
        ),
        _out_of_text,
    ),
    # 32\,348
    (
        re.compile(r"(?<![\d.])\d{1,3}(?:\\,\d{3})+(?!\d)"),
        lambda match: match[0].replace("\\,", ""),
    ),
    # \$18, but for \$18 per day
    (
        re.compile(
            r"\\\$\s*((?:\d{1,3}(?:(?:,|\{,\}|,?\\!)\d{3})+|\d+)?(?:\.\d+)?)(?<=\d)"
            r"(?!\.?\d|\s*(?:\\text|[A-Za-z]))"
        ),
        r"\1\\text{ dollars}",
    ),
    (re.compile(r"\\\$"), ""),
    (re.compile(r"\$"), " "),
    # colours, weights and sizes, with an argument of their own or without
    (
        re.compile(
            r"\\(?:textcolor|colorbox|color|bbox)\s*(?:\[[^\]]*\]|\{[^{}]*\})"
            r"|\\(?:underline|boldsymbol|pmb|bm|hbox|bf|rm|it|tt|sf|large|Large|LARGE|huge|Huge"
            r"|normalsize|small|mathtt|mathcal|framebox)(?![A-Za-z])"
        ),
        " ",
    ),
    (
        re.compile(
            r"([£€¥￥₹])\s*(\d[\d,]*(?:\.\d+)?)|(?<![\d,.])(\d[\d,]*(?:\.\d+)?)\s*([£€¥￥₹])"
        ),
        _currency,
    ),
    # **18** in Markdown, and 2**3 in a program
    (re.compile(r"^\s*\*\*([^*].*)\*\*\s*$", re.DOTALL), r"\1"),
    (re.compile(r"\*\*"), "^"),
    (re.compile(r"(?<!\\)\\[()\[\]]"), " "),
    (
        re.compile(r"(?<![\\A-Za-z])(sqrt(?=\s*\()|pi(?![A-Za-z])|infinity|inf(?![A-Za-z]))"),
        lambda match: _CODE[match[1]],
    ),
    (re.compile("|".join(map(re.escape, _SIGNS))), lambda match: _SIGNS[match[0]]),
    (re.compile(r"√\s*(\d+|[A-Za-z]|\([^()]*\))"), r"\\sqrt{\1}"),
    (re.compile(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ]+"), lambda match: f"^{{{match[0].translate(_RAISED)}}}"),
    (re.compile(r"[₀₁₂₃₄₅₆₇₈₉]+"), lambda match: f"_{{{match[0].translate(_LOWERED)}}}"),
    (re.compile(r"[£€¥₹]|,(?=\\!)"), lambda match: "{,}" if match[0] == "," else ""),
    # 32{,}348
    (re.compile(r"\{,\}\\!\s*"), "{,}"),
    (re.compile(r"(?<=\d)\{,\}(?=\d{3}(?!\d))"), ""),
    (
        re.compile(r"<(sup|sub)>([^<>]{1,60})</\1>"),
        lambda match: f"{'^' if match[1] == 'sup' else '_'}{{{match[2]}}}",
    ),
    # The first alternative keeps a line break's two backslashes together.
    (
        re.compile(
            r"(?P<keep>\\\\)"
            r"|(?P<space>\\(?:[,;:\s]|(?:q?quad|displaystyle|textstyle)(?![A-Za-z]))|~)"
            r"|\\(?:!|(?:left|right|[bB]igg?[lrm]?)(?![A-Za-z])\.?)"
        ),
        _space,
    ),
    (re.compile(r"\\sqrt\s*\(([^()]*)\)"), r"\\sqrt{\1}"),
    (
        re.compile(r"\\([A-Za-z]+)(?![A-Za-z])"),
        lambda match: _COMMANDS.get(match[1], match[0]),
    ),
    # \text{sin}, \operatorname{lcm}, and as programs write them: gcd(12, 18), sin x, log_2 8
    (re.compile(rf"\\(?:text|operatorname|mathop)\*?\s*\{{\s*({FUNCTIONS})\s*\}}"), _function),
    (
        re.compile(
            rf"(?<![\\A-Za-z])(?:({FUNCTIONS})(?=\s*\()|(sin|cos|tan|cot|csc|ln|log)"
            r"(?=\s*[\^_]|\s+(?:\d|\\|[A-Za-z](?![A-Za-z]))))"
        ),
        _function,
    ),
    (re.compile(r"\\log\s*_\s*(?:e(?![A-Za-z])|\{\s*e\s*\})"), r"\\ln "),
    # line breaks with a space behind them, and a column in brackets
    (re.compile(r"\\\\\[-?[\d.]+\s*(?:pt|em|ex|mm|cm)\]"), r"\\\\"),
    (
        re.compile(r"\(\s*\\begin\{array\}\s*\{[^{}]*\}(.*?)\\end\{array\}\s*\)", re.DOTALL),
        r"\\begin{pmatrix}\1\\end{pmatrix}",
    ),
    (
        re.compile(
            r"\\?(?:(?:text|operatorname)\s*\{\s*)?(?<![A-Za-z])cis(?![A-Za-z])(?:\s*\})?\s*(\([^()]*\)"
            r"|\d+(?:\.\d+)?\s*\^\s*\{?\\circ\s*\}?|\\frac\s*\{[^{}]*\}\s*\{[^{}]*\}|\\[a-z]+)"
        ),
        r"(\\cos \1 + i\\sin \1)",
    ),
    (re.compile(r"\\text\s*\{\s*([A-Za-z0-9]?)\s*\}"), _one_letter),
    (re.compile(r"\\text\s+\{"), r"\\text{"),
    # 12^{\text{th}}
    (
        re.compile(
            rf"(?<=\d)\s*(?:\^\s*)?(?:\{{\s*\\text\s*\{{\s*{_NTH}\s*\}}\s*\}}"
            rf"|\\text\s*\{{\s*{_NTH}\s*\}}|\{{\s*{_NTH}\s*\}}|(?<=[\d^]){_NTH}\b)"
            rf"|(?<=\d\\text\{{){_NTH}(?=\s)"
        ),
        "",
    ),
    (re.compile(r"\^\s*(?:\\prime(?![A-Za-z])|\{\s*\\prime\s*\})\s*"), "'"),
    # 90^o
    (
        re.compile(r"(?<=\d\d)\s*\^\s*(?:o(?![A-Za-z])|\{\s*o\s*\}|\{?\\text\s*\{\s*o\s*\}\}?)"),
        r"^\\circ ",
    ),
    # 2516\text{ (base 8)}, (2516)_8
    (
        re.compile(r"(?<=\d)\s*(?:\\text\{\s*\(?(?:in )?base (\d+)\)?\s*\}|\(?base (\d+)\)?$)"),
        r"_{\1\2}",
    ),
    (re.compile(r"(?<![\w)}\]])(?<![\w)}\]]\s)\(([\dA-F]+)\)(?=\s*_\s*\{?\s*\d)"), r"\1"),
    (re.compile(r"\^\s*\{\s*\\circ\s*\}|\{\}\s*\^\s*\\circ"), r"^\\circ "),
    (
        re.compile(r"\\?%|\\text\{\s*(?:percent(?:age)?|pct)\s*\}|\b(?:percent(?:age)?|pct)\b"),
        "%",
    ),
    (re.compile(r"\\frac\s*(\d)\s*(\d)"), r"\\frac{\1}{\2}"),
    (re.compile(r"(?<![\w})\]])\+\s*\\infty"), r"\\infty"),
    (re.compile(r"\.\s*(?=[)\]}])(?<=\}\.)"), ""),
)
