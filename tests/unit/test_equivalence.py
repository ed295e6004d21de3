r"""Every rule with what it accepts and what it must not: (reference, answer)."""

import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo.verify.equivalence import RULES, Options, judge
from tests.examples import examples
from tests.unit import equivalence_forms

Pairs = list[tuple[str, str]]

ACCEPTED: dict[str, Pairs] = {
    "alternatives": [
        (r"\frac{15}{4} \text{ OR } 3.75", r"\frac{30}{8}"),
        (r"\sqrt{12} \text{ OR } 2\sqrt{3}", r"2\sqrt{3}"),
        ("6/4 OR 1.5", "1.5"),
    ],
    "decimal comma": [("3.25", "3,25"), ("410.5", "410,5"), ("0,07", "0.07")],
    "words": [
        (r"\text{Tuesday}", "tuesday"),
        ("obtuse", r"\text{Obtuse}."),
        ("the parabola", r"\text{parabola}"),
        (r"4\text{ p.m.}", "4 PM"),
    ],
    "yes or no": [
        ("Yes", "yes, since 7 is prime"),
        (r"\text{No}", "No. It is too short"),
        ("true", "True; see above"),
    ],
    "no solution": [
        (r"\emptyset", r"\text{no solutions}"),
        ("None", "∅"),
        ("no such integers", r"\varnothing"),
    ],
    "spelled number": [("7", "seven"), ("twelve", "12"), (r"\text{three}", "3")],
    "choice": [
        ("B", r"(B)"),
        (r"\text{(D)}", "D"),
        ("C", r"\text{(C) } 17"),
        ("17", r"\text{(C) } 17"),
        ("A", "A. The area doubles"),
    ],
    "parameter": [
        (r"x = k\pi", r"n\pi"),
        (r"(2t, 7t), t \in \mathbb{Z}", r"(2k, 7k), k \in \mathbb{Z}"),
        ("(4 + 3a, 9 - 2a)", r"(4 + 3m, 9 - 2m) \text{ for some integer } m"),
        (r"\frac{\pi}{8} + 2m\pi", r"\frac{\pi}{8} + 2k\pi, k \in \mathbb{Z}"),
    ],
    "interval": [
        ("[2, 5)", r"2 \le x < 5"),
        ("x > 7", r"(7, \infty)"),
        (r"(-\infty, 1) \cup [4, \infty)", r"x < 1 \text{ or } x \ge 4"),
        (r"x \ne 3", r"(-\infty, 3) \cup (3, \infty)"),
        (r"\{x \mid -1 < x \le 6\}", "(-1, 6]"),
        (r"8 > t \ge \sqrt{2}", r"t \in [\sqrt{2}, 8)"),
        (r"x \ge 2 \text{ and } x < 9", "[2, 9)"),
        (r"\mathbb{R}", r"(-\infty, \infty)"),
        (r"(0, 10) \setminus \{4\}", r"(0, 4) \cup (4, 10)"),
        (r"a \le -5 \text{ or } a = 2", r"(-\infty, -5] \cup \{2\}"),
        ("[0.5, 2]", r"\frac{1}{2} \le y \le 2"),
    ],
    "function": [
        ("f(x) = 3x - 1", "f(t) = 3t - 1"),
        ("g(x, y) = x - 2y", "g(a, b) = a - 2b"),
        ("h(n) = (n + 1)^2", "h(x) = x^2 + 2x + 1"),
    ],
    "plus-minus": [
        (r"\pm 6", "-6, 6"),
        (r"2 \pm \sqrt{3}", r"2 - \sqrt{3}, 2 + \sqrt{3}"),
        (r"x = 5, x = 1 \pm \sqrt{2}", r"1 + \sqrt{2}, 1 - \sqrt{2}, 5"),
        (r"\{-9, 9\}", "x = ±9"),
    ],
    "name": [
        ("x = 14", r"\frac{28}{2}"),
        ("14", "n = 14"),
        ("P(3) = 14", "14"),
        ("m_{max} = n^2", "m = n^2"),
        ("A:B = 2:3", "2:3"),
        ("(2, 7)", "(x, y) = (2, 7)"),
        ("y = 2x + 8", "2(x + 4)"),
        (r"S \in \{1, 2, 3\}", r"\{3, 2, 1\}"),
    ],
    "vector": [
        (r"\begin{pmatrix} 3 \\ -1 \end{pmatrix}", "(3, -1)"),
        (r"(2, 4, 6)", r"\begin{bmatrix} 2 \\ 4 \\ 6 \end{bmatrix}"),
        (r"\begin{pmatrix} 1/2 \\ 5 \end{pmatrix}", r"\langle 0.5, 5 \rangle"),
    ],
    "ordering": [("c < a < b", "c, a, b"), ("q > r > p", "q, r, p"), ("x, z, y", "x < z < y")],
    "lead-in": [
        ("31", r"\text{The answer is } 31"),
        ("31", "the final answer: 31"),
        ("31", r"\text{only } 31"),
        ("31", "So the value is 31"),
    ],
    "qualifier": [
        ("4x", r"4x \text{ for all real numbers } x"),
        ("n^2", r"n^2 \text{ for every positive integer } n"),
        (r"k^3 \text{ for all real numbers } k", "k^3"),
    ],
    "sentence": [
        ("The remaining triangle is isosceles.", "isosceles"),
        ("Marta will win the last round.", "Marta"),
        ("even", "The product is even"),
    ],
    "statement": [
        ("52", r"\text{The area of the garden is } 52"),
        ("52", "Ruth arrived 52 minutes earlier"),
        (r"\frac{3}{8}", r"\text{The probability is } \frac{6}{16}"),
    ],
    "list": [
        ("3, 8", "8, 3"),
        (r"\{1, 5, 9\}", r"9, 1 \text{ and } 5"),
        ("(2, 7)", "x = 2, y = 7"),
        ("(2, 7)", "y = 7, x = 2"),
        ("21, 4, 1, 1", "w = 21, c = 4, b = 1, h = 1"),
        ("(1, 4), (3, 0)", "(3, 0) and (1, 4)"),
        ("1,000, 2,000", "2000, 1000"),
        ("3, 8", "3, 8, 8"),
        ("f(x) = x, f(x) = -x", "f(t) = -t, f(t) = t"),
        ("f(n) = n, g(n) = 4", "(f(n), g(n)) = (n, 4)"),
        ("p = 5, q = 2", "q = 2, p = 5"),
        (r"6 \text{ or } -1", "-1, 6"),
        (r"3\text{ cm}, 2\text{ kg}", r"3\text{ cm}, 2\text{ kilograms}, "),
    ],
    "chain": [
        ("36", "x = 30 + 6 = 36"),
        ("0.25 = 25%", r"\frac{1}{4}"),
        (r"\sqrt{5}", r"\sqrt{5} \approx 2.236"),
        ("2.236", r"\sqrt{5} \approx 2.236"),
        (r"\frac{2}{3}", r"\frac{2}{3} \approx 0.66"),
        ("23456", r"23456 \approx 23000"),
    ],
    "rounding": [
        ("0.857", r"\frac{6}{7}"),
        ("3.142", r"\pi"),
        ("2.24", r"\sqrt{5}"),
        ("16.67%", r"\frac{1}{6}"),
        ("47.13", "47.1289"),
        (r"6.02 \times 10^{23}", r"6.0221 \times 10^{23}"),
    ],
    "percentage": [("12.5", r"12.5\%"), (r"40\%", "40"), ("8", "8 percent")],
    "units": [
        ("45", r"45\text{ cm}"),
        (r"45\text{ cm}^2", "45"),
        (r"3\text{ m}", r"300\text{ cm}"),
        (r"70^\circ", "70"),
        (r"\frac{\pi}{3}", r"60^\circ"),
        (r"5\text{ million}", "5000000"),
        (r"6\text{ ways}", r"6\text{ arrangements}"),
        ("45", "45 cm"),
        ("15th", r"15\text{ days}"),
        (r"2\text{ square feet}", r"2\text{ ft}^2"),
        (r"5\text{ m/s}", r"18\text{ km/h}"),
        (r"20\text{ mph}", r"20\text{ miles per hour}"),
        (r"5\text{ m/s}", r"5\ \text{m}\cdot\text{s}^{-1}"),
        (r"7200\text{ J}", r"7.2\text{ kJ}"),
        (r"\$4.50", r"450\text{ cents}"),
        (r"60\text{ cubic inches}", r"60\text{ in}^3"),
        ("12", "12种方法"),
        ("60", "60度"),
        ("12", r"12\text{ maximum}"),
        (r"52\text{ minutes}", r"52\text{ minutes earlier}"),
        (r"9\pi\text{ square units}", r"9\pi\text{ cm}^2"),
    ],
    "solved for y": [
        ("y + 1 = 2x", "2x - 1"),
        ("2y - 6x = 4", "3x + 2"),
        ("y - 5 = (x - 1)^2", "y = x^2 - 2x + 6"),
    ],
}

