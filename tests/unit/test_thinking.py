"""Thinking that a prompt has opened: who knows of it, and that drafts in it are not paid."""

from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
from transformers import AddedToken, PreTrainedTokenizerFast

from grpo.config.recipe import BuildConfig, DataConfig, Recipe
from grpo.data import PromptStream, eval_prompts
from grpo.data.thinking import opens_thinking
from grpo.learner.build import build_tokenizer
from grpo.thinking import thinking_ends
from grpo.train.groups import PendingVerdicts
from grpo.types import Group, Prompt, Response, Row, Verdict
from grpo.verify import VERIFIERS
from grpo.verify.answers import TAIL_CHARS, after_thinking, final_answer

CHARACTERS = "".join(map(chr, range(32, 127))) + "\n"
# Of the shape of Qwen's, DeepSeek's and Mistral's.
TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
BEGINS = TURNS + "<|im_start|>assistant\n"
QWEN_THINKING = BEGINS + "<think>\n"
QWEN_SWITCHED_OFF = BEGINS + "<think>\n\n</think>\n\n"
DEEPSEEK = "{% for m in messages %}<|User|>{{ m.content }}{% endfor %}<|Assistant|><think>\n"
PREFILLED = QWEN_THINKING + "Okay, so"


def tokenizer(chat_template: str, *added: str) -> PreTrainedTokenizerFast:
    made = build_tokenizer(BuildConfig(alphabet=CHARACTERS))
    markers = ("<|im_start|>", "<|im_end|>", "<|User|>", "<|Assistant|>")
    made.add_tokens([AddedToken(marker, special=False) for marker in (*markers, *added)])
    made.chat_template = chat_template
    return made


def opened(template: str, problem: str, *added: str, chat_template: str = BEGINS) -> list[bool]:
    """What the training's prompts and an evaluation's say."""
    config = DataConfig(name="n", path="unused.jsonl", template=template, chat=True)
    rows, words = [Row("0", problem, "4")], tokenizer(chat_template, *added)
    stream = PromptStream(rows, config, words, seed=0, longest_prompt=9999)
    return [p.thinking for p in (*stream.take(2), *eval_prompts(rows, config, words, 9999))]


@pytest.mark.parametrize("added", [(), ("<think>", "</think>")], ids=["spelled", "tokens"])
@pytest.mark.parametrize(
    ("chat_template", "thinking"),
    [
        (BEGINS, False),
        (QWEN_THINKING, True),
        (QWEN_SWITCHED_OFF, False),
        (DEEPSEEK, True),
        (PREFILLED, True),
        (BEGINS + "[THINK]", True),
    ],
)
def test_a_chat_template_may_open_the_thinking(
    chat_template: str, added: tuple[str, ...], thinking: bool
):
    assert opened("{problem}", "2+2", *added, chat_template=chat_template) == [thinking] * 3


@pytest.mark.parametrize("problem", ["Begin with <think>", "What is </think>?", "<think>a</think>"])
def test_what_a_user_says_of_the_tags_opens_and_ends_nothing(problem: str):
    for added in ((), ("<think>", "</think>")):
        assert opened("{problem}", problem, *added) == [False] * 3
        assert opened("{problem}", problem, *added, chat_template=QWEN_THINKING) == [True] * 3


@pytest.mark.parametrize(
    ("prompt", "thinking"),
    [
        ("User: 2+2. Assistant: <think>", True),
        ("Reason in <think> </think> tags. User: 2+2. Assistant: <think>\n", True),
        ("Reason in <think> </think> tags. User: 2+2. Assistant:", False),
        ("", False),
    ],
)
def test_a_prompt_for_a_base_model_may_open_it_too(prompt: str, thinking: bool):
    words = tokenizer(BEGINS)
    assert opens_thinking(words(prompt, add_special_tokens=False).input_ids, words) == thinking


