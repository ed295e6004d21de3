r"""What people and models write into a box: many spellings of one value, and units in any words."""

import time

import pytest

from grpo.verify import VERIFIERS

SPELLINGS = {
    "18": [
        "18.00",
        r"\$18",
        r"\$18.00",
        r"\$ 18 \text{ USD}",
        r"\$18.00 \text{ per day}",
        r"18\$",
        "18 bucks",
        r"18 \text{ dollars}",
        r"\text{18 dollars}",
        r"\text{\$18}",
        r"\textbf{18}",
        r"\text{Total} = 18",
        r"\text{Janet makes } \$18 \text{ every day}",
        r"9 \times \$2 = \$18",
        "\\ 18\\ ",
        "~18",
        "eighteen",
    ],
    "13": ["13 units", r"13\text{ units}", r"13\text{ square units}", "13 sq. units"],
    "30": ["30 minutes", "30 min", r"30\text{ min}", "30 sec", "30 secs", "30 seconds", "30 hours"],
    "12": ["12^{th}", r"12^{\text{th}}", r"\text{12th}", r"12\text{th}"],
    "58,500": ["58500", "58,500", r"58{,}500", r"58\,500", "58500 km", "58,500 km"],
    r"\frac{3}{4}": [
        r"\frac34",
        r"\dfrac 3 4",
        r"{3 \over 4}",
        "3 / 4",
        r"\text{3/4}",
        "0.75",
        r"75\%",
        "¾",
        r"P(A) = \frac{3}{4}",
        r"\mathbb{P}(A) = \frac{3}{4}",
        r"\Pr(A) = 3/4",
        r"\text{Probability} = \frac{3}{4}",
        r"\frac{6}{8} = \frac{3}{4}",
        r"\frac{3}{4} \text{ hours}",
    ],
    r"-\frac{1}{2}": [r"\frac{-1}{2}", r"\frac{1}{-2}", "-1/2", "-.5", "−1/2"],
    r"2\sqrt{3}": [
        "2√3",
        "2√(3)",
        "2 sqrt 3",
        "2*sqrt(3)",
        r"2\cdot 3^{1/2}",
        r"\sqrt{12} = 2\sqrt{3}",
        r"AB = 2\sqrt{3}",
        r"2\sqrt{3}\text{ cm}",
        r"2\sqrt{3} \text{ units}",
    ],
    r"18\pi": [
        "18π",
        "18*pi",
        r"\pi \cdot 18",
        r"18\pi\text{ square units}",
        r"18\pi\ \text{cm}^2",
    ],
    r"\left( 3, \frac{\pi}{2} \right)": [
        "(3, π/2)",
        r"(r,\theta)=(3,\pi/2)",
        r"r = 3 \text{ and } \theta = \frac{\pi}{2}",
        r"\langle 3, \pi/2\rangle",
    ],
    "[-2,7]": [
        "-2 <= x <= 7",
        r"x\in\left[-2, 7\right]",
        r"\{x \mid -2 \le x \le 7\}",
        r"x \ge -2 \text{ and } x \le 7",
    ],
    "3, 5, 7": ["7, 5, 3", r"\{3,5,7\}", r"3, 5, \text{ and } 7", r"\text{3, 5, and 7}", "x=3,5,7"],
    r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}": [
        r"\begin{bmatrix}1\\2\end{bmatrix}",
        r"\begin{pmatrix} 1 \\[4pt] 2 \end{pmatrix}",
        r"\left(\begin{array}{c}1\\2\end{array}\right)",
        "(1, 2)",
    ],
    "6 - 5i": ["-5i+6", "6 + (-5)i", r"6-5\mathrm{i}", "z=6-5i"],
    r"11:15\text{ a.m.}": ["11:15 AM", "11:15 a.m.", r"\text{11:15 AM}", r"11:15\text{ am}"],
    "2516_8": [r"2516_{\text{eight}}", "(2516)_8", "2516_{(8)}", r"2516\text{ (base 8)}", "2516"],
    r"90^\circ": ["90", "90°", "90^o", r"90^{\text{o}}", "90 degrees", r"\angle ABC = 90^{\circ}"],
    r"\frac{x+2}{7}": [r"f^{-1}(x)=\frac{x+2}{7}", "(x+2)/7", r"\frac{x}{7}+\frac{2}{7}"],
    r"\sinh x": [r"\operatorname{sinh} x", "sinh(x)"],
    r"\arcsin\frac12": ["arcsin(1/2)", r"\operatorname{arcsin}(1/2)"],
    r"\max(a,b)": ["max(a, b)", r"\text{max}(a, b)", r"\operatorname*{max}(a, b)"],
    r"2\cos^2 x": ["2cos^2 x", "2 cos^2(x)", r"2\text{cos}^2 x"],
    r"\sec^2 x": [r"\text{sec}^2 x", r"(\sec x)^2"],
    r"\ln 2": ["ln 2", "ln(2)", r"\log_e 2", r"\log_{e} 2", r"\text{ln }2"],
    r"5\text{ hours}": ["5", "5 hours", "300 minutes", "5 hr", r"300\text{ min}", "18000 sec"],
    r"9.8\text{ m/s}^2": [r"9.8\text{ m}/\text{sec}^2", r"9.8\ \mathrm{m/s^2}", "9.8"],
    r"\text{(C)}": ["C", "C.", r"\textbf{(C)}", r"\textbf{(C) } 5", r"\text{C) 5}", "Option C"],
    "A'": ["A'", r"A^{\prime}", "A’"],
    "P_1'": ["P'_1", "P_1^{\\prime}"],
    "f''(x) = 6x": ["6x", "f''(x)=6x"],
    "5'": ["5 feet", "5"],
    r"5\text{ feet}": ["5'", "5’"],
    "A": ["`A'", "'A'"],
    "3 and 5": ["5 and 3", r"5\text{ and }3", "3, 5"],
    r"2\text{ m}; 3\text{ m}": [r"3\text{ m}; 2\text{ m}"],
    r"\frac34": ["tan(A)=3/4", "cos(theta) = 3/4", r"\operatorname{cos}(C) = 3/4"],
    "6": ["gcd(a,b) = 6", r"\operatorname{gcd}(a,b) = 6", "det(A)=6"],
    r"\operatorname{arsinh}(x)+C": [r"C+\operatorname{arsinh}(x)"],
}
PAIRS = [(gold, written) for gold, forms in SPELLINGS.items() for written in forms]


