"""What rewarded answers have in common: shares by hand, and one warning of each."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo.config.verifier import VerifierConfig
from grpo.train.paid import COPIED, CUT, ECHO, UNMARKED, PaidAnswer, PaidFor, is_echo
from grpo.types import FinishReason, Group, Prompt, Response, Row, ScoredGroup, Verdict
from tests.examples import examples

LAX = VerifierConfig(name="math", options={"marked": "preferred"})
ECHOED = "To add 59 + 11 with intention, let's explore what 59 + 11"


def answer(
    text: str,
    parsed: str = "",
    problem: str = "",
    reference: str = "",
    reward: float = 1.0,
    finish: FinishReason = "stop",
    serial: int = 0,
) -> ScoredGroup:
    """A group of one response."""
    ids = np.zeros(3, np.int32)
    response = Response(ids, ids.astype(np.float32), finish, (), text)
    prompt = Prompt(serial, Row("", problem, reference), (1,))
    return ScoredGroup(Group(prompt, (response,)), (Verdict(reward, parsed, ""),))


def shares(*groups: ScoredGroup, verifier: VerifierConfig = LAX) -> dict[str, float]:
    return PaidFor(verifier).look_at(groups).shares()


def test_shares_are_of_the_rewarded_answers_alone():
    step = [
        answer(ECHOED, "59 + 11", "What is 59 + 11?", "70", finish="length"),
        answer(r"\boxed{70}", "70", "What is 59 + 11?", "70"),
        answer(r"Answer: 4", "4", "What is 2+2?", "4", reward=0.5),
        answer("same", "", "one", "1"),
        answer(" same\n", "", "two", "2"),
        answer("same", "", "three", "3", reward=0.0, finish="length"),
        answer("what is 9+9", "9+9", "What is 9+9?", "18", reward=-1.0),
    ]
    assert shares(*step) == {ECHO: 1 / 5, CUT: 1 / 5, COPIED: 2 / 5, UNMARKED: 3 / 5}


def test_where_nothing_is_rewarded_there_is_no_share():
    for step in ([], [answer("a", reward=0.0)]):
        values = shares(*step)
        assert set(values) == {ECHO, CUT, UNMARKED, COPIED}
        assert all(math.isnan(value) for value in values.values())


def test_programs_mark_no_answer():
    assert UNMARKED not in shares(answer("x"), verifier=VerifierConfig(name="code"))


@pytest.mark.parametrize(
    ("parsed", "problem", "reference", "echo"),
    [
        ("59 + 11", "What is 59 + 11? Put the answer in \\boxed{}.", "70", True),
        ("59+11", "What is $59 + 11$?", "70", True),
        (r"\frac{57}{160}", r"Convert $\frac{57}{160}$ to a decimal.", "0.35625", True),
        ("99^2+99+1", "Compute $99^2+99+1$ in your head.", "9901", True),
        ("THE Capital", "Name the capital.", "Paris", True),
        ("5", "There are 59 of them.", "7", False),
        ("5", "It is 3.5 m, or 1,5 ft long.", "7", False),
        ("5", "There are 5 of them.", "7", True),
        ("cat", "Concatenate.", "dog", False),
        ("5", "There are 5 of them, and 5 more.", "5", False),  # so is the right answer
        ("B", "A) 1 B) 2", "B", False),
        ("5", "There are 5.", r"So it is \boxed{5}", False),
        ("5", "There are 5.", r"Not 5 but \boxed{7}", True),
        ("", "What is 59 + 11?", "70", False),
        (" $ $ ", "What is 59 + 11?", "70", False),
        ("70", "What is 59 + 11?", "70", False),
        ("x" * 195 + " + 12", "x" * 195 + " + 123", "0", True),  # the verdict was cut at 200
    ],
)
def test_an_echo_stands_in_the_problem_as_a_whole_and_the_reference_does_not(
    parsed: str, problem: str, reference: str, echo: bool
):
    parsed = parsed[:200]
    assert is_echo(PaidAnswer(problem, reference, "", parsed, "stop")) == echo


@examples(100)
@given(parsed=st.text(max_size=20), problem=st.text(max_size=40))
def test_what_equals_its_reference_is_never_an_echo(parsed: str, problem: str):
    assert not is_echo(PaidAnswer(problem, parsed, "", parsed, "stop"))


def test_texts_are_copies_where_the_references_differ_or_where_they_are_long():
    short, long = "So it is 4.", "So it is 4. " * 20
    assert shares(answer(short, "", "a", "4"), answer(short, "", "b", "4"))[COPIED] == 0
    assert shares(answer(short, "", "a", "4"), answer(short, "", "b", "5"))[COPIED] == 1
    assert shares(answer(long, "", "a", "4"), answer(long, "", "b", "4"))[COPIED] == 1
    assert shares(answer(long, "", "a", "4"), answer(long, "", "a", "4"))[COPIED] == 0, "siblings"


def test_the_mark_of_the_data_counts_as_a_mark():
    marked = VerifierConfig(name="exact", options={"marked": "preferred", "mark": "####"})
    assert shares(answer("So\n#### 4"), verifier=marked)[UNMARKED] == 0
    assert shares(answer("So\n#### 4"))[UNMARKED] == 1
    assert shares(answer("<think>so \\boxed{4}"))[UNMARKED] == 0, "begun and not finished"


def test_long_runs_of_spaces_hold_nobody_up():
    """On their own they cost minutes; a hang shows as a test that never ends."""
    for text in ("Answer: a" + " " * 49_000 + "b", "answer " + " \n" * 24_000):
        shares(answer(text))


# --- warnings ---


def echoes(count: int, problems: int = 8) -> list[ScoredGroup]:
    groups: list[ScoredGroup] = []
    for index in range(count):
        a = 20 + index % problems
        text = f"To add {a} + 11 with intention"
        groups.append(answer(f"{text} {index}", f"{a} + 11", f"What is {a} + 11?", str(a + 11)))
    return groups


def honest(count: int) -> list[ScoredGroup]:
    return [answer(rf"As {n}: \boxed{{{n}}}", str(n), "What is it?", str(n)) for n in range(count)]


def warned(watch: PaidFor, step: list[ScoredGroup]) -> list[str]:
    return list(watch.warnings(7, watch.look_at(step)))


def test_a_warning_has_the_figures_two_examples_of_two_problems_and_where_to_read_on():
    (text,) = warned(PaidFor(VerifierConfig()), [*echoes(12), *honest(4)])
    lines = text.split("\n")
    assert lines[0].startswith("step 7: 12 of 16 rewarded answers (reward/echo_share 0.75) give")
    assert lines[1:5] == [
        "  problem 'What is 20 + 11?', reference '31', read as '20 + 11':",
        "    'To add 20 + 11 with intention 0'",
        "  problem 'What is 21 + 11?', reference '32', read as '21 + 11':",
        "    'To add 21 + 11 with intention 1'",
    ]
    assert lines[5].endswith("docs/howto/gamed-reward.md") and len(lines) == 6


def test_each_sign_is_warned_of_once():
    watch = PaidFor(LAX)
    cut = [answer(f"{n} so far", problem=str(n), finish="length") for n in range(9)]
    assert [sign in text for text in warned(watch, cut) for sign in (CUT, UNMARKED)] == [
        *(True, False),
        *(False, True),
    ]
    assert warned(watch, cut) == []
    (late,) = warned(watch, echoes(12))
    assert ECHO in late


@pytest.mark.parametrize(
    "step",
    [
        [],
        honest(64),
        echoes(7),  # too few to say anything
        echoes(16, problems=3),  # siblings are alike
        [*echoes(12), *honest(36)],  # a quarter and no more
    ],
)
def test_what_may_be_chance_is_not_warned_of(step: list[ScoredGroup]):
    assert warned(PaidFor(VerifierConfig()), step) == []


def test_copies_are_shown_from_the_most_frequent_text():
    rare = [answer("rare", problem=f"r{n}", reference=f"r{n}") for n in range(2)]
    often = [answer("often", problem=f"o{n}", reference=f"o{n}") for n in range(6)]
    (text,) = warned(PaidFor(VerifierConfig(name="code")), [*rare, *often])
    assert "8 of 8" in text and text.count("'often'") == 2 and "'rare'" not in text


def test_only_where_prose_is_paid_on_purpose_is_its_share_warned_of():
    prose = [answer(f"It is {n}", problem=str(n), reference=str(n)) for n in range(9)]
    assert len(warned(PaidFor(LAX), prose)) == 1
    assert warned(PaidFor(VerifierConfig(name="countdown")), prose) == []
    assert shares(*prose, verifier=VerifierConfig(name="countdown"))[UNMARKED] == 1
