"""Rows that are chats: every turn reaches the prompt, or the row is refused with the reason."""

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo.config.data import Decontamination, Filters
from grpo.config.recipe import BuildConfig, DataConfig
from grpo.console import Screen
from grpo.data import PromptStream, load_rows, render
from grpo.data.contamination import compare
from grpo.data.filters import Counts, Sieve
from grpo.data.inspect import check
from grpo.data.prepare import prepare
from grpo.data.read import Fault, Record
from grpo.data.rows import to_row
from grpo.errors import UserError
from grpo.learner.build import build_tokenizer
from grpo.types import Row, Turn
from grpo.verify import VERIFIERS
from tests.examples import examples

TOKENIZER = build_tokenizer(BuildConfig(alphabet="abcdefghijklmnopqrstuvwxyz0123456789+=?.|<> \n"))
TOKENIZER.chat_template = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}|{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def said(role: str, content: object) -> dict[str, object]:
    return {"role": role, "content": content}


SYSTEM, SHOT, ANSWER, LAST = (
    said("system", "be brief."),
    said("user", "1+1?"),
    said("assistant", "2"),
    said("user", " 2+2? "),
)
EARLIER = (Turn("system", "be brief."), Turn("user", "1+1?"), Turn("assistant", "2"))
CHAT = Row("1", "2+2?", "4", earlier=EARLIER)


def config_of(**settings: object) -> DataConfig:
    values = {"name": "d", "path": "raw.jsonl", "chat": True, "decontaminate": {"against": []}}
    return DataConfig.model_validate(values | settings)


def read(problem: object, **settings: object) -> Row | Fault:
    record = Record("raw.jsonl:1", 1, {"prompt": problem, "answer": "4"})
    return to_row(record, config_of(**settings))


def refused(problem: object, **settings: object) -> str:
    found = read(problem, **settings)
    assert isinstance(found, Fault), found
    assert found.kind == "unreadable"
    return found.message


def written(name: str, *problems: object) -> None:
    rows = [json.dumps({"problem": problem, "answer": "4"}) for problem in problems]
    Path(name).write_text("\n".join(rows))


@pytest.mark.parametrize(
    "problem",
    [
        [SYSTEM, SHOT, ANSWER, LAST],
        json.dumps([SYSTEM, SHOT, ANSWER, LAST]),
        [json.dumps([SYSTEM, SHOT, ANSWER, LAST])],
        np.array([SYSTEM, SHOT, ANSWER, LAST]),
    ],
    ids=["list", "text", "text in a list", "array"],
)
def test_the_turns_before_the_last_user_message_are_kept_in_their_order(problem: object):
    row = read(problem)
    assert row == CHAT
    prompt = TOKENIZER.decode(
        list(render(CHAT, config_of(template="what is {problem}"), TOKENIZER))
    )
    assert prompt == ("<system>be brief.|<user>1+1?|<assistant>2|<user>what is 2+2?|<assistant>")


def test_a_chat_in_parquet_is_read_as_in_json(tmp_path: Path):
    path = tmp_path / "rows.parquet"
    values = [
        {"prompt": [SYSTEM, SHOT, ANSWER, LAST], "answer": 4},
        {"prompt": [SHOT], "answer": 2},
    ]
    pq.write_table(pa.Table.from_pylist(values), path)
    assert load_rows(config_of(path=str(path))) == [CHAT, Row("2", "1+1?", "2")]


@pytest.mark.parametrize("problem", [SHOT, [SHOT], json.dumps(SHOT)])
def test_a_chat_of_one_message_is_its_problem_with_or_without_a_template(problem: object):
    assert read(problem, chat=False) == read(problem) == Row("1", "1+1?", "4")


@pytest.mark.parametrize("problem", ["[1, 2] and {3}", '[{"a": 1}]', '"role"', "[{'x'}", "[[1]]"])
def test_text_that_only_resembles_json_stays_the_problem(problem: str):
    assert read(problem) == Row("1", problem, "4")


def text(words: object, **others: object) -> dict[str, object]:
    return {"type": "text", "text": words, **others}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ([text("2+2?")], "2+2?"),
        ([text("what is"), text("2+2?")], "what is\n2+2?"),
        (["what is", {"text": "2+2?"}], "what is\n2+2?"),
        ([text("2+2?", image_url=None)], "2+2?"),  # parquet fills up what other parts have
    ],
)
def test_parts_of_text_are_read(content: object, problem: str):
    assert read([said("user", content)]) == Row("1", problem, "4")