# Of the same number, another unit or noun.
OTHER_UNITS = [
    ("mph", "km/h"),
    ("m/s", "m/s^2"),
    ("m/s", "m/min"),
    ("Hz", "kHz"),
    ("kg", "g"),
    ("N", "J"),
    ("eV", "MeV"),
    ("mW", "MW"),
    ("ly", "pc"),
    ("gallons", "quarts"),
    ("bits", "bytes"),
    ("degrees", "radians"),
    ("feet", "square feet"),
    ("years", "months"),
    ("dollars", "euros"),
    ("boys", "girls"),
    ("profit", "loss"),
    ("minutes late", "minutes early"),
    ("years ago", "years from now"),
]
# What unsays a number that it stands behind.
UNSAID = [
    "excluded",
    "impossible",
    "is impossible",
    "is too big",
    "(extraneous)",
    "rejected",
    "plus one",
    "times two",
    "doubled",
    "factorial",
    "thirds",
    "dozen",
    "is not the answer",
    "can be excluded",
]

REFUSED: dict[str, Pairs] = {
    "alternatives": [
        (r"\frac{15}{4} \text{ OR } 3.75", "15"),
        ("6/4 OR 1.5", "6"),
        ("1 OR 2", "3"),
    ],
    "decimal comma": [("3,25", "32.5"), ("3,25", "3.25"), ("0,4", "0.4"), ("410.5", "4,105")],
    "words": [
        ("Tuesday", "Thursday"),
        (r"4\text{ p.m.}", "4 AM"),
        ("odd", "not odd"),
        ("ab", "ba c"),
    ],
    "yes or no": [("Yes", "No"), ("Yes", "Yes, no"), ("No", "Nobody"), ("true", "false, not true")],
    "no solution": [(r"\emptyset", "0"), ("none", "no odd solutions"), ("3", r"\emptyset")],
    "spelled number": [("7", "eight"), ("twelve", "2"), ("7", "seven or eight")],
    "choice": [
        ("B", "(C)"),
        ("17", r"\text{(C) } 18"),
        ("C", r"\text{(B) } 17"),
        ("B", "(A) or (B)"),
    ],
    "parameter": [
        (r"x = k\pi", r"2n\pi"),
        ("n + 1", "k + 1"),
        (r"(2t, 7t), t \in \mathbb{Z}", r"(2k, 7), k \in \mathbb{Z}"),
        (r"(2t, 7s), t \in \mathbb{Z}", r"(2t, 7t), t \in \mathbb{Z}"),
        (r"k\pi + n", r"n\pi + k"),
    ],
    "interval": [
        ("[2, 5)", r"2 \le x \le 5"),
        ("(0, 1)", "[0, 1]"),
        ("[0, 1]", "(0, 1)"),
        ("(0, 1)", "[0, 1)"),
        ("x \\in (0, 1)", "x \\in [0, 1]"),
        ("[1, 9]", "1 < x < 9"),
        (r"(-\infty, 0)", r"[-\infty, 0]"),
        ("x > 7", r"[7, \infty)"),
        ("x > 7", "x < 7"),
        ("x > 7", "y > 7"),
        (r"(-\infty, 1) \cup [4, \infty)", "x < 1"),
        (r"x < 1 \text{ or } x \ge 4", "(1, 4]"),
        ("[2, 5)", r"[2, 5) \cup (6, 7)"),
        (r"x \ne 3", r"(-\infty, 3) \cup (2, \infty)"),
        (r"a \le -5 \text{ or } a = 2", r"(-\infty, -5]"),
        ("(1, 2)", "1, 2, 3"),
        ("[0, 4]", r"0 \ge x \ge 4"),
    ],
    "function": [
        ("f(x) = 3x - 1", "f(t) = 3t + 1"),
        ("f(x) = 3x", "g(t) = 3t"),
        ("f(x) = cx", "f(c) = cc"),
        ("g(x, y) = x - 2y", "g(a, b) = b - 2a"),
        ("f(x) = 3x", "f(t) = 3x"),
    ],
    "plus-minus": [
        (r"\pm 6", "6"),
        ("6", r"\pm 6"),
        (r"2 \pm \sqrt{3}", r"2 \pm \sqrt{5}"),
        (r"1 \pm \sqrt{2}", r"1 + \sqrt{2}, -1 - \sqrt{2}"),
    ],
    "name": [
        ("x = 14", "y = 14"),
        ("14", "n = 15"),
        ("2x + z = 14", "14"),
        ("14", "x > 14"),
        ("x_1 = 14", "x_2 = 14"),
        ("14", "14 = 15"),
        ("A:B = 2:3", "3:2"),
    ],
    "vector": [
        (r"\begin{pmatrix} 3 \\ -1 \end{pmatrix}", "(-1, 3)"),
        (r"\begin{pmatrix} 3 & 1 \\ 2 & 0 \end{pmatrix}", "(3, 1, 2, 0)"),
        (r"\begin{pmatrix} 3 \\ -1 \end{pmatrix}", "(3, -1, 0)"),
    ],
    "ordering": [("c < a < b", "b, a, c"), ("c < a < b", "c, a"), ("q > r > p", "q < r < p")],
    "lead-in": [
        ("31", r"\text{The answer is not } 31"),
        ("31", "the final answer: 32"),
        ("31", "The answer is 30 or 31"),
    ],
    "qualifier": [
        ("f(x) = 4x", r"f(x) = 4x \text{ for all even } x"),
        ("n^2", r"n^3 \text{ for every positive integer } n"),
        ("n^2", r"n^2 \text{ for } n > 4"),
        (r"k^3 \text{ for } k \ne 2", "k^3"),
    ],
    "sentence": [
        ("The remaining triangle is isosceles.", "equilateral"),
        ("Marta will not win.", "Marta"),
        ("Marta will beat Jonas.", "Jonas"),
        ("even", "The product is not even"),
        ("even", "The product is even or odd"),
    ],
    "statement": [
        ("52", "The area is at least 52"),
        ("52", "Ruth arrived more than 52 minutes earlier"),
        ("52", "Ruth was 52 and Paul was 53"),
        ("52", r"\text{The area is not } 52"),
    ],
    "list": [
        ("3, 8", "3, 9"),
        ("3, 8", "3"),
        ("3", "3, 8"),
        ("(3, 8)", "(3, 8, 8)"),
        ("(3, 8)", "3, 8, 8"),
        ("3, 8", "3, 8, 9"),
        ("3, 3, 8", "3, 8, 8"),
        ("(2, 7)", "(7, 2)"),
        ("(2, 7)", "y = 2, x = 7"),
        ("(2, 7)", r"\{2, 7\}"),
        ("(2, 7)", "x = 2, y = 8"),
        ("p = 5, q = 2", "p = 2, q = 5"),
        ("x = 3, 8", "y = 3, 8"),
        ("1,000, 2,000", "1, 2000"),
        (r"3\text{ cm}, 2\text{ kg}", r"2\text{ cm}, 3\text{ kg}"),
        (r"3\text{ cats}, 2\text{ dogs}", r"3\text{ dogs}, 2\text{ cats}"),
        ("f(x) = x, f(x) = -x", "f(x) = x"),
    ],
    "chain": [
        ("36", "x = 30 + 5 = 36"),
        ("24", "5 = 24"),
        ("2.500", r"\sqrt{5} \approx 2.500"),
        ("25", r"24 \approx 25"),
        (r"\frac{2}{3}", r"\frac{2}{3} \approx 0.60"),
        (r"\sqrt{5}", r"\sqrt{5} \approx 5"),
        ("13", "x^2 + y^2 = 13"),
        ("x^2 + y^2 = 13", "13"),
    ],
    "rounding": [
        ("0.857", r"\frac{5}{6}"),
        ("0.857", "0.86"),
        ("0.5", r"\frac{12}{25}"),
        ("0.33", r"\frac{1}{3}"),
        ("3", r"\pi"),
        (r"\frac{6}{7}", "0.857"),
        (r"\pi", "3.14"),
        ("47.13", "47.136"),
        ("48", "47.9"),
        ("117.95%", "118%"),
    ],
    "percentage": [("0.125", r"0.125\%"), (r"40\%", "41"), (r"40\%", "4"), ("12.5", r"1.25\%")],
    "units": [
        (r"3\text{ m}", r"3\text{ cm}"),
        (r"3\text{ m}", r"3\text{ kg}"),
        *((rf"5\text{{ {one}}}", rf"5\text{{ {other}}}") for one, other in OTHER_UNITS),
        *(("12", rf"12\text{{ {words}}}") for words in UNSAID),
        (r"\$12", r"12\text{ cents}"),
        (r"20^\circ\text{C}", r"20^\circ\text{F}"),
        (r"\sin 20^\circ", r"\sin 20"),
        ("45", r"46\text{ cm}"),
        ("5", r"5\text{ million}"),
        (r"9\text{ a.m.}", r"9\text{ p.m.}"),
        (r"4\text{ miles north}", r"4\text{ miles south}"),
        ("12m", "12"),
        ("24", r"24\text{ or more}"),
        (r"2\text{ ft}", r"2\text{ ft}^2"),
        (r"\frac{\pi}{3}", r"30^\circ"),
        ("7", r"7\text{ squared}"),
    ],
    "solved for y": [
        ("y + 1 = 2x", "2x + 1"),
        ("y^2 = x", r"\sqrt{x}"),
        ("x + z = 3", "3 - x"),
        ("y + 1 = 2x", "y"),
    ],
}

