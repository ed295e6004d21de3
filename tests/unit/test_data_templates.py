"""What a tokenizer adds to a text: begin tokens, once, and its chat template with arguments."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from grpo.config.load import load_data, load_recipe, load_suite, resolved
from grpo.config.recipe import BuildConfig, DataConfig
from grpo.data import PromptStream, eval_prompts, render
from grpo.errors import UserError
from grpo.learner.build import build_tokenizer
from grpo.types import Row
from tests.examples import examples

WORDS = ["<unk>", "<bos>", "<eos>", "<sop>", "a", "b"]
BOS, EOS, SOP, A, B = 1, 2, 3, 4, 5
ROW = Row("1", "a b", "a")


def tokenizer(single: str) -> PreTrainedTokenizerFast:
    """One word, one token; `single` is what its post-processor makes of a text."""
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = TemplateProcessing(
        single=single, special_tokens=[("<bos>", BOS), ("<eos>", EOS), ("<sop>", SOP)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", bos_token="<bos>", eos_token="<eos>"
    )


def data(**settings: object) -> DataConfig:
    return DataConfig.model_validate({"name": "d", "path": "raw.jsonl", **settings})


@pytest.mark.parametrize(
    ("single", "template", "token_ids"),
    [
        ("<bos> $A", "{problem}", [BOS, A, B]),  # Llama, Gemma
        ("<bos> $A", "<bos> {problem}", [BOS, A, B]),
        ("<bos> $A <eos>", "{problem}", [BOS, A, B]),
        ("$A <eos>", "{problem}", [A, B]),
        ("$A", "{problem}", [A, B]),  # Qwen, though it may name a begin token
        ("<bos> <sop> $A", "{problem}", [BOS, SOP, A, B]),  # GLM
        ("<bos> $A <eos>", "{problem} <eos>", [BOS, A, B, EOS]),
    ],
)
def test_a_text_begins_as_the_tokenizer_has_it_and_does_not_end(
    single: str, template: str, token_ids: list[int]
):
    assert render(ROW, data(template=template), tokenizer(single)) == tuple(token_ids)


@given(st.lists(st.sampled_from(WORDS[1:]), min_size=1, max_size=6), st.booleans(), st.booleans())
@examples(100)
def test_of_any_text_the_tokens_stay_and_one_begin_token_stands_in_front(
    words: list[str], begins: bool, ends: bool
):
    made = tokenizer(" ".join(["<bos>"] * begins + ["$A"] + ["<eos>"] * ends))
    bare = [WORDS.index(word) for word in words]
    expected = [BOS] * (begins and bare[0] != BOS) + bare
    assert render(Row("1", " ".join(words), "a"), data(), made) == tuple(expected)


def test_training_and_evaluation_both_begin_with_it():
    made = tokenizer("<bos> $A")
    stream = PromptStream([ROW], data(), made, seed=0, longest_prompt=9)
    assert stream.take(1)[0].token_ids == (BOS, A, B)
    assert eval_prompts([ROW], data(), made, 9)[0].token_ids == (BOS, A, B)


def test_a_chat_template_writes_its_begin_token_itself():
    made = tokenizer("<bos> $A")
    made.chat_template = "{{ bos_token }} {{ messages[0].content }}"
    assert render(ROW, data(chat=True), made) == (BOS, A, B)
    made.chat_template = "{{ messages[0].content }}"
    assert render(ROW, data(chat=True), made) == (A, B)


THINKING = (
    "{%- if not date is defined %}{% set date = 'a' %}{% endif %}"
    "{% for m in messages %}{% if m.role == 'x' %}{% continue %}{% endif %}"
    "{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    "{% if tools %} {{ tools[0].name }}{% endif %}"
    "{% if enable_thinking is defined and not enable_thinking %} b{% endif %}"
)


def thinking(**arguments: object) -> tuple[int, ...]:
    made = tokenizer("$A")
    made.chat_template = THINKING
    return render(ROW, data(chat=True, chat_template_kwargs=arguments), made)


def test_a_template_is_given_its_arguments_and_a_stored_answers_prompt_differs():
    assert thinking() == thinking(enable_thinking=True) == thinking(date="b") == (A, B)
    assert thinking(enable_thinking=False) == (A, B, B)
    assert thinking(tools=[{"name": "a"}]) == (A, B, A)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("enable_thinkin", r"does not read 'enable_thinkin'; did you mean 'enable_thinking'\?"),
        ("thinking_budget", r"It reads: date, enable_thinking, tools$"),
        ("bos_token", r"does not read 'bos_token'"),
        ("m", r"does not read 'm'"),
    ],
)
def test_an_argument_that_the_template_does_not_read_is_told(name: str, said: str):
    with pytest.raises(UserError, match=said):
        thinking(**{name: False})


def test_a_template_that_cannot_use_a_value_or_cannot_be_read_is_told():
    with pytest.raises(UserError, match=r"row '1': .*given \{'tools': 3\} refuses a chat of user"):
        thinking(tools=3)
    made = tokenizer("$A")
    made.chat_template = "{% if %}"
    with pytest.raises(UserError, match="is broken"):
        render(ROW, data(chat=True, chat_template_kwargs={"date": "b"}), made)


def test_a_named_template_is_told_from_others():
    made = tokenizer("$A")
    made.chat_template = {
        "default": "{{ messages[0].content }}",
        "tool_use": "{{ tools[0].name }} a b",
    }
    assert render(ROW, data(chat=True), made) == (A, B)
    called = data(chat=True, chat_template_kwargs={"tools": [{"name": "b"}]})
    assert render(ROW, called, made) == (B, A, B)
    made.chat_template = {"rag": "{{ messages[0].content }}"}
    with pytest.raises(UserError, match="multiple chat templates"):
        render(ROW, data(chat=True), made)


@pytest.mark.parametrize(
    ("declared", "said"),
    [
        ("chat_template_kwargs={enable_thinking: false}", "chat_template_kwargs needs chat: true"),
        ("chat_template_kwargs={tokenize: false}", "tokenize is what the trainer gives"),
        ("chat_template_kwargs={add_generation_prompt: false}", "add_generation_prompt is what"),
        (
            "chat_template_kwargs={date_string: 2024-07-26}",
            "date_string is .*, a date or NaN: put it in",
        ),
        ("chat_template_kwargs=[a]", "should be a valid dictionary"),
    ],
)
def test_arguments_are_checked_where_they_are_declared(declared: str, said: str):
    with pytest.raises(UserError, match=said):
        load_data("countdown", [declared])


def test_recipes_and_suites_take_arguments_of_any_name(tmp_path: Path):
    arguments = {"data": "x", "enable_thinking": False, "tools": [{"name": "a", "n": None}]}
    given = "chat_template_kwargs={data: x, enable_thinking: false, tools: [{name: a, n: null}]}"
    assert load_data("countdown", ["chat=true", given]).chat_template_kwargs == arguments
    recipe = load_recipe("tiny_cpu", ["data.chat=true", f"data.{given}"])
    assert resolved(recipe)["data"]["chat_template_kwargs"] == arguments
    suite = tmp_path / "suite.yaml"
    suite.write_text(
        "name: s\ndata: {name: d, path: p.jsonl, chat: true, "
        "chat_template_kwargs: {enable_thinking: false}}\n"
    )
    assert load_suite(suite).benchmarks[0].data.chat_template_kwargs == {"enable_thinking": False}


def test_the_demos_prompts_have_the_tokens_that_they_had():
    made = build_tokenizer(BuildConfig(alphabet="0123456789+=\n"))
    for chat, text in ((False, "1+1="), (True, "1+1=\n")):
        prompt = render(Row("1", "1+1", "2"), data(template="{problem}=", chat=chat), made)
        assert prompt == tuple(made(text, add_special_tokens=False).input_ids)
