"""The numbers game: exact arithmetic, every number once, and nothing is ever run."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo.verify import VERIFIERS
from tests.examples import examples

GOLD = "98 from 44 19 35"


def judged(response: str, answer: str = GOLD) -> tuple[float, str]:
    verdict = VERIFIERS["countdown"](response, answer)
    return verdict.reward, verdict.reason


def boxed(expression: str, answer: str = GOLD) -> tuple[float, str]:
    return judged(f"\\boxed{{{expression}}}", answer)


@pytest.mark.parametrize(
    ("expression", "answer"),
    [
        ("44+19+35", GOLD),
        (" (19 + 44)\n+ 35 ", GOLD),
        ("-(19-44)", "25 from 44 19"),
        ("8/(3-8/3)", "24 from 3 3 8 8"),  # 8 / (1/3): rounding would miss it
        ("1/2+1/3+1/6", "1 from 1 1 1 2 3 6"),
        ("7*+6", "42 from 6 7"),
        ("2-5", "-3 from 5 2"),
    ],
)
def test_an_expression_that_reaches_the_target_is_right(expression: str, answer: str):
    assert boxed(expression, answer) == (1.0, "correct")


@pytest.mark.parametrize(
    "expression",
    ["44+19", "44+19+35+0", "44+19+35-35+35", "98", "4+4+19+35+36", "44+54", "4419+35"],
)
def test_each_number_must_be_used_exactly_once(expression: str):
    assert boxed(expression) == (0.0, "wrong: other numbers")


def test_another_value_is_wrong():
    assert boxed("44+19-35") == (0.0, "wrong")


def test_dividing_by_zero_is_wrong():
    assert boxed("5/(3-3)", "5 from 5 3 3") == (0.0, "wrong: divides by zero")


@pytest.mark.parametrize(
    "expression",
    [
        "44+19+35=98",
        "44.0+19+35",
        "44+19+x",
        "44 19 35",
        "4 4+19+35",
        "044+19+35",
        "44+19+35,0",
        "(44)(19)+35",
        "44+(19+35",
        "()",
        "44//19+35",
        "44**19**35",
        "44\\times 19",
        "４４+19+35",  # full-width digits
        "4_4+19+35",
        "__import__('os').system('true')",
        "+".join(["44"] * 100),
        "(" * 5000 + "44" + ")" * 5000,
    ],
)
def test_what_is_no_expression_of_whole_numbers_is_wrong(expression: str):
    assert boxed(expression) == (0.0, "wrong: no such expression")


@pytest.mark.parametrize("depth", [20, 99, 198])
def test_deep_nesting_within_the_limit_is_read(depth: int):
    assert boxed("-" * depth + "7", f"{7 * (-1) ** depth} from 7") == (1.0, "correct")
    nested = "(" * min(depth, 99) + "7" + ")" * min(depth, 99)
    assert boxed(nested, "7 from 7") == (1.0, "correct")


def test_the_last_box_counts_and_tags_count_where_there_is_none():
    assert judged(r"\boxed{44+19}, no: \boxed{44+19+35}") == (1.0, "correct")
    assert judged(r"\boxed{44+19+35}, no: \boxed{44+19}")[0] == 0.0
    assert judged("<answer>1</answer> <answer> 44+19+35\n</answer> done") == (1.0, "correct")
    assert judged(r"\boxed{44} <answer>44+19+35</answer>")[0] == 0.0


@pytest.mark.parametrize(
    "response", ["", "44+19+35", r"\boxed{44+19+35", r"\boxed{}", "<answer>44", "</answer>44"]
)
def test_an_expression_that_is_not_marked_is_no_answer(response: str):
    assert judged(response) == (0.0, "no answer")


def test_tags_in_the_wrong_order_are_no_answer():
    assert judged("</answer> 44+19+35 <answer>") == (0.0, "no answer")


@pytest.mark.parametrize("answer", ["", "98", "98 from", "x from 1 2", "98 from 44, 19, 35"])
def test_a_reference_of_another_form_is_reported(answer: str):
    assert boxed("44+19+35", answer) == (0.0, "gold does not parse")


def test_the_verdict_says_what_was_judged():
    assert VERIFIERS["countdown"](r"\boxed{44 +  19}", GOLD).parsed == "44 + 19"


Made = tuple[str, Fraction, list[int]]  # the text, its value, the numbers in it


def joined(left: Made, sign: str, right: Made) -> Made | None:
    (a_text, a, a_used), (b_text, b, b_used) = left, right
    if sign == "/" and b == 0:
        return None
    value = {"+": a + b, "-": a - b, "*": a * b, "/": a / b if b else a}[sign]
    return f"({a_text}){sign}({b_text})", value, a_used + b_used


numbers = st.integers(1, 99).map(lambda n: (str(n), Fraction(n), [n]))
expressions = st.recursive(
    numbers,
    lambda inner: (
        st.tuples(inner, st.sampled_from("+-*/"), inner)
        .map(lambda parts: joined(*parts))
        .filter(lambda made: made is not None)
    ),
    max_leaves=6,
)


@given(made=expressions, off=st.integers(-3, 3), extra=st.integers(1, 99))
@examples(50)
def test_random_expressions_are_right_for_their_own_value_and_numbers_alone(
    made: Made, off: int, extra: int
):
    text, value, used = made
    target = int(value) + off
    listed = " ".join(map(str, reversed(used)))
    expected = (1.0, "correct") if value == target else (0.0, "wrong")
    assert boxed(text, f"{target} from {listed}") == expected
    assert boxed(text, f"{target} from {listed} {extra}") == (0.0, "wrong: other numbers")


@given(st.text(alphabet="0123456789+-*/() ._,=xe\n\\{}", max_size=220))
@examples(200)
def test_no_text_brings_the_verifier_down(text: str):
    reward, reason = boxed(text)
    assert (reward == 1.0) == (reason == "correct")
    assert reason.split(":")[0] in ("correct", "wrong", "no answer")