ALL = {*RULES, "percentage", "units"}


def rows_of(table: dict[str, Pairs]) -> list[tuple[str, str, str]]:
    return [(rule, gold, answer) for rule, pairs in table.items() for gold, answer in pairs]


TABLES = [(ACCEPTED, equivalence_forms.ACCEPTED), (REFUSED, equivalence_forms.REFUSED)]
ALL_ACCEPTED, ALL_REFUSED = (
    [row for table in tables for row in rows_of(table)] for tables in TABLES
)


def test_every_rule_has_examples_on_both_sides():
    for rows in (ALL_ACCEPTED, ALL_REFUSED):
        counts = Counter(rule for rule, _, _ in rows)
        assert set(counts) == ALL
        assert min(counts.values()) >= 3


@pytest.mark.parametrize(("rule", "gold", "answer"), ALL_ACCEPTED)
def test_a_rule_accepts_what_it_is_for(rule: str, gold: str, answer: str):
    assert judge(gold, answer, Options()) == f"correct: {rule}"


@pytest.mark.parametrize(("rule", "gold", "answer"), ALL_REFUSED)
def test_no_rule_turns_a_wrong_answer_right(rule: str, gold: str, answer: str):
    assert judge(gold, answer, Options()) is None


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("7", " 7."),
        (r"\frac{1}{2}", r"\dfrac12"),
        ("1/2", "0.5"),
        ("1/3", "0.333333"),
        (r"6\frac{1}{64}", r"\frac{385}{64}"),
        ("-3 1/2", "-3.5"),
        ("1000000", "1,000,000"),
        ("1000000", "10^6"),
        ("12000", r"12,\!000"),
        ("4.2e-10", r"4.2 \times 10^{-10}"),
        ("x²", "x^2"),
        ("√2", r"\sqrt{2}"),
        (r"(2, \pi)", "（2，π）"),
        (r"2\arcsin\sqrt{a}", r"\arccos(1 - 2a)"),
        (r"\sqrt{3 + 2\sqrt{2}}", r"1 + \sqrt{2}"),
        (r"\sin^2 x", r"1 - \cos^2 x"),
        ("\x0crac{3}{7}", r"\frac{3}{7}"),
        (r"\\frac{3}{7}", r"\frac{6}{14}"),
        (r"\tfrac{3}{7}", "$3/7$"),
        (r"2x - 4y = 6", "x - 2y - 3 = 0"),
        ("|x - 2025|", "|2025 - x|"),
        # complex numbers
        (r"2e^{i\pi/3}", r"1 + i\sqrt3"),
        (r"e^{i\pi/4}", r"\frac{\sqrt2}{2} + \frac{\sqrt2}{2}i"),
        (r"2e^{i\pi/3}", r"2(\cos\frac{\pi}{3} + i\sin\frac{\pi}{3})"),
        (r"2e^{i\pi/3}", r"2\operatorname{cis}60^\circ"),
        (r"2\text{cis}(\pi/3)", r"2e^{i\pi/3}"),
        ("3 - 4i", "-i(4 + 3i)"),
        (r"\frac{1 + 2i}{5}", r"\frac{1}{1 - 2i}"),
        ("2i", r"\sqrt{-4}"),
        # emphasis, a sign in front, separators
        ("42", "**42**"),
        ("42", "= 42"),
        (r"\frac{1}{2{,}024}", r"\frac{1}{2\,024}"),
        ("x^{2}", "x^2"),
        ("1011_2", r"1011_{\text{two}}"),
        ("1011_{(2)}", "1011_2"),
        ("1011_2", "1011"),
        (r"1 + \lfloor \frac{n}{2} \rfloor", r"\lfloor n/2 \rfloor + 1"),
        (r"\gamma^2 - 1", r"(\gamma - 1)(\gamma + 1)"),
        (r"\pi(R^2 - r^2)", r"\pi(R - r)(R + r)"),
        ("X^2 - 1", "(x - 1)(x + 1)"),
        (r"\Pi r + r\Pi", r"2\Pi r"),
        (r"x\Gamma(x)", r"\Gamma(x + 1)"),
        ("(n + 1)!", "(n + 1) n!"),
        (r"\binom{n}{2}", r"\frac{n(n - 1)}{2}"),
        ("n^{n^{n}}", "n^{(n^n)}"),
        # equations, in any form
        ("y = -2x + 3", "2x + y - 3 = 0"),
        ("y = -2x + 3", "-2x + 3 = y"),
        # repeating decimals
        (r"\frac{1}{3}", r"0.\overline{3}"),
        (r"\frac{5}{6}", r"0.8\overline{3}"),
        (r"0.\overline{36}", "0.363636..."),
        (r"\frac{1}{6}", r"0.1\dot{6}"),
        # styles, and as programs write it
        ("42", r"\color{red}{42}"),
        ("42", r"\textcolor{red}{42}"),
        ("42", r"\underline{\boldsymbol{42}}"),
        ("42", r"\Large{42}"),
        (r"\frac{3}{4}", r"\nicefrac{3}{4}"),
        (r"2\sqrt{3}", "2sqrt(3)"),
        (r"2\sqrt{3}", r"2\sqrt(3)"),
        ("x^2 + 1", "x**2 + 1"),
        (r"\frac{\pi}{4}", "pi/4"),
        (r"\infty", "infinity"),
        # degrees within a function
        (r"\frac{1}{2}", r"\sin 30^\circ"),
        (r"\tan 15^\circ", r"2 - \sqrt{3}"),
    ],
)
def test_another_spelling_is_plainly_correct(gold: str, answer: str):
    assert judge(gold, answer, Options()) == "correct"


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        (r"6\frac{1}{64}", r"\frac{6}{64}"),
        ("1000000", "1,000,00"),
        ("32349", "32, 349"),
        ("|x|", "x"),
        (r"\sqrt{x^2}", "x"),
        (r"\lfloor x \rfloor", "x"),
        (r"\sqrt{3 + 2\sqrt{2}}", "2.41"),
        ("2^{100}", "2^{100} + 1"),
        (r"2^{100}\sqrt{2}", r"2^{100}\sqrt{2} + 1"),
        (r"x^{90}", r"x^{90} + 1"),
        ("10^{-9}", "10^{-10}"),
        ("x + 1", "x - 1"),
        # a constant that rounds to 0 at any number of decimals
        (r"\frac{1}{1999!}", r"-\frac{1}{1999!}"),
        (r"10^{-34} x", r"10^{-35} x"),
        # equal near zero, and not far from it
        ("|x - 8|", "8 - x"),
        (r"\sqrt{(x - 2025)^2}", "2025 - x"),
        (r"\lfloor \frac{p}{9} \rfloor", r"\lfloor \frac{p}{10} \rfloor"),
        # letters that the parser takes for another letter, a constant or a function
        (r"\gamma^2 - 1", r"\gamma^2 - 5"),
        (r"m(\gamma - 1)", r"m(\gamma - 2)"),
        (r"\pi(R^2 - r^2)", r"\pi(r^2 - R^2)"),
        (r"\Delta - \delta", "0"),
        (r"2\Pi r", r"2\pi r"),
        (r"\frac{1}{0}x", r"\frac{2}{0}x"),
        ("1011_{(2)}", "1011_{(3)}"),
        ("1011_2", r"1011_{\text{three}}"),
        ("12", "12_{13}"),
        ("5", "101_2"),
        # complex numbers
        (r"2e^{i\pi/3}", r"1 - i\sqrt3"),
        (r"2e^{i\pi/3}", r"2\operatorname{cis}30^\circ"),
        ("3 - 4i", "-i(4 - 3i)"),
        ("2i", r"\sqrt{-9}"),
        ("2i", "-2i"),
        ("i^2 + 1", "0"),
        ("ai + b", "a + bi"),
        # degrees are not radians
        (r"\cos^2 10^\circ", r"\cos^2 10"),
        (r"2\cos 40^\circ", r"2\cos 40"),
        ("1", r"0.\overline{9}1"),
        (r"\frac{1}{3}", "0.33..."),
    ],
)
def test_another_value_is_wrong(gold: str, answer: str):
    assert judge(gold, answer, Options()) is None


