"""Answers that are written to mislead the math verifier, or to keep it busy."""

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo.verify import VERIFIERS
from grpo.verify.pool import VerifierPool
from tests.examples import examples

REASONS = {"correct", "wrong", "no answer", "gold does not parse"}
DEADLINE_S = 20.0  # generous: the machine may be busy, a single comparison takes milliseconds


def judged(response: str, answer: str) -> tuple[float, str]:
    verdict = VERIFIERS["math"](response, answer)
    return verdict.reward, verdict.reason


# --- more than one answer ---


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (r"\boxed{3 or 4}", "4"),
        (r"\boxed{3 \text{ or } 4}", "3"),
        (r"\boxed{3, 4}", "4"),
        (r"\boxed{3; 4}", "3"),
        (r"\boxed{\{3, 4\}}", "4"),
        (r"\boxed{x = 3 \text{ and } x = 4}", "4"),
        (r"\boxed{1, 2, 3, 4, 5, 6, 7, 8, 9}", "7"),
        (r"\boxed{$3$ perhaps $4$}", "4"),
        (r"\boxed{3 \text{ perhaps } 4}", "3"),
        (r"\boxed{3 \pm 1}", "4"),
        (r"\boxed{\pm 4}", "4"),
        (r"\boxed{[3, 5]}", "4"),
        (r"\boxed{x \in \{3, 4\}}", "4"),
        (r"\boxed{3} or \boxed{4}", "4"),
        (r"\boxed{3}, \boxed{4}", "4"),
        (r"$\boxed{3}$ \text{ and } $\boxed{4}$", "3"),
        (r"\boxed{3, \boxed{4}}", "4"),
        (r"\boxed{3 = 4}", "4"),
        (r"\boxed{4 = 3}", "4"),
        (r"\boxed{x = 3 = 4}", "4"),
        (r"\boxed{3 \approx 4}", "4"),
        (r"\boxed{2\sqrt{2} \approx 5.00}", "5.00"),
        ("Answer: 3 or 4", "4"),
    ],
)
def test_an_answer_that_lists_alternatives_is_wrong(response: str, answer: str):
    assert judged(response, answer) == (0.0, "wrong")


def test_of_contradicting_boxes_the_last_one_counts():
    assert judged(r"\boxed{3}. On second thought: \boxed{4}", "4")[0] == 1.0
    assert judged(r"\boxed{4}. On second thought: \boxed{3}", "4")[0] == 0.0


def test_the_same_answer_in_two_boxes_is_one_answer():
    assert judged(r"\boxed{4}, \boxed{4}", "4") == (1.0, "correct")


def test_boxes_joined_by_and_are_one_list():
    assert judged(r"\boxed{3} and \boxed{4}", "3, 4")[0] == 1.0
    assert judged(r"$y_1 = \boxed{3}$ and $y_2 = \boxed{4}$", "3, 4")[0] == 1.0
    assert judged(r"\boxed{3}, so that the sum is \boxed{4}", "3, 4")[0] == 0.0


def test_a_final_answer_line_behind_a_box_counts():
    line = r"\boxed{3} Final Answer: The final answer is $4$. I hope it is correct."
    assert judged(line, "4")[0] == 1.0
    assert judged(line, "3")[0] == 0.0


# --- words that turn an answer round ---


@pytest.mark.parametrize(
    "given_",
    [
        r"\text{not } 24",
        r"\neq 24",
        r"x \neq 24",
        r"\neg 24",
        "> 24",
        r"x \ge 24",
        r"24 \text{ or more}",
        r"\text{at least } 24",
        r"\text{less than 24}",
        r"24 \text{ (false)}",
        r"24 \text{ million}",
        r"24 \text{ or } 25 \text{ cm}",
        "24?25",
        "24m",
        "24x",
    ],
)
def test_words_and_signs_around_the_gold_do_not_go_unread(given_: str):
    assert judged(rf"\boxed{{{given_}}}", "24") == (0.0, "wrong")


@pytest.mark.parametrize(
    ("given_", "answer"),
    [
        ("0", "0.00000000042"),
        ("0.0", "4.2e-10"),
        ("0.0", r"\frac{\pi}{10^{9}}"),
        (r"1 + \frac{1}{\mathrm{e}}", r"1 - \frac{1}{\mathrm{e}}"),
        (r"2 \text{ boys}, 3 \text{ girls}", r"3 \text{ boys}, 2 \text{ girls}"),
        (r"5 \text{ pens}, 7 \text{ cups}", r"5 \text{ pens}, 8 \text{ cups}"),
        ("2x + 3c", "2x + 3"),
    ],
)
def test_what_math_verify_leaves_unread_is_compared(given_: str, answer: str):
    assert judged(rf"\boxed{{{given_}}}", answer) == (0.0, "wrong")


# --- cost ---

COSTLY = {
    "tower": "9^{9^{9^{9}}}",
    "tower without braces": "9^9^9^9",
    "exponent": "7^{99999999999}",
    "exponent in parentheses": "7^(10^(10))",
    "power of powers": "((2^{9999})^{9999})^{9999}",
    "factorial": "999999999!",
    "factorial of a factorial": "(25!)!",
    "three exclamation marks": "99!!!",
    "binomial": r"\binom{99999999}{44444444}",
    "digits": "9" * 40_000,
    "braces": "{" * 20_000 + "24" + "}" * 20_000,
    "fractions": r"\frac{1}{" * 5_000 + "1" + "}" * 5_000,
    "open brackets": "(" * 20_000,
    "roots": r"\sqrt{" * 200 + "2" + "}" * 200,
    "bars": "|-3" * 40,
    "commas": "1," * 20_000,
    "equals signs": "=".join(["24"] * 900),
    "signs": r"\pm 1" * 300,
    "boxes": r"\boxed{24}, " * 4_000,
    "open boxes": r"\boxed{" * 7_000,
    "spaces": "2" + " " * 30_000 + "4",
    "text commands": r"\text{" * 3_000,
}