@pytest.mark.parametrize(("gold", "written"), PAIRS)
def test_a_value_is_paid_however_it_is_spelled(gold: str, written: str):
    assert VERIFIERS["math"](rf"\boxed{{{written}}}", gold).reward == 1.0


@pytest.mark.parametrize(
    ("gold", "written"),
    [
        ("30", r"\min"),
        ("30", "30 minutes and 5"),
        ("2", "2 max(3, 4)"),
        ("2", r"2\text{ log}"),
        ("1800", "30 minutes 0"),
        (r"5\text{ hours}", "5 minutes"),
        (r"5\text{ hours}", "301 minutes"),
        ("18", r"\text{18 million}"),
        ("18", r"\text{18 or 19}"),
        ("18", r"\text{1, 8}"),
        ("3", r"\text{3, 5, and 7}"),
        (r"11:15\text{ a.m.}", "11:15 PM"),
        ("2516_8", "(2516)_9"),
        ("2516_8", r"2516\text{ (base 9)}"),
        (r"\frac{x+2}{7}", r"f^{-1}(x)=\frac{x-2}{7}"),
        (r"\sinh x", r"\operatorname{sin} x"),
        (r"\ln 2", r"\log_{10} 2"),
        ("58,500", "58,501 km"),
        (r"\text{Evelyn}", r"\text{Evelyn or Bob}"),
        (r"\text{Evelyn}", r"\text{units}"),
        ("A", "A'"),
        ("A'", "A"),
        ("f'(x)", "f(x)"),
        ("3", "x^{-1} = 3"),
        ("3", "x^{-1}(2) = 3"),
        (r"\frac{\pi}{6}", r"\sin^{-1}(x) = \frac{\pi}{6}"),
        ("ABCD", "A'B'C'D'"),
        ("triangle ABC", "triangle A'B'C'"),
        ("y = 2x + 1", "y' = 2x + 1"),
        ("f'(a) = f(b)", "f(a) = f'(b)"),
        ("f(x) = 2x", "f''(x) = 2x"),
        (r"\frac12\operatorname{arctanh}(x)", r"\frac12"),
        (r"5\operatorname{rank}(A)", "5"),
        ("15", r"1\text{ 5}"),
        ("115", r"1\text{15 dollars}"),
        ("13", r"\text{1st}3"),
        ("x_{12}", r"x_1\text{2}"),
        ("312_5", "3(12)_5"),
        ("C5_2", "C(5)_2"),
        ("2", "2^o"),
        ("x = 3", "x^{-1} = 3"),
        ("f(x) = 2x", "f^{-1}(x) = 2x"),
        ("f = 2x", "f^{-1}(x) = 2x"),
        ("x = 3", "x' = 3"),
    ],
)
def test_another_value_is_not_paid_for_its_spelling(gold: str, written: str):
    assert VERIFIERS["math"](rf"\boxed{{{written}}}", gold).reward == 0.0


