"""The task of short stories: what is asked, what is right, and who sees what."""

import re
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.real import judged, mentions_only
from grpo.config.load import load_data
from grpo.data import load_rows
from grpo.data.stories import stories
from grpo.errors import UserError
from grpo.eval.result import answers_folder, relative, result_of, save
from grpo.eval.store import Answered, AnswerStore
from grpo.types import Row, Turn, Verdict
from grpo.verify.registry import VERIFIERS

PLACES = {"first": 0, "second": 1, "third": 2, "last": 3}


def solved(problem: str) -> str:
    """The answer, worked out from the text alone."""
    if " writes: " in problem:
        listed = problem.split(": ")[1].split(".")[0]
        words = re.split(r", | and ", listed)
        return words[PLACES[problem.split()[-2]]]
    told = re.findall(r"([A-Z]\w+) (?:has|found|sold) (\d+) ", problem.split(".")[0])
    question = problem.split(". ")[1]
    if " the most " in question:
        return max(told, key=lambda pair: int(pair[1]))[0]
    if question.startswith("Who"):
        (wanted,) = re.findall(r"\d+", question)
        (who,) = [name for name, amount in told if amount == wanted]
        return who
    (asked,) = re.findall(r"(?:does|did) (\w+) ", question)
    return dict(told)[asked]


def rows_of(**options) -> list[Row]:
    return stories(**({"rows": 400} | options))


def test_every_answer_is_what_the_text_says():
    for row in rows_of():
        assert solved(row.problem) == row.answer, row.problem


def test_the_kinds_are_equally_frequent_and_each_row_says_its_own():
    assert Counter(row.extra["kind"] for row in rows_of()) == dict.fromkeys(
        ("amount", "owner", "most", "place"), 100
    )
    assert {row.extra["kind"] for row in rows_of(kinds=["most"], examples=1)} == {"most"}


def test_no_question_is_asked_twice_and_held_out_ones_are_in_no_training_set():
    train, heldout = rows_of(rows=3000), rows_of(rows=400, split="heldout", seed=5)
    assert len({row.problem for row in train}) == 3000
    assert not {row.problem for row in train} & {row.problem for row in heldout}


def test_the_same_seed_gives_the_same_rows_in_the_same_order():
    assert rows_of(seed=3) == rows_of(seed=3)
    assert rows_of(seed=3) != rows_of(seed=4)


def test_answered_questions_go_before_each_and_none_of_them_is_about_anybody_in_it():
    for row in rows_of(rows=40, examples=4):
        asked, answers = row.earlier[::2], row.earlier[1::2]
        assert [turn.role for turn in row.earlier] == ["user", "assistant"] * 4
        for question, answer in zip(asked, answers, strict=True):
            assert answer == Turn("assistant", f"Answer: {solved(question.text)}")
            assert not set(re.findall(r"\b(Sam|Eve)\b", row.problem))


def test_no_examples_are_no_earlier_turns():
    assert {row.earlier for row in rows_of(rows=20, examples=0)} == {()}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rows": 0}, "rows is 0, expected at least 1"),
        ({"kinds": [], "examples": 0}, "kinds .their number. is 0, expected at least 1"),
        ({"largest": 3}, "largest is 3, expected at least 4"),
        ({"largest": 10_001}, "largest is 10001, expected 10,000 at most"),
        ({"kinds": ["most"], "examples": 2}, "examples is 2 and kinds has 1: there is one example"),
        (
            {"kinds": ["place"], "examples": 1, "rows": 10**6, "split": "heldout"},
            "only [0-9]+ distinct heldout",
        ),
    ],
)
def test_what_cannot_be_asked_for_is_said(options, said, monkeypatch):
    monkeypatch.setattr("grpo.data.stories._DRY_DRAWS", 8)
    with pytest.raises(UserError, match=said):
        stories(**options)


def test_a_kind_that_there_is_not_is_an_error_that_lists_the_kinds():
    with pytest.raises(UserError, match=r"option 'kinds': Input should be 'amount', 'owner'"):
        load_rows(load_data("stories", ["task.kinds=[amuont]"]))


def test_the_verifier_that_the_declaration_names_pays_the_form_that_the_examples_show():
    row = load_rows(load_data("stories", ["task.rows=4"]))[0]
    exact = VERIFIERS["exact"]
    assert exact(f"Answer: {row.answer}", row.answer).reward == 1
    assert exact(f"It is {row.answer}.", row.answer).reward == 0
    assert row.earlier[1].text.startswith("Answer: ")


# --- the rule of benchmarks/real.py, which shares nothing with the reward's ---


@pytest.mark.parametrize(
    ("response", "answer", "right"),
    [
        ("Answer: Rosa", "Rosa", True),
        ("rosa found 45 of them", "Rosa", True),
        ("Ben", "Rosa", False),
        ("Ben, Rosa or Tom", "Rosa", False),
        ("", "Rosa", False),
        ("Answer: 45", "45", True),
        ("Rosa has 45, not 7", "45", False),
        ("It is not 45", "45", False),
        ("-45", "45", False),
        ("45 or 7", "45", False),
        ("Plums", "plums", True),
        ("Answer: plums and coins", "plums", False),
        ("pears, of which 2 are lemons", "pears", False),
        ("Answer: plum", "plums", False),
    ],
)
def test_a_response_is_right_that_mentions_the_answer_and_nothing_else_that_is_asked_for(
    response, answer, right
):
    assert mentions_only(response, answer) is right


def test_an_evaluation_is_judged_once_more_by_the_other_rule(tmp_path: Path):
    """Two questions with two answers each. The reward's rule pays the marked one of the first; the
    other rule takes the second of its answers as well, and of the second question none."""

    def answered(serial: int, kind: str, answer: str, *responses: tuple[str, float]) -> Answered:
        verdicts = tuple(Verdict(reward, "", "made") for _, reward in responses)
        texts = tuple(text for text, _ in responses)
        labels = {"kind": kind}
        lengths, ends = (4,) * len(texts), ("stop",) * len(texts)
        return Answered(
            serial, str(serial), "asked", answer, texts, lengths, ends, verdicts, labels
        )

    groups = [
        answered(0, "amount", "25", ("Answer: 25", 1.0), ("25 nuts", 0.0)),
        answered(1, "place", "plums", ("Answer: hats", 0.0), ("plums and hats", 0.0)),
    ]
    path = tmp_path / "step_000040.json"
    store = AnswerStore(answers_folder(path) / "stories.parquet", {}, {})
    store.finish(groups)
    save([result_of("stories", groups, relative(store.path, tmp_path))], path)
    (found,) = judged(tmp_path)
    assert (found.step, found.rewarded.value, found.mentioned.value) == (40, 0.25, 0.5)
    assert found.by_kind == {"amount": 0.5, "place": 0.0}
