r"""What has not been worked out: operations that are left to do, and formulas of the problem."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from grpo.verify import VERIFIERS
from grpo.verify.equivalence import Options, judge
from grpo.verify.equivalence.copies import copied
from grpo.verify.equivalence.finished import unfinished
from grpo.verify.equivalence.operations import left_to_do
from grpo.verify.equivalence.spelling import tidy
from tests.examples import examples


@pytest.mark.parametrize(
    "answer",
    [
        "59+11",
        "99^2+99+1",
        r"\frac{235^2-221^2}{14}",
        r"2 \cdot 35",
        "(3)(4)",
        "2(35)",
        "3!2!",
        r"\sqrt{3+1}",
        "2^{3+4}",
        r"\frac12+\frac13",
        r"1-\frac14",
        "|3-5|",
        "2^{10}-1",
        "(1+1, 2)",
        r"100 \div 4",
        "12/4/3",
        "3 + x + 4",
        r"\pi(25-9)",
        "x = 2+3",
        r"\begin{pmatrix}1+1\\2\end{pmatrix}",
        "1 2",
    ],
)
def test_an_operation_between_numbers_is_left_to_do(answer: str):
    assert unfinished(tidy(answer))


@pytest.mark.parametrize(
    "answer",
    [
        "70",
        r"\frac{84}{2}",
        "17/12",
        r"2\frac{3}{8}",
        r"1.5\times10^6",
        "12{,}500",
        "2^{10}",
        "7!",
        r"\binom{10}{3}",
        r"2\sqrt{3}",
        r"1+\sqrt2",
        "2*3^(1/2)",
        r"3\log_2 8",
        "1+2i",
        r"\frac{\pi}{3}+2k\pi",
        "30+6=36",
        "6x^2-5x-4",
        "3x/2",
        "(3,-2)",
        r"2\cos 40^\circ",
        r"5\text{ cm}^2",
        "3:45",
        "12 and 13",
        "x_1+x_2",
        r"2x+3y=6",
        r"\frac{13}{4}-\frac{3\sqrt{5}}{4}",
    ],
)
def test_a_value_is_finished(answer: str):
    assert not unfinished(tidy(answer))


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("3", r"\log_2 8"),
        ("1", r"\ln e"),
        ("12", r"24 \sin 30^\circ"),
        (r"\frac{3}{4}", r"\sin^2 60^\circ"),
        (r"\frac{\sqrt3}{4}", r"\cos 30^\circ \sin 30^\circ"),
        (r"\frac{\pi}{4}", r"\arctan 1"),
        ("2", r"e^{\ln 2}"),
        ("12x", r"24x \sin 30^\circ"),
        ("6", r"\gcd(12, 18)"),
        ("7", r"\max(3, 7)"),
        ("3", r"\lfloor \frac{7}{2} \rfloor"),
        ("2", r"2^{10} \mod 7"),
        ("1", r"\det \begin{pmatrix} 1 & 0 \\ 0 & 1 \end{pmatrix}"),
        ("-2", r"\begin{vmatrix} 1 & 2 \\ 3 & 4 \end{vmatrix}"),
        (r"\frac12", r"\int_0^1 x dx"),
        (r"\frac{n(n+1)}{2}", r"\sum_{k=1}^n k"),
        ("1", r"\lim_{x \to 0} \frac{\sin x}{x}"),
        ("x^2", r"\frac{d}{dx} \frac{x^3}{3}"),
        # complex numbers
        ("-1", r"e^{i\pi}"),
        (r"1 + i\sqrt3", r"2e^{i\pi/3}"),
        (r"1 + i\sqrt3", r"2(\cos\frac{\pi}{3} + i\sin\frac{\pi}{3})"),
        ("5 + 5i", "(1 + 2i)(3 - i)"),
        ("-4i", "(1 - i)^2 \\cdot 2"),
        ("i", "i^5"),
        ("5", "|3 + 4i|"),
        ("5", "(2 + i)(2 - i)"),
        (r"e^{i\pi/3}", r"e^{i\pi/6} e^{i\pi/6}"),
        (r"\frac{1 + i}{2}", r"\frac{1 + 2i}{3 + i}"),
    ],
)
def test_a_named_operation_is_left_to_do(gold: str, answer: str):
    assert left_to_do(tidy(gold), tidy(answer), "")
    assert not left_to_do(tidy(gold), tidy(f"{answer} = {gold}"), "")


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        (r"3\ln 2", r"\ln 8"),
        (r"\log_2 3", r"\frac{\ln 3}{\ln 2}"),
        ("2.197", r"\ln 9"),
        (r"\sin 20^\circ", r"\cos 70^\circ"),
        (r"\arctan\frac12", r"\tan^{-1}(1/2)"),
        (r"\sin 2x", r"2 \sin x \cos x"),
        ("e^2", r"\exp(2)"),
        (r"\lfloor \frac{n}{2} \rfloor + 1", r"1 + \lfloor n/2 \rfloor"),
        (r"\frac{2n - 1 + (-1)^n}{4}", r"\lfloor n/2 \rfloor"),
        (r"\frac{1 + \sqrt5}{4}", r"\cos 36^\circ"),
        ("3", r"3 \pmod 7"),
        (r"\sum_{k=1}^n \frac1k", r"\sum_{j=1}^n \frac1j"),
        (r"2e^{i\pi/3}", r"1 + i\sqrt3"),
        (r"2e^{i\pi/3}", r"2(\cos 60^\circ + i\sin 60^\circ)"),
        ("3 - 4i", "-i(4 + 3i)"),
        (r"\frac{1 + 2i}{5}", r"\frac{1}{1 - 2i}"),
        ("2i", r"\sqrt{-4}"),
        ("(i + 1)(i + j)", "(1 + i)(j + i)"),
    ],
)
def test_in_the_style_of_the_reference_nothing_is(gold: str, answer: str):
    assert not left_to_do(tidy(gold), tidy(answer), "")


@pytest.mark.parametrize(
    "problem", [r"Compute $\sin 30^\circ$.", "What is the sine of 30 degrees?", r"$\tan x = 1$"]
)
def test_a_sine_is_no_answer_where_the_problem_speaks_of_such(problem: str):
    for answer in (r"\sin 30^\circ", r"\cos\frac{\pi}{3}", r"\cos(60^\circ)"):
        judged = judge(r"\frac12", answer, Options(), problem)
        assert judged == "wrong: not evaluated"
        assert judge(r"\frac12", answer, Options(), "How high is the ramp?") == "correct"
        assert judge(r"\frac12", answer, Options(evaluated=False), "How high is it?") == "correct"


def test_separators_between_thousands_make_no_list_of_a_sum():
    assert judge("-814 + 3698i", "-814 + 3,698i", Options()) == "correct: thousands"
    assert judge("70, 100", "59+11,100", Options()) == "wrong: not evaluated"


@examples(100)
@given(st.text(alphabet=r"12ix+-^(){}|\\,= sincogle", max_size=40))
def test_of_any_text_it_can_be_said(text: str):
    assert left_to_do("1", text, text) in (True, False)


@examples(100)
@given(st.integers(0, 10**6), st.integers(0, 10**6), st.sampled_from(["+", "-", r"\cdot ", "*"]))
def test_two_numbers_and_a_sign_between_them_are_never_paid_as_their_value(left, right, sign):
    value = {"+": left + right, "-": left - right}.get(sign, left * right)
    assume(value != 0)
    assert judge(str(value), f"{left}{sign}{right}", Options()) == "wrong: not evaluated"
    assert judge(str(value), f"{left}{sign}{right} = {value}", Options()) == "correct: chain"
    assert judge(str(value), f"{left}{sign}{right}", Options(evaluated=False)) == "correct"


@examples(200)
@given(st.text(alphabet=r"12x+-*/^(){}[]\,!=_ .|", max_size=40))
def test_any_text_can_be_read(text: str):
    assert unfinished(text) in (True, False)


def test_a_reference_that_leaves_it_undone_is_met_in_the_same_way():
    assert judge(r"3\cdot 5", "3*5", Options()) == "correct"
    assert judge("2^{64}-1", "2^{64}-1", Options()) == "correct"


@pytest.mark.parametrize(
    ("gold", "answer", "problem"),
    [
        ("0.35625", r"\frac{57}{160}", r"Convert $\frac{57}{160}$ to a decimal."),
        ("(x-2)(x+2)", "x^2-4", "Factor $x^2-4$."),
        ("(x-2)(x+2)", "-4+x^2", r"Factor \(x^2-4\)."),
        (r"2\sqrt{3}", r"\sqrt{12}", r"Simplify $$\sqrt{12}.$$"),
        ("y = 2x - 3", "2x - y = 3", "Solve $2x - y = 3$ for $y$."),
        (r"300\text{ cm}", r"3\text{ m}", "How many centimeters are 3 m?"),
        ("x+1", "1+x", r"Simplify $\frac{x^2-1}{x-1} = 1+x$"),
    ],
)
def test_a_formula_of_the_problem_is_a_copy(gold: str, answer: str, problem: str):
    assert copied(tidy(gold), tidy(answer), problem)
    verdict = VERIFIERS["math"](rf"\boxed{{{answer}}}", gold, problem=problem)
    assert (verdict.reward, verdict.reason) == (0.0, "wrong: copied from the problem")
    assert VERIFIERS["math"](rf"\boxed{{{answer}}}", gold, problem=problem, original=False).reward
    assert VERIFIERS["math"](rf"\boxed{{{answer}}}", gold).reward  # nobody said what was asked


@pytest.mark.parametrize(
    ("gold", "answer", "problem"),
    [
        ("x^2-4", "x^2-4", "Is $x^2-4$ or $x^2-5$ larger?"),
        ("x^2 - 4", "-4 + x^2", "Is $x^2-4$ or $x^2-5$ larger?"),
        ("70", "70.0", "Is it $70$ or $71$?"),
        (r"\frac{1}{2}", r"\frac{2}{4}", "A coin is tossed $2$ times."),
        ("(x-2)(x+2)", "(x+2)(x-2)", "Factor $x^2-4$."),
    ],
)
def test_what_the_reference_says_too_is_no_copy(gold: str, answer: str, problem: str):
    assert not copied(tidy(gold), tidy(answer), problem)


def test_an_integer_with_a_name_is_no_copy():
    assert judge("3", "x = 3", Options(), "Find $f(x)$ at $x = 3$.") == "correct: name"


@pytest.mark.parametrize(
    ("answer", "gold", "problem"),
    [
        ("x-59=11", "x=70", "What number is 59 + 11?"),
        ("x-2^3=0", "x=8", "Solve."),
        (r"\operatorname{lcm}(4,6)", "12", "What is the least common multiple of 4 and 6?"),
        ("gcd(12,18)", "6", "Find gcd(12, 18)."),
        (r"\exp(i\pi)", "-1", "Evaluate."),
    ],
)
def test_moving_a_term_or_spelling_a_function_otherwise_works_nothing_out(
    answer: str, gold: str, problem: str
):
    verdict = VERIFIERS["math"](rf"\boxed{{{answer}}}", gold, problem=problem)
    assert verdict.reward == 0.0


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("1:3:999", "1:3:0"),
        ("4:10:15", "12:30:45"),
        ("-1:-2:-3", "1:2:3"),
        ("B. A. C. D.", "B"),
        ("(B) or (A)", "B"),
        ("B: wrong; A: right", "B"),
        ("twenty third", r"\frac{20}{3}"),
    ],
)
def test_a_ratio_a_letter_and_a_number_in_words_are_that_one_alone(answer: str, gold: str):
    assert VERIFIERS["math"](rf"\boxed{{{answer}}}", gold).reward == 0.0


@pytest.mark.parametrize(
    ("answer", "gold"),
    [("2:4:6", "1:2:3"), ("0:2:4", "0:1:2"), ("(E) 5", "E"), ("5=x", "x=5"), ("2x+y=3", "y=-2x+3"),
     (r"r-2\cos\theta=0", r"r=2\cos\theta"), ("two thirds", r"\frac23")],
)  # fmt: skip
def test_what_is_right_beside_them_stays_so(answer: str, gold: str):
    assert VERIFIERS["math"](rf"\boxed{{{answer}}}", gold).reward == 1.0