@pytest.mark.parametrize(
    ("text", "is_open", "end"),
    [
        ("", False, 0),
        ("", True, None),
        ("a", True, None),
        ("a</think>b", True, 9),
        ("a</think>b", False, 9),
        ("<think>a", False, None),
        ("<think>a</think>", True, 16),
        ("<think><think>a</think>", True, 23),
        ("</think>a<think>", True, None),
        ("</think>[THINK]a[/THINK]", True, 24),
        ("<thinker>", False, 0),
    ],
)
def test_thinking_ends_with_the_last_tag(text: str, is_open: bool, end: int | None):
    assert thinking_ends(text, is_open) == end


def test_the_end_of_long_thinking_is_found_and_one_that_is_missing_is_missed():
    long = "x" * 2 * TAIL_CHARS
    assert after_thinking(long + r"\boxed{42}", thinking=True) is None
    assert after_thinking(long + "</think>a", thinking=True) == "a"
    # What follows may be long, too.
    assert after_thinking("</think>" + long + "a", thinking=True) == long[1 - TAIL_CHARS :] + "a"


SUM = '{"inputs": ["1 2"], "outputs": ["3"]}'
PROGRAM = "```python\nprint(3)\n```"


@pytest.mark.parametrize(
    ("name", "answer", "mark", "options"),
    [
        ("math", "42", r"\boxed{42}", {}),
        ("math", "42", "The answer is 42.", {"marked": "preferred"}),
        ("math", "42", "so it is $42$", {"marked": "preferred"}),
        ("math_within", '{"value": "42", "tolerance": "1e-1"}', r"\boxed{42.05}", {}),
        ("exact", "42", "<answer>42</answer>", {}),
        ("exact", "42", "#### 42", {"mark": "####"}),
        ("exact", "42", "42", {"marked": "preferred"}),
        ("countdown", "42 from 6 7", r"\boxed{6*7}", {}),
        ("code", SUM, PROGRAM, {"allow_unsandboxed": True}),
    ],
)
def test_every_verifier_pays_only_behind_the_thinking(
    name: str, answer: str, mark: str, options: dict[str, Any]
):
    verifier = VERIFIERS[name]
    for draft in (f"I think\n{mark}\n", f"<think>\n{mark}\n", f"{mark}\n</think>\n"):
        verdict = verifier(draft, answer, thinking=True, **options)
        assert (verdict.reward, verdict.reason.split(":")[0]) == (0.0, "no answer")
    assert verifier(f"a </think>\n{mark}\n", answer, thinking=True, **options).reward == 1.0
    assert verifier(f"a\n{mark}\n", answer, **options).reward == 1.0


def test_an_answer_that_is_not_reached_is_none():
    given = final_answer(r"\boxed{42}", thinking=True)
    assert given is not None and given.text == ""


class Judge:
    def __init__(self) -> None:
        self.facts: list[dict[str, object]] = []

    def submit(self, text: str, answer: str, **facts: object) -> Future[Verdict]:
        self.facts.append(facts)
        return Future()


@pytest.mark.parametrize("thinking", [False, True])
def test_training_tells_the_verifier_what_the_prompt_did(thinking: bool):
    recipe = Recipe.model_validate(
        {"name": "n", "model": {"path": "m"}, "data": {"name": "n", "path": "r.jsonl"}}
    )
    judge: Any = Judge()
    ids = np.zeros(1, np.int32)
    answer = Response(ids, ids.astype(np.float32), "length", (), "text")
    prompt = Prompt(0, Row("0", "2+2", "4"), (1,), thinking)
    PendingVerdicts(recipe, judge).add(Group(prompt, (answer, answer)))
    assert judge.facts == [{"problem": "2+2", "truncated": True, "thinking": thinking}] * 2


def test_a_tag_within_a_program_is_part_of_it():
    program = "```python\n# strips <think> blocks\nprint(1)\n```"
    assert thinking_ends(program) == 0
    assert thinking_ends(f"<think>```\ndraft\n</think>{program}") == len(
        "<think>```\ndraft\n</think>"
    )
    assert thinking_ends("<think>\n```python\nprint(1)\n```") is None