@pytest.mark.parametrize(
    ("problem", "reason"),
    [
        ([SYSTEM, SHOT, ANSWER], "ends with a turn of the assistant"),
        ([SYSTEM], "ends with a turn of the system"),
        ([SHOT, SYSTEM, LAST], "message 2 is a system turn"),
        ([SYSTEM, SYSTEM, LAST], "message 2 is a system turn"),
        ([SHOT, said("tool", "2"), LAST], "message 2 has the role 'tool'"),
        ([said("developer", "be brief."), LAST], "message 1 has the role 'developer'"),
        ([said("User", "2+2?")], "message 1 has the role 'User'"),
        ([SHOT, {**ANSWER, "tool_calls": [{"name": "add"}]}, LAST], "message 2 holds tool_calls"),
        ([SHOT, {**ANSWER, "reasoning_content": "1, 2"}, LAST], "holds reasoning_content"),
        ([{**LAST, "images": ["a.png"]}], "message 1 holds images"),
        ([SHOT, "2+2?"], "message 2 is '2\\+2\\?', expected an object with role"),
        ([said("user", None)], "has the content None"),
        ([SHOT, said("assistant", None), LAST], "message 2 has the content None"),
        ([said("user", [{"type": "image_url", "image_url": {"url": "u"}}])], "type 'image_url'"),
        ([said("user", [text("2+2?"), {"type": "image"}])], "a part of type 'image'"),
        ([said("user", [text("2+2?"), {"type": "input_audio"}])], "type 'input_audio'"),
        ([said("user", [text("2+2?", image="a.png")])], "has the part"),
        ([said("user", [text(None)])], "has the part"),
        ([said("user", [[]])], "has the part"),
        ([said("user", " ")], "no problem"),
        ([SHOT, ANSWER, said("user", "\ud835")], "half of a surrogate pair"),
        ([said("system", "\ud835"), LAST], "half of a surrogate pair"),
        (str([SYSTEM, LAST]), "turned into text"),
        (str(np.array([SYSTEM, LAST])), "turned into text"),
        ('[{"role": "user", "content": "2+', "turned into text"),
        ('[{"from": "human", "value": "2+2?"}]', "turned into text"),
        ([{"from": "human", "value": "2+2?"}], "expected text, a number, a list of one or a chat"),
    ],
)
def test_what_no_prompt_would_show_refuses_the_row_with_the_reason(problem: object, reason: str):
    assert re.search(reason, refused(problem))


def test_a_declaration_that_would_lose_a_turn_refuses_the_row():
    assert "chat of 4 turns, and data.chat is false" in refused(
        [SYSTEM, SHOT, ANSWER, LAST], chat=False
    )
    assert "data.system=null" in refused([SYSTEM, LAST], system="think.")
    assert read([SHOT, ANSWER, LAST], system="think.") == Row("1", "2+2?", "4", earlier=EARLIER[1:])


def test_an_answer_that_is_a_chat_is_refused():
    record = Record("raw.jsonl:1", 1, {"prompt": "1+1?", "answer": [SHOT]})
    found = to_row(record, config_of())
    assert isinstance(found, Fault) and "the answer is [{'role': 'user'" in found.message


PARTS: Any = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5) | st.binary(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "type", "text", "image"]), inner, max_size=3
        )
    ),
    max_leaves=8,
)


@given(PARTS, st.lists(st.fixed_dictionaries({"role": st.sampled_from("su"), "content": PARTS})))
@examples(100)
def test_whatever_stands_there_gives_a_row_or_a_fault(value: object, chat: list[object]):
    for problem in (value, chat, [*chat, LAST]):
        found = read(problem)
        assert isinstance(found, Fault) or found.problem.strip()