@pytest.mark.parametrize("name", COSTLY)
def test_a_costly_answer_is_refused_at_once(name: str):
    started = time.monotonic()
    reward, reason = judged(rf"\boxed{{{COSTLY[name]}}}", "25")
    assert reward == 0.0
    assert reason.split(":")[0] in REASONS
    assert time.monotonic() - started < DEADLINE_S


def test_the_reason_says_what_was_too_much():
    assert judged(r"\boxed{9^{9^{9^{9}}}}", "25") == (0.0, "wrong: too large")
    assert judged(r"\boxed{" + "{(" * 60 + ")}" * 60 + "}", "25") == (0.0, "wrong: nested too deep")
    assert judged(r"\boxed{" + "1+" * 4_000 + "1}", "25") == (0.0, "wrong: too long")


def test_a_gold_that_is_too_large_to_compute_is_met_by_its_own_text():
    assert judged(r"\boxed{2^{2^{99}} - 1}", "2^{2^{99}}-1") == (1.0, "correct")
    assert judged(r"\boxed{2^{2^{98}} - 1}", "2^{2^{99}}-1") == (0.0, "wrong: too large")


def test_large_numbers_that_answers_do_have_are_computed():
    assert judged(r"\boxed{4^{1012}}", "2^{2024}")[0] == 1.0
    assert judged(r"\boxed{\frac{100!}{98!}}", "9900")[0] == 1.0
    assert judged(r"\boxed{2^{2023}}", "2^{2024}")[0] == 0.0


def test_a_run_of_white_space_costs_no_more_than_a_word():
    started = time.monotonic()
    for before in ("answer", "answer is", "Answer: 7", "the answer is", r"\boxed{7}"):
        for white in (" ", "\n", "\t ", "\u3000"):
            assert judged(before + white * 20_000 + "b", "25")[0] == 0.0
    assert judged("Answer:" + " " * 20_000 + "25", "25")[0] == 1.0
    assert time.monotonic() - started < DEADLINE_S


@pytest.mark.parametrize(
    "filler", ["a", "9", "\\", "{", "$", "x=", "Answer: ", r"\boxed{1} no, ", "é\n"]
)
def test_a_megabyte_of_output_is_judged_by_its_end(filler: str):
    started = time.monotonic()
    long = filler * (1_000_000 // len(filler))
    assert judged(long + r" \boxed{24}", "24")[0] == 1.0
    assert judged(long, "24")[0] == 0.0
    assert time.monotonic() - started < DEADLINE_S


# --- anything ---

FRAGMENTS = re.findall(
    r"\S+",
    r"""
    \frac{ \dfrac12 \sqrt{ \sqrt[3]{ ^{ _{ } { ( ) [ ] \{ \} \left( \right) | , ; : . $ $$ \(
    \) \text{ \text{cm} \mathrm{ \boxed{ \pm \mp \cup \cap \in \mathbb{R} \infty \le \ge \ne <
    > = \approx \pi e x y n f(x) f(x)= x= \alpha \sin \log_2 \sum_{ \int_0^1 \lim \prod
    \binom{ \begin{pmatrix} & \\ i \end{pmatrix} \cdot \times \div / + - * ^ _ ! % \% ^\circ
    \ldots or and not 0 1 2 7 24 -3 0.5 1,000 1e9 10^{ 99 9999999 3/4 2\frac{1}{2} cm degrees
    Answer: the
    """,
)
PIECES = st.one_of(
    st.sampled_from(FRAGMENTS),
    st.sampled_from(FRAGMENTS),
    st.integers(-(10**30), 10**30).map(str),
    st.text(max_size=4),
    st.sampled_from(["∞", "≤", "√2", "x²", "½", "π", "\x00", "\u202e", "٣", "\x0crac{1}{2}"]),
)


@st.composite
def answers(draw: st.DrawFn) -> str:
    """What a confused model might put into a box: fragments, nested now and then."""
    text = draw(st.sampled_from(["", " "])).join(draw(st.lists(PIECES, max_size=9)))
    wrap = draw(st.sampled_from(["{}", "{}", r"\frac{{{}}}{{2}}", "({})", r"\{{{}\}}", "[{}, 1)"]))
    text = wrap.format(text)
    return text * draw(st.sampled_from([1, 1, 1, 1, 2, 30]))


GOLDS = ["24", r"\frac{1}{2}", "(1, 2)", r"[2, \infty)", "f(x) = 2x", "3, 4", "odd", r"5\text{ cm}"]


def test_any_text_gets_a_verdict_in_time():
    texts: list[tuple[str, str]] = []

    @settings(examples(40), database=None)
    @given(answers(), st.sampled_from(GOLDS))
    def collect(text: str, gold: str) -> None:
        texts.append((rf"\boxed{{{text}}}", gold))

    collect()
    with VerifierPool("math", {}, workers=1, timeout_s=DEADLINE_S) as pool:
        verdicts = [pool.submit(text, gold) for text, gold in texts]
        reasons = {future.result().reason.split(":")[0] for future in verdicts}
    assert reasons <= REASONS | {"timeout"}
