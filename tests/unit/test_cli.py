"""Mistakes end with exit code 2 and words, never with a traceback."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from grpo.cli.commands import app
from grpo.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def in_the_project(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(ROOT)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def check(*overrides: str) -> Result:
    return run("check", "recipes/tiny_cpu.yaml", *overrides)


def test_a_recipe_that_is_fine_is_said_to_be():
    result = check()
    assert result.exit_code == 0, result.output
    assert "is fine" in result.output


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["learner.lrr=1"], "unknown key 'learner.lrr'"),
        (["schedule.steps=many"], "got 'many'"),
        (["rollout.group_size=1"], "group_size is 1"),
        (["aggregate=tokn_mean"], "unknown aggregator 'tokn_mean'; did you mean 'token_mean'?"),
        (
            ["aggregate.sope=group"],
            "aggregator 'balanced' has no option 'sope'; did you mean 'scope'",
        ),
        (["aggregate={name: delta_l, alpha: 7}"], "'alpha'"),
        (["advantage.ddof=3"], "advantage 'group_norm', option 'ddof'"),
        (["surrogate=ppo"], "unknown surrogate 'ppo'"),
        (["verifier.name=maths"], "unknown verifier 'maths'"),
        (["data={name: d, path: nowhere.jsonl}"], "nowhere.jsonl': no such file"),
        (["model.path=./nowhere"], "no such folder"),
        (["plugins=[no_such_module]"], "'no_such_module' cannot be imported"),
        (["placement=colocated", "learner.ranks=2"], "rollout.engines is 1"),
    ],
)
def test_a_mistake_in_a_recipe_exits_with_2_and_says_what_to_mend(overrides: list[str], said: str):
    result = check(*overrides)
    assert result.exit_code == 2, result.output
    assert said in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize("missing", ["tokenizer", "weights", "config.json"])
def test_a_model_folder_that_lacks_a_part_is_refused_by_its_name(tmp_path: Path, missing: str):
    for part, name in (
        ("tokenizer", "tokenizer.json"),
        ("weights", "model.safetensors"),
        ("config.json", "config.json"),
    ):
        if part != missing:
            (tmp_path / name).write_text("{}")
    result = check(f"model.path={tmp_path}")
    assert result.exit_code == 2
    assert f"has no {missing}" in result.output


def test_a_recipe_that_is_not_there_is_a_users_mistake():
    result = run("train", "recipes/nowhere.yaml")
    assert result.exit_code == 2
    assert "no recipe 'recipes/nowhere.yaml', neither as a file nor in the package" in result.output


def test_a_report_on_a_folder_without_a_run_is_a_users_mistake(tmp_path: Path):
    result = run("report", str(tmp_path))
    assert result.exit_code == 2
    assert "not a run folder" in result.output


def test_help_teaches():
    result = run("train", "--help")
    assert result.exit_code == 0
    assert "aggregate=token_mean" in result.output


def test_the_doctor_says_what_the_machine_has_and_how_far_programs_can_be_shut_in():
    result = run("doctor")
    assert result.exit_code == 0, result.output
    for what in ("torch", "vllm", "devices", "memory", "sandbox for programs"):
        assert what in result.output
    assert re.search(r"bubblewrap|namespaces|none: programs run only", result.output)


def test_the_plugins_of_a_suite_count_within_a_recipe(tmp_path: Path, monkeypatch):
    (tmp_path / "suite_rewards.py").write_text(
        "from grpo.types import Verdict\n"
        "from grpo.verify import VERIFIERS\n"
        "@VERIFIERS.register('of_the_suite')\n"
        "def of_the_suite(response, answer): return Verdict(1.0, '', 'correct')\n"
    )
    (tmp_path / "suite.yaml").write_text(
        "name: mine\nplugins: [suite_rewards]\nverifier: of_the_suite\nmax_tokens: 8\n"
        "data: {name: sums, task: {name: arithmetic, rows: 3}}\n"
    )
    monkeypatch.chdir(tmp_path)
    result = run("check", str(ROOT / "recipes/tiny_cpu.yaml"), "eval.suite=suite.yaml")
    assert result.exit_code == 0, result.output
    assert "benchmark mine" in result.output and "3 rows" in result.output


@pytest.mark.parametrize("written", ["math", "{name: math}", "{name: math, workers: 3}"])
def test_a_verifier_is_named_alike_in_a_recipe_and_in_a_suite(tmp_path: Path, written: str):
    recipe, of_suite = tmp_path / "r.yaml", written.replace(", workers: 3", "")
    recipe.write_text(
        f"name: r\nmodel: {{path: org/m}}\nverifier: {written}\n"
        "data: {name: d, task: {name: arithmetic, rows: 3}}\n"
        f"eval: {{suite: {{name: s, verifier: {of_suite}, max_tokens: 8,"
        " data: {name: d, task: {name: arithmetic, rows: 3}}}}\n"
    )
    result = run("check", str(recipe))
    assert result.exit_code == 0, result.output


def test_an_unknown_dtype_lists_what_is_known():
    result = run("eval", "some/model", "--dtype", "float")
    assert result.exit_code == 2
    assert all(name in result.output for name in ("float32", "bfloat16", "float16", "auto"))


@pytest.mark.parametrize("option", ["max_num_seqs", "=3", "a={"])
def test_an_engine_option_without_a_value_is_refused(option: str):
    result = run("eval", "some/model", "--suite", "eval/arithmetic.yaml", "--engine", option)
    assert result.exit_code == 2 and option in result.output, result.output


@pytest.mark.parametrize(
    ("arguments", "first"),
    [
        (["train", "recipes/tiny_cpu.yaml"], "tiny_cpu: reading the recipe"),
        (["eval", "some/model"], "arithmetic on some/model: reading the suite"),
    ],
)
def test_a_command_that_takes_long_says_a_word_before_it_imports_anything(
    arguments: list[str], first: str, monkeypatch: pytest.MonkeyPatch
):
    def fails(**_: object) -> None:
        raise UserError("the machine will not do")

    monkeypatch.setattr("grpo.cli.commands._check_machine", fails)
    lines = run(*arguments).output.splitlines()
    assert lines == [first, "error: the machine will not do"]


def test_the_first_word_needs_no_heavy_library():
    program = (
        "import grpo.cli.commands, grpo.console, sys\n"
        "print({'torch', 'transformers', 'ray', 'vllm', 'deepspeed'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr


def test_answers_that_are_only_judged_are_told_nothing_before(tmp_path: Path):
    result = run("eval", "--answers", str(tmp_path / "nowhere.jsonl"), "--suite", "arithmetic")
    assert result.exit_code == 2 and "reading" not in result.output