def test_rows_with_other_turns_are_no_duplicates_and_other_data_to_a_checkpoint():
    other = Row("1", "2+2?", "4", earlier=(Turn("system", "be long."),))
    for duplicates in ("exact", "normalized"):
        sieve = Sieve(Filters.model_validate({"duplicates": duplicates}), Counts())
        assert [sieve.keeps(row) for row in (CHAT, other, CHAT)] == [True, True, False]
    before, after = (
        PromptStream([row], config_of(), TOKENIZER, seed=0, longest_prompt=99)
        for row in (CHAT, other)
    )
    with pytest.raises(UserError, match="changed since the checkpoint"):
        after.load_state_dict(before.state_dict())


def test_the_last_user_message_is_what_benchmarks_are_compared_with():
    assert compare([CHAT], {"bench": ["2 + 2?"]}, Decontamination()).rows == {0}
    assert compare([CHAT], {"bench": ["1 + 1?"]}, Decontamination()).rows == set()


@pytest.mark.parametrize("out", ["out.jsonl", "out.parquet"])
def test_a_prepared_file_keeps_the_turns(out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    written("raw.jsonl", [SYSTEM, SHOT, ANSWER, LAST], "3+3?")
    prepare(config_of(), Path(out), Screen(io.StringIO(), io.StringIO()))
    assert load_rows(config_of(path=out)) == [CHAT, Row("2", "3+3?", "4")]


def test_the_check_says_how_many_rows_have_turns_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    written("raw.jsonl", [SYSTEM, SHOT, ANSWER, LAST], [SYSTEM, LAST], "3+3?")
    told = io.StringIO()
    check(config_of(), Screen(told, told))
    assert "of 3 rows 2 have a system turn and 1 earlier turns" in " ".join(told.getvalue().split())
    with pytest.raises(UserError, match=r"raw.jsonl:1 is a chat of 4 turns"):
        check(config_of(chat=False), Screen(told, told))


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for m in messages %}{% if m.role != 'system' %}{{ m.content }}{% endif %}{% endfor %}",
         "leaves out the turn of the system"),
        ("{{ messages[-1].content }}", "leaves out the turn of the system"),
        ("{{ raise_exception('no system role') }}", "refuses a chat of system.*no system role"),
        ("{{ messages[0].content.strap() }}", "refuses a chat of system, user, assistant, user"),
    ],
)  # fmt: skip
def test_a_template_that_refuses_or_loses_a_turn_is_told(template: str, reason: str):
    tokenizer = build_tokenizer(BuildConfig(alphabet="ab"))
    tokenizer.chat_template = template
    with pytest.raises(UserError, match=rf"data 'd', row '1': .*{reason}"):
        render(CHAT, config_of(), tokenizer)


def test_a_system_text_of_the_declaration_that_the_template_loses_is_told():
    tokenizer = build_tokenizer(BuildConfig(alphabet="ab"))
    tokenizer.chat_template = "{{ messages[-1].content }}"
    with pytest.raises(UserError, match="leaves out the turn of the system"):
        render(Row("1", "2+2?", "4"), config_of(system="be brief."), tokenizer)


def test_a_template_may_leave_out_what_an_assistant_thought():
    tokenizer = build_tokenizer(BuildConfig(alphabet="ab"))
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content.split('</think>')[-1] }}{% endfor %}"
    )
    thought = Turn("assistant", "<think>b</think>a")
    row = Row("1", "b", "4", earlier=(Turn("user", "a"), thought))
    assert tokenizer.decode(list(render(row, config_of(), tokenizer))) == "aab"


def test_a_formula_of_an_earlier_turn_is_no_answer_either():
    turns = (Turn("user", "Here is $x^2-1$."), Turn("assistant", "I see it."))
    row = Row("1", "Factor it.", "(x-1)(x+1)", earlier=turns)
    assert row.asked == "Here is $x^2-1$.\n\nI see it.\n\nFactor it."
    for problem, reward in ((row.asked, 0.0), (row.problem, 1.0)):
        assert VERIFIERS["math"](r"\boxed{x^2-1}", row.answer, problem=problem).reward == reward
    assert VERIFIERS["math"](r"\boxed{(x+1)(x-1)}", row.answer, problem=row.asked).reward == 1.0
