r"""Where a response gives its answer, and where it gives none."""

import pytest

from grpo.verify import VERIFIERS
from grpo.verify.answers import TAIL_CHARS, Given, after_thinking, final_answer, stated


def given(response: str, **how: object) -> str | None:
    found = final_answer(response, **how)
    return None if found is None else found.text


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (r"First \boxed{40}. Wait, it is \boxed{42}.", "42"),
        (r"\boxed{3} and \boxed{4}", "3, 4"),
        (r"$\bbox[5px]{42}$", "42"),
        (r"\framebox{42}", "42"),
        (r"\boxed4", "4"),
        ("<answer>\\frac{1}{2}</answer>", r"\frac{1}{2}"),
        ("<answer>41</answer> no, <answer> 42\n</answer>", "42"),
        (r"\boxed{42} <answer>41</answer>", "42"),
        ("Answer: 64", "64"),
        ("**Answer:** 64. That is all.", "64."),
        ("The answer is: 64", "64"),
        ("Answer: The final answer is 64.", "64."),
        ("答案：42。", "42"),
        ("Respuesta: 42", "42"),
        ("答え：42。", "42"),
    ],
)
def test_the_last_mark_is_the_answer(response: str, answer: str):
    assert given(response) == answer


@pytest.mark.parametrize(
    "response", ["", "It is 42.", "the total is $42$", "#### 42", "A: 42", "</answer>42", "故选C。"]
)
def test_prose_marks_nothing(response: str):
    assert final_answer(response) is None


def test_the_data_may_have_a_mark_of_its_own():
    assert given("16 - 7 = 9\n#### 9", mark="####") == "9"
    assert given("It is 9.\nA: 9", mark="A:") == "9"
    assert given("CIA: 9", mark="A:") is None  # only where a word begins


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (r"<think>a \boxed{41}</think> \boxed{42}", "42"),
        (r"a \boxed{41}</think> \boxed{42}", "42"),  # the prompt had opened it
        (r"<think>\boxed{42}</think> So it is 41.", None),
        (r"<think>\boxed{42} hmm wait", ""),
        (r"<think>a</think> \boxed{42} <think>or", ""),
        (r"[THINK]\boxed{41}[/THINK]\boxed{42}", "42"),
    ],
)
def test_only_what_follows_the_thinking_counts(response: str, answer: str | None):
    assert given(response) == answer


def test_thinking_that_began_long_ago_is_still_thinking():
    assert after_thinking("<think>" + "x" * 2 * TAIL_CHARS) is None
    assert given("<think>" + "x" * 2 * TAIL_CHARS + r"\boxed{42}") == ""


@pytest.mark.parametrize("response", [r"\boxed{42", "<answer>42", "<answer>1</answer> <answer>42"])
def test_a_mark_that_is_never_closed_is_no_answer(response: str):
    assert given(response) == ""


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("Answer: 4", ""),  # 42, cut off
        ("Answer: 42\n", "42"),
        (r"so \boxed{42} because it", "42"),
        (r"so \boxed{42} and \boxed{4", ""),
    ],
)
def test_a_response_that_was_cut_off_has_an_answer_where_its_mark_was_complete(response, answer):
    assert given(response, truncated=True) == answer
    for name, expected in (("math", "42"), ("exact", "42")):
        assert VERIFIERS[name](response, expected, truncated=True).reward == (answer == "42")


def test_what_announces_the_answer_is_known():
    assert final_answer(r"\boxed{4}") == Given("4", "box")
    assert final_answer("Answer: 4") == Given("4", "line")
    assert final_answer("<answer>4</answer>") == Given("4", "tag")


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("The answer is **42**.", "42"),
        ("The correct answer is (B).", "(B)"),
        ("最终答案为$42$。", "$42$"),
        ("故选C。", "C"),
        ("It may be 42.", None),
    ],
)
def test_prose_may_state_the_answer(response: str, answer: str | None):
    assert stated(response) == answer


def test_prose_counts_only_where_it_is_asked_for():
    response = "To add 59 + 11 with intention, let us explore what 59 + 11"
    assert VERIFIERS["math"](response, "70").reason == "no answer: none is marked"
    assert VERIFIERS["math"](response, "70", marked="preferred").reason == "wrong: not evaluated"
    assert VERIFIERS["math"]("it follows that it is $70$", "70", marked="preferred").reward == 1
    assert VERIFIERS["exact"]("so\n70", "70").reason == "no answer: none is marked"
    assert VERIFIERS["exact"]("so\n70", "70", marked="preferred").reward == 1
    # What is stated decides, whatever else would fit.
    stated_41 = VERIFIERS["math"]("70 = 70. The answer is 41.", "70", marked="preferred")
    assert stated_41.reason == "wrong"


def test_a_tower_of_powers_in_prose_is_not_computed():
    verdict = VERIFIERS["math"]("so it is $9^{9^{9^{9}}}$", "7", marked="preferred")
    assert verdict.reason == "wrong: too large"


@pytest.mark.parametrize(
    ("line", "reward"),
    [
        ("64, in total", 1),
        ("64, which is the total", 1),
        ("64 because 8 times 8 is 64", 1),
        ("64, since 8*8 = 64", 1),
        ("64 - the total number of coins", 1),
        ("65, since 8*8 = 64", 0),
        ("64, or as some say 65", 0),
        ("64, which is not the total", 0),
    ],
)
def test_a_line_may_go_on_in_words_that_take_nothing_back(line: str, reward: float):
    assert VERIFIERS["math"](f"Answer: {line}", "64").reward == reward
    # A box is the answer alone.
    assert VERIFIERS["math"](rf"\boxed{{\text{{{line}}}}}", "64").reward == 0