def test_without_strict_the_names_of_variables_do_not_matter():
    assert judge("x + 1", "t + 1", Options(strict=True)) is None
    assert judge("x + 1", "t + 1", Options(strict=False)) == "correct"


def test_float_rounding_is_how_many_decimals_must_agree():
    assert judge(r"\frac{1}{7}", "0.1429", Options(float_rounding=6)) is None
    assert judge(r"\frac{1}{7}", "0.1429", Options(float_rounding=4)) == "correct"


NUMBERS = st.fractions(-(10**6), 10**6, max_denominator=999)


@examples(50)
@given(NUMBERS, NUMBERS)
def test_two_fractions_are_equal_exactly_when_their_values_are(left, right):
    gold = rf"\frac{{{left.numerator}}}{{{left.denominator}}}"
    answer = f"{right.numerator}/{right.denominator}"
    assert (judge(gold, answer, Options()) == "correct") == (left == right)


@examples(50)
@given(st.lists(st.integers(-99, 99), min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_a_list_is_right_in_any_order_and_never_with_one_item_changed(numbers, rng):
    gold = ", ".join(map(str, numbers))
    shuffled = rng.sample(numbers, len(numbers))
    assert judge(gold, ", ".join(map(str, shuffled)), Options()) is not None
    shuffled[rng.randrange(len(shuffled))] += 1000
    assert judge(gold, ", ".join(map(str, shuffled)), Options()) is None


@examples(50)
@given(st.integers(-50, 50), st.integers(1, 50), st.sampled_from("[("), st.sampled_from("])"))
def test_an_interval_equals_its_own_inequality_and_no_other(low, length, left, right):
    high = low + length
    signs = {"[": r"\le", "(": "<", "]": r"\le", ")": "<"}
    gold = f"{left}{low}, {high}{right}"
    answer = f"{low} {signs[left]} x {signs[right]} {high}"
    assert judge(gold, answer, Options()) == "correct: interval"
    other = f"{low} {signs[left]} x {signs[right]} {high + 1}"
    assert judge(gold, other, Options()) is None


def test_no_module_of_sympy_is_left_for_a_forked_worker_to_import():
    judging = r"""
import sys
from grpo.verify.equivalence import Options, judge
before = set(sys.modules)
for gold, answer in (
    ("14", r"\sqrt{4} \cdot \frac{14}{2}"),
    ("(x + 1)^2", "x^2 + 2x + 2"),
    (r"\frac{1 - 4\sqrt{3}}{-4 - \sqrt{3}}", r"\frac{17\sqrt{3} - 16}{13}"),
    (r"\{1, \pi\}", "(1, 2]"),
    (r"[2, \infty)", r"[2, 3) \cup [3, \infty)"),
):
    judge(gold, answer, Options())
print([name for name in sys.modules if name.startswith("sympy") and name not in before])
"""
    command = [sys.executable, "-c", judging]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