@pytest.mark.parametrize(
    ("gold", "written", "problem"),
    [
        ("5", "5 men", "How many men are needed?"),
        ("4", "4 logs", "How many logs does Carson burn?"),
        ("8", "8 more trees", "How many more trees has Ann than Bo?"),
        ("3", r"3\text{ fewer songs}", "How many fewer songs are there?"),
        ("7", "7 dozens", "How many dozens of eggs does she eat?"),
        ("84", "7 dozen", "Of two dozen eggs in a box she eats seven times half. How many eggs?"),
        (
            "90",
            "90 liters",
            "A half of 90 liters is left, and 45 come in. How many liters?",
        ),
        ("58,500", r"58,500\text{ license plates}", "How many license plates are there?"),
    ],
)
def test_a_count_is_paid_with_the_noun_that_is_asked_for(gold: str, written: str, problem: str):
    assert VERIFIERS["math"](rf"\boxed{{{written}}}", gold, problem=problem).reward == 1.0


@pytest.mark.parametrize(
    ("gold", "written", "problem"),
    [
        ("8", "8 more trees", "How many trees has Ann? Bo has more trees."),
        ("8", "8 or more trees", "How many more trees has Ann than Bo?"),
        ("84", "7 dozens", "How many dozens of eggs does she eat?"),
        ("7", "7 dozen", "How many eggs are left of two dozen?"),
        ("6", "6 abc", "Find $abc$."),
        ("6", "6 abc", "Find abc."),
        ("6", "6 tan", "Find tan A in the triangle."),
        ("6", "6 ten", "Find the ten digit number."),
        ("5", "5 minus", "What is ten minus five?"),
        ("5", "5 wrong", "How many wrong answers are there? How many correct ones?"),
        ("5", "5 unless", "How many unless it rains?"),
        ("60", "5 per dozen", "How much per dozen is it?"),
        ("5", r"5\operatorname{rank}(A)", "Find the rank of A."),
        ("5", r"5\text{ not}", "How many numbers not below 9 are there?"),
        ("5", "5 less", "How many integers less than 10 are there?"),
        ("5", "5 men", "How many women are needed?"),
        ("5", "5 xy", "How many men are needed?"),
        (r"300\text{ cm}", "3 m", "How many centimeters are 3 m?"),
    ],
)
def test_a_count_of_something_else_is_not_paid(gold: str, written: str, problem: str):
    assert VERIFIERS["math"](rf"\boxed{{{written}}}", gold, problem=problem).reward == 0.0


@pytest.mark.parametrize("word", ["sinh", "cosh", "tanh", "sec", "sincot"])
def test_a_word_of_many_functions_is_read_in_linear_time(word: str):
    started = time.monotonic()
    assert VERIFIERS["math"](rf"\boxed{{5 {word * (550 // len(word))}s}}", "5").reward == 0.0
    assert time.monotonic() - started < 20  # exponential: hours


def test_a_prefix_before_a_temperature_is_no_unit():
    assert VERIFIERS["math"](r"\boxed{5 min foctave}", "5").reason == "wrong"
    assert VERIFIERS["math"](r"\boxed{5\text{ millicelsius}}", "5").reason.startswith("wrong")
