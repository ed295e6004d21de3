"""Rows with their place in every complaint, and an order that resumes exactly."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo.config.load import load_data
from grpo.config.recipe import BuildConfig, DataConfig
from grpo.data import PromptStream, eval_prompts, load_rows, render
from grpo.errors import UserError
from grpo.learner.build import build_tokenizer
from grpo.types import Row
from tests.examples import examples

TOKENIZER = build_tokenizer(BuildConfig(alphabet="0123456789+=}\n"))
NUMBERS = DataConfig(name="numbers", path="unused.jsonl")


def written(tmp_path: Path, *rows: object, name: str = "rows.jsonl") -> DataConfig:
    path = tmp_path / name
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows))
    return DataConfig(name="numbers", path=str(path))


def stream(count: int = 7, seed: int = 3, shuffle: bool = True, longest: int = 99) -> PromptStream:
    rows = [Row(str(i), f"{i}+1", str(i + 1)) for i in range(count)]
    config = NUMBERS.model_copy(update={"shuffle": shuffle})
    return PromptStream(rows, config, TOKENIZER, seed=seed, longest_prompt=longest)


def test_columns_are_found_by_their_candidates(tmp_path: Path):
    chat = [{"role": "user", "content": "2+2"}]
    config = written(
        tmp_path,
        {"prompt": chat, "reward_model": {"ground_truth": 4}, "extra_info": {"index": "q7"}},
        {"question": "1+1", "answer": ["2"]},
    )
    assert load_rows(config) == [Row("q7", "2+2", "4"), Row("2", "1+1", "2")]


def test_exact_duplicates_are_kept_once(tmp_path: Path):
    row = {"problem": "1+1", "answer": "2"}
    assert len(load_rows(written(tmp_path, row, row, {**row, "answer": "3"}))) == 2


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (['{"problem": "1+1", "answer": "2"}', '{"problem": "1+1"}'], "rows.jsonl:2: no answer"),
        (['{"problem": "1+1", "answer": ""}'], "rows.jsonl:1: no answer"),
        (['{"problem": null, "answer": "2"}'], "rows.jsonl:1: no problem"),
        (['{"problem": "1+1", "answer": "2"}', "{oops"], "rows.jsonl:2 is not JSON"),
        ([""], "is empty"),
        (["7"], "expected an object"),
    ],
)
def test_a_bad_row_is_named_by_its_line(tmp_path: Path, rows: list[str], said: str):
    with pytest.raises(UserError) as error:
        load_rows(written(tmp_path, *rows))
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"problem": "p", "answer": ["7", "8"]}, r"rows.jsonl:1: the answer is \['7', '8'\]"),
        ({"problem": "p", "answer": {"value": 7}}, "rows.jsonl:1: the answer is {'value': 7}"),
        ({"problem": "Solve: ", "answer": "7"}, "rows.jsonl:1: no problem"),
    ],
)
def test_a_part_that_is_no_text_or_only_instruction_is_refused(
    tmp_path: Path, row: dict[str, object], said: str
):
    config = written(tmp_path, row).model_copy(update={"strip_prefix": "Solve:"})
    with pytest.raises(UserError, match=said):
        load_rows(config)


def test_an_empty_column_gives_way_to_the_next_candidate(tmp_path: Path):
    config = written(tmp_path, {"problem": "3+4", "answer": "", "final_answer": ["7"]})
    assert load_rows(config) == [Row("1", "3+4", "7")]


def test_files_in_another_encoding_are_refused_and_a_byte_order_mark_is_none(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"problem": "caf\xe9", "answer": "2"}')
    with pytest.raises(UserError, match=r"rows.jsonl:1 is not UTF-8"):
        load_rows(DataConfig(name="n", path=str(path)))
    path.write_bytes(b'\xef\xbb\xbf{"problem": "1+1", "answer": "2"}')
    assert load_rows(DataConfig(name="n", path=str(path))) == [Row("1", "1+1", "2")]


def test_a_file_that_only_claims_to_be_parquet_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"rows.parquet' is not a parquet file"):
        load_rows(written(tmp_path, "text", name="rows.parquet"))


def test_the_hubs_dapo_rows_lose_their_instruction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    config = load_data("data/dapo_math_17k.yaml", [f"path={tmp_path / 'rows.jsonl'}"])
    content = f"{config.strip_prefix}What is 30+4?{config.strip_suffix}"
    written(
        tmp_path,
        {
            "prompt": [{"role": "user", "content": content}],
            "reward_model": {"ground_truth": "34"},
            "extra_info": {"index": "u-1"},
        },
    )
    assert load_rows(config) == [Row("u-1", "What is 30+4?", "34")]


def test_a_file_that_is_not_there_or_of_another_kind_is_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"nowhere.jsonl': no such file"):
        load_rows(DataConfig(name="n", path=str(tmp_path / "nowhere.jsonl")))
    with pytest.raises(UserError, match=r"expected a .jsonl, .json or .parquet"):
        load_rows(written(tmp_path, "x", name="rows.csv"))


def test_an_epoch_deals_every_row_once_and_the_next_in_another_order():
    prompts = stream(7).take(14)
    first, second = [[p.row.id for p in part] for part in (prompts[:7], prompts[7:])]
    assert sorted(first) == sorted(second) == [str(i) for i in range(7)]
    assert first != second
    assert [p.serial for p in prompts] == list(range(14))


def test_without_shuffle_the_order_is_the_files():
    assert [p.row.id for p in stream(3, shuffle=False).take(4)] == ["0", "1", "2", "0"]


@given(before=st.integers(0, 20), back=st.integers(0, 5), after=st.integers(1, 20))
@examples(50)
def test_a_loaded_cursor_goes_on_as_if_nothing_had_happened(before: int, back: int, after: int):
    original, other = stream(), stream()
    taken = original.take(before)
    original.put_back(taken[len(taken) - min(back, len(taken)) :])
    other.load_state_dict(json.loads(json.dumps(original.state_dict())))
    assert other.take(after) == original.take(after)


def test_prompts_put_back_come_next_in_their_order():
    dealt = stream()
    first = dealt.take(3)
    dealt.put_back(first[1:])
    assert dealt.take(3) == [*first[1:], *stream().take(4)[3:]]


def test_a_prompt_put_back_is_found_although_its_id_repeats():
    rows = [Row("same", "1+1", "2"), Row("same", "1+2", "3")]
    config = NUMBERS.model_copy(update={"shuffle": False})
    dealt = PromptStream(rows, config, TOKENIZER, seed=0, longest_prompt=9)
    first = dealt.take(1)
    dealt.put_back(first)
    assert dealt.take(1) == first


def test_a_cursor_of_other_data_is_refused():
    state = stream(7).state_dict()
    with pytest.raises(UserError, match="changed since the checkpoint"):
        stream(8).load_state_dict(state)


def test_a_prompt_too_long_for_the_context_is_named_with_its_length():
    with pytest.raises(UserError, match=r"row '\d+': its prompt has 3 tokens.*room for 2"):
        stream(3, longest=2).take(1)


def test_an_evaluation_says_how_many_long_rows_it_left_out(caplog: pytest.LogCaptureFixture):
    rows = [Row("short", "1", "1"), Row("long", "1+1+1", "3")]
    config = NUMBERS.model_copy(update={"long_prompts": "skip"})
    assert [p.row.id for p in eval_prompts(rows, config, TOKENIZER, 2)] == ["short"]
    assert "left out that are too long: 1" in caplog.text


def test_a_system_message_needs_a_chat():
    with pytest.raises(ValueError, match="system needs chat: true"):
        DataConfig(name="d", path="x", system="Be brief.")


def test_long_prompts_can_be_left_out_but_not_all_of_them():
    rows = [Row("short", "1", "1"), Row("long", "1+1+1", "3")]
    config = NUMBERS.model_copy(update={"long_prompts": "skip"})
    some = PromptStream(rows, config, TOKENIZER, seed=0, longest_prompt=2)
    assert {p.row.id for p in some.take(5)} == {"short"}
    none = PromptStream(rows[1:], config, TOKENIZER, seed=0, longest_prompt=2)
    with pytest.raises(UserError, match="room for 2"):
        none.take(1)


def test_the_template_and_the_chat_wrap_the_problem():
    row = Row("0", "1+1", "2")
    plain = NUMBERS.model_copy(update={"template": "{problem}="})
    assert TOKENIZER.decode(list(render(row, plain, TOKENIZER))) == "1+1="
    chat = NUMBERS.model_copy(update={"chat": True})
    assert TOKENIZER.decode(list(render(row, chat, TOKENIZER))) == "1+1\n"


def test_a_tokenizer_without_a_chat_template_is_refused_for_a_chat():
    bare = build_tokenizer(BuildConfig(alphabet="0123456789+=}\n"))
    bare.chat_template = None
    with pytest.raises(UserError, match=r"data.chat=false"):
        render(Row("0", "1+1", "2"), NUMBERS.model_copy(update={"chat": True}), bare)


def test_an_evaluation_takes_every_row_once_in_file_order():
    rows = [Row(str(i), str(i), str(i)) for i in range(4)]
    prompts = eval_prompts(rows, NUMBERS, TOKENIZER, 9)
    assert [(p.serial, p.row.id) for p in prompts] == [(i, str(i)) for i in range(4)]
