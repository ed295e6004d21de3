"""What is said of a problem without solving it, and wrong answers that look like the reference."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo.config.data import DataConfig
from grpo.preflight.attacks import (
    GIVEAWAYS,
    GUESSES,
    LUCK,
    MOST_PARTS,
    Attacker,
    formulas,
    marks_of,
    numbers_of,
)
from grpo.preflight.mutate import (
    brackets_flipped,
    degree_dropped,
    inner_sign_changed,
    pair_swapped,
    unit_changed,
)
from tests.examples import examples


def attacker(template: str = "{problem}") -> Attacker:
    return Attacker(marks_of(DataConfig(name="d", path="d", template=template), {}), template, "2")


def said(problem: str, attack: str) -> list[str]:
    return [one for one, names in attacker().responses(problem).items() if attack in names]


@pytest.mark.parametrize(
    ("problem", "expected"),
    [
        (r"Simplify $\sqrt{8}$ and $$x+1.$$", [r"\sqrt{8}", "x+1"]),
        (r"Let \(a=1\) and \[b<2,\]", ["a=1", "b<2"]),
        ("What is 59 + 11? And (3+4)*2?", ["59 + 11", "(3+4)*2"]),
        ("It costs \\$5 or $7$, $1,000$ in all.", []),
        ("Find $x$, $x$ and $y$.", ["x", "y"]),
        ("draw(8 * dir(3)); 7 - and so on", []),
        ("", []),
    ],
)
def test_the_formulas_of_a_problem_are_those_that_are_more_than_a_number(
    problem: str, expected: list[str]
):
    assert formulas(problem) == expected


@pytest.mark.parametrize(
    ("problem", "expected"),
    [
        ("Ann has 3 apples, 1,200 pears and 2.5 kg; 3 more.", ["3", "1,200", "2.5"]),
        ("from -4 to x_1 in 12, 13, and 14.", ["-4", "12", "13", "14"]),
        ("none", []),
    ],
)
def test_the_numbers_of_a_problem_are_read_as_they_are_written(problem: str, expected: list[str]):
    assert numbers_of(problem) == expected


def test_each_attack_says_what_its_name_says():
    problem = "Is 91 prime or composite, if $7x=91$ and 13 is not?"
    assert said(problem, "its own text") == [problem]
    assert said(problem, "its own text, marked") == [rf"\boxed{{{problem}}}"]
    assert said(problem, "a formula of it") == [r"\boxed{7x=91}"]
    assert said(problem, "its first number") == [r"\boxed{91}"]
    assert said(problem, "its last number") == [r"\boxed{13}"]
    assert said(problem, "its only number") == []
    assert said("Is 7 odd?", "its only number") == [r"\boxed{7}"]
    assert said(problem, "any number of it") == [rf"\boxed{{{n}}}" for n in (91, 7, 13)]
    assert said(problem, "both choices")[:2] == [
        r"\boxed{prime} or \boxed{composite}",
        r"\boxed{Yes} or \boxed{No}",
    ]
    assert r"\boxed{prime or composite}" in said(problem, "both choices")
    assert said(problem, "one of two choices")[:2] == [r"\boxed{prime}", r"\boxed{composite}"]
    assert r"\boxed{}" in said(problem, "an empty answer")
    assert said(problem, "the commonest reference") == [r"\boxed{2}"]


def test_many_boxes_begin_and_end_in_words_so_that_no_single_box_is_right_by_chance():
    boxes, one_box = said("Add $a+b$ and 5.", "many boxes")
    parts = boxes.split(". Or it is ")
    assert parts[1:3] == [r"\boxed{a+b}", r"\boxed{5}"]
    assert parts[0] == parts[-1] == r"\boxed{\text{one of these}}"
    assert one_box == r"\boxed{a+b, 5, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9}"


def test_answers_are_given_in_every_mark_that_the_prompt_asks_for():
    asks = '{problem}\nEnd with <answer>...</answer> or a line "Answer: ...".'
    made = attacker(asks).responses("$x+1$")
    names = [one for one, attacks in made.items() if "a formula of it" in attacks]
    assert names == [r"\boxed{x+1}", "<answer>x+1</answer>", "Answer: x+1"]
    marks = marks_of(DataConfig(name="d", path="d"), {"mark": "####"})
    assert [mark("5") for mark in marks] == [r"\boxed{5}", "#### 5"]


def test_the_prompt_itself_is_said_too():
    """Its instruction may hold an example in a box, as that of the numbers game does."""
    made = attacker(r"{problem} Use a box, e.g. \boxed{(1 + 2) / 3}.").responses("Make 1.")
    assert made[r"Make 1. Use a box, e.g. \boxed{(1 + 2) / 3}."] == ["its own text"]


@given(st.text(alphabet="ab12 .,$\\()[]{}+-or?:", max_size=400))
@examples(200)
def test_any_problem_is_attacked_by_known_names_a_bounded_number_of_times(problem: str):
    made = attacker().responses(problem)
    assert {name for names in made.values() for name in names} <= {*GIVEAWAYS, *GUESSES, *LUCK}
    assert len(made) <= 2 * MOST_PARTS + 50


def test_a_long_problem_has_no_more_parts_than_are_tried():
    problem = " ".join(f"$x+{i}$ and {i}" for i in range(1000))
    assert len(formulas(problem)) == len(numbers_of(problem)) == MOST_PARTS
    assert len(attacker().responses(problem)) <= 2 * MOST_PARTS + 50


# --- wrong answers made from the reference ---


@pytest.mark.parametrize(
    ("gold", "expected"),
    [
        ("[0,1)", "(0,1]"),
        (r"\left[ \frac{1}{2}, 8 \right]", r"( \frac{1}{2}, 8 )"),
        (r"(-\infty,2) \cup (3,\infty)", r"[-\infty,2] \cup [3,\infty]"),
        ("(1,2)", None),  # a pair
        ("[1,2,3]", None),
        ("5", None),
        ("", None),
    ],
)
def test_flipped_brackets(gold: str, expected: str | None):
    flipped = brackets_flipped(gold)
    assert (flipped and flipped.replace(" ", "")) == (expected and expected.replace(" ", ""))


@pytest.mark.parametrize(
    ("gold", "expected"),
    [
        ("(3, -4)", "(-4, 3)"),
        (r"\left( 3, \frac{\pi}{2} \right)", r"(\frac{\pi}{2}, 3)"),
        ("(1,2,3)", "(2, 1, 3)"),
        (r"(\frac{1,000}{3}, 2)", r"(2, \frac{1,000}{3})"),
        ("(2,2)", None),
        ("(1,2),(2,1)", None),  # both turned round are the same set
        (r"(-\infty, 3)", None),
        ("1, 2", None),
        ("(5)", None),
    ],
)
def test_swapped_pair(gold: str, expected: str | None):
    assert pair_swapped(gold) == expected


@pytest.mark.parametrize(
    ("gold", "expected"),
    [
        ("x + 3", "x - 3"),
        (r"-13x-3", "-13x+3"),
        (r"2 - \sqrt{3}", r"2 + \sqrt{3}"),
        ("-5", None),
        (r"\text{x-axis}", None),
        ("(-1)^{n-1} 2n", None),
        ("7", None),
    ],
)
def test_changed_sign_within(gold: str, expected: str | None):
    changed = inner_sign_changed(gold)
    assert (changed and changed.replace(" ", "")) == (expected and expected.replace(" ", ""))


@pytest.mark.parametrize(
    ("gold", "expected"),
    [
        (r"15\mbox{ cm}^2", r"15\mbox{ m}^2"),
        (r"\$18.90", r"18.90\text{ cents}"),
        (r"\$32,\!348", r"32,\!348\text{ cents}"),
        (r"20\text{ degrees}", r"20\text{ radians}"),
        ("45 mph", "45 km/h"),
        (r"\text{4:30 p.m.}", None),
        ("3 m", None),  # may be the letter
        (r"5\sin x", None),
        ("6 ways", None),
    ],
)
def test_another_unit(gold: str, expected: str | None):
    assert unit_changed(gold) == expected


@pytest.mark.parametrize(
    ("gold", "expected"),
    [
        (r"2\sin 20^\circ", r"2\sin 20"),
        (r"\cos(15^{\circ})", r"\cos(15)"),
        ("\\tan 5°", r"\tan 5"),
        (r"90^\circ", None),
        (r"\sin x", None),
    ],
)
def test_a_degree_is_dropped_where_a_function_reads_it(gold: str, expected: str | None):
    assert degree_dropped(gold) == expected
