"""What counts as the answer, and when it is right."""

import pytest

from grpo.errors import UserError
from grpo.verify import VERIFIERS


def judged(name: str, response: str, answer: str) -> tuple[float, str]:
    verdict = VERIFIERS[name](response, answer)
    return verdict.reward, verdict.reason


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (r"so \boxed{24}", "24"),
        (r"\boxed{\frac{1}{2}}", "0.5"),
        (r"\boxed{\dfrac{2}{4}}", r"\frac{1}{2}"),
        (r"\boxed{x^2+2x+1}", r"(x+1)^2"),
        (r"\boxed{\sqrt{8}}", r"2\sqrt{2}"),
        (r"\boxed{(1, 2)}", "(1,2)"),
        (r"\boxed{1{,}000}", "1000"),
        ("Answer: 24", "24"),
    ],
)
def test_equal_values_in_other_clothes_are_right(response: str, answer: str):
    assert judged("math", response, answer) == (1.0, "correct")


@pytest.mark.parametrize(
    ("response", "answer"),
    [(r"\boxed{25}", "24"), (r"\boxed{(2,1)}", "(1,2)"), (r"\boxed{-\frac{1}{2}}", "0.5")],
)
def test_other_values_are_wrong(response: str, answer: str):
    assert judged("math", response, answer) == (0.0, "wrong")


@pytest.mark.parametrize("name", ["math", "exact"])
def test_only_the_last_box_counts(name: str):
    assert judged(name, r"\boxed{24} or rather \boxed{25}", "24") == (0.0, "wrong")
    assert judged(name, r"\boxed{25} no, \boxed{24}", "24") == (1.0, "correct")


@pytest.mark.parametrize("name", sorted(VERIFIERS))
def test_nothing_that_reads_like_an_answer_is_no_answer(name: str):
    assert judged(name, "", "24")[1].split(":")[0] == "no answer"
    assert judged(name, r"\boxed{24", "24") == (0.0, "no answer")


def test_a_gold_that_cannot_be_read_is_reported_as_such():
    assert judged("math", r"\boxed{24}", r"\text{}")[1] == "gold does not parse"


def test_exact_compares_text_up_to_white_space():
    assert judged("exact", r"\boxed{ a  b }", "a b") == (1.0, "correct")
    assert judged("exact", r"\boxed{0.5}", r"\frac{1}{2}") == (0.0, "wrong")


def test_the_verdict_says_what_was_judged():
    assert VERIFIERS["math"](r"\boxed{7}, hence \boxed{25}", "24").parsed == "25"
    assert VERIFIERS["math"](r"\boxed{7} and \boxed{25}", "24").parsed == "7, 25"


def test_an_unknown_verifier_lists_those_that_are_known():
    with pytest.raises(UserError, match=r"unknown verifier 'mth'; did you mean 'math'\?.*exact"):
        VERIFIERS["mth"]


@pytest.mark.parametrize(
    ("response", "answer", "verdict"),
    [
        (r"\boxed{4.2}", '{"value": ["4.2"], "tolerance": "1e-1"}', (1.0, "correct")),
        (r"\boxed{4.3}", '{"value": ["4.2"], "tolerance": "1e-1"}', (1.0, "correct: tolerance")),
        (r"\boxed{4.16\%}", '{"value": "4.2", "tolerance": 0.1}', (1.0, "correct: tolerance")),
        (r"\boxed{4.31}", '{"value": "4.2", "tolerance": "1e-1"}', (0.0, "wrong")),
        (r"\boxed{4.3}", '{"value": "4.2"}', (0.0, "wrong")),
        (r"\boxed{3, 7}", '{"value": ["7", "3"]}', (1.0, "correct: list")),
        (r"\boxed{x}", '{"value": "4.2", "tolerance": "1e-1"}', (0.0, "wrong")),
        (r"\boxed{2, 1}", r"\{1, 2\}", (1.0, "correct: list")),
        (r"\boxed{4.2}", "4.2", (1.0, "correct")),
    ],
)
def test_a_number_is_right_within_the_tolerance_of_its_reference(
    response: str, answer: str, verdict: tuple[float, str]
):
    assert judged("math_within", response, answer) == verdict


@pytest.mark.parametrize("answer", ['{"error": 1}', '{"value": "4.2", "tolerance": "about"}'])
def test_a_reference_without_a_value_or_with_a_strange_tolerance_is_named(answer: str):
    reward, reason = judged("math_within", r"\boxed{4.2}", answer)
    assert reward == 0 and reason.startswith("gold does not parse: ")
