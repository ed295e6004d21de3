"""Prompts and answers fit into the model's context, or the run does not begin."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from grpo.cli.commands import app
from grpo.config.data import DataConfig
from grpo.data.stream import check_prompts, render
from grpo.errors import UserError
from grpo.learner.model_files import load_tokenizer
from grpo.types import Row, Turn
from tests.unit.small_models import small_model


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return small_model(tmp_path / "model")  # a token for each character, a context of 64


def check(model: Path, problems: list[str], *overrides: str) -> tuple[int, str]:
    rows = [{"problem": problem, "answer": "1"} for problem in problems]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = [
        *(f"model.path={model}", "rollout.max_tokens=24", "eval.suite=null", "overlong.buffer=0"),
        "data={name: d, path: rows.jsonl, template: '{problem}'}",
    ]
    result = CliRunner().invoke(app, ["check", "tiny_cpu", *told, *overrides])
    return result.exit_code, " ".join(result.output.split())


def test_a_prompt_that_would_be_dealt_in_step_50_and_is_too_long_is_refused_now(model):
    assert check(model, ["1+2", "1" * 40])[0] == 0
    code, said = check(model, ["1+2"] * 500 + ["1" * 41])
    assert code == 2
    assert "its prompt has 41 tokens" in said and "leaves room for 40" in said
    assert check(model, ["1+2", "1" * 41], "data.long_prompts=skip")[0] == 0


def test_a_benchmark_whose_answers_leave_no_room_is_refused_though_it_runs_at_the_end(model):
    suite = (
        "eval={at_start: false, suite: {name: s, benchmarks: [{name: b, samples: 1, "
        "max_tokens: %d, verifier: exact, data: {name: d, path: rows.jsonl}}]}}"
    )
    assert check(model, ["1+2"], suite % 32)[0] == 0
    code, said = check(model, ["1+2"], suite % 64)
    assert code == 2 and "max_tokens 64 leaves no room for a prompt" in said
    code, said = check(model, ["1+2", "1" * 30], suite % 40)
    assert code == 2 and "its prompt has 30 tokens" in said


def test_a_chat_without_a_template_is_refused(model):
    (model / "chat_template.jinja").unlink()
    code, said = check(model, ["1+2"], "data.chat=true")
    assert code == 2 and "chat" in said


def test_only_rows_that_may_be_too_long_are_rendered(model):
    """Of 1,000 the shortest and the one that is long."""
    rows = [Row(str(i), "1+2", "3") for i in range(1000)] + [Row("long", "1" * 30, "3")]
    tokenizer, config = load_tokenizer(str(model)), DataConfig(name="d", path="x")
    asked: list[str] = []
    longest = len(render(rows[-1], config, tokenizer))
    check_prompts(rows, config, Counting(tokenizer, asked), longest)  # pyright: ignore
    assert len(asked) < 10 and "1" * 30 in asked
    with pytest.raises(UserError, match="row 'long'"):
        check_prompts(rows, config, tokenizer, longest - 1)


class Counting:
    """A tokenizer, and what it was asked."""

    def __init__(self, tokenizer, asked: list[str]):
        self._tokenizer, self._asked = tokenizer, asked

    def __call__(self, text: str, **options):
        self._asked.append(text)
        return self._tokenizer(text, **options)

    def __getattr__(self, name: str):
        return getattr(self._tokenizer, name)


def test_earlier_turns_count(model):
    tokenizer = load_tokenizer(str(model))
    config = DataConfig(name="d", path="x", chat=True)
    row = Row("chat", "1+2", "3", earlier=(Turn("user", "1" * 50), Turn("assistant", "2")))
    with pytest.raises(UserError, match="row 'chat'"):
        check_prompts([Row("a", "1", "1"), row], config, tokenizer, 40)
