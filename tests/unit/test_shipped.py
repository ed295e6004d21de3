"""What comes with the package has a name, and the name works wherever a file does."""

import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from grpo.cli.commands import app
from grpo.config import shipped as module
from grpo.config.load import load_data, load_recipe, load_suite
from grpo.config.shipped import find, first_comment, shipped
from grpo.errors import UserError

ROOT = Path(__file__).parents[2]
EVERY = [(kind, name) for kind in ("recipes", "data", "eval") for name in shipped(kind)]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No checkout in sight: an empty folder."""
    monkeypatch.chdir(tmp_path)


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(app, list(arguments))
    assert "Traceback" not in result.output
    return result


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_each_loads_by_its_name_alone_and_says_in_a_comment_what_it_is(kind: str, name: str):
    load = {"recipes": load_recipe, "data": load_data, "eval": load_suite}[kind]
    assert load(name).name
    assert 10 < len(first_comment(shipped(kind)[name])) < 300


def test_the_list_has_every_one_of_them_with_its_comment():
    said = run("recipes").output
    for kind, name in EVERY:
        assert f"  {name} " in said
        assert first_comment(shipped(kind)[name]) in said


def test_one_is_printed_or_copied_and_never_over_a_file():
    assert "name: tiny_cpu" in run("recipes", "tiny_cpu").output
    assert run("recipes", "tiny_cpu", "--copy").exit_code == 0
    assert Path("tiny_cpu.yaml").read_text() == shipped("recipes")["tiny_cpu"].read_text()
    Path("tiny_cpu.yaml").write_text("mine")
    again = run("recipes", "tiny_cpu", "--copy")
    assert (again.exit_code, Path("tiny_cpu.yaml").read_text()) == (2, "mine")


def test_a_copied_recipe_reads_what_it_names_from_the_package():
    run("recipes", "qwen3_1p7b_token", "--copy")
    assert load_recipe("qwen3_1p7b_token.yaml").data.name == load_recipe("qwen3_1p7b_ba").data.name


def test_bare_names_work_in_files_and_overrides():
    recipe = load_recipe("tiny_cpu", ["data=countdown", "eval.suite=math500"])
    assert (recipe.data.name, recipe.eval.suite.name) == ("countdown", "math500")
    Path("mine.yaml").write_text("extends: tiny_cpu\ndata: arithmetic\neval: {suite: aime24}\n")
    assert load_recipe("mine").eval.suite.name == "aime24"
    Path("both.yaml").write_text("name: both\nbenchmarks: [aime24, math500]\n")
    assert [b.name for b in load_suite("both").benchmarks] == ["aime24", "math500"]


def test_a_file_here_comes_before_one_of_the_package():
    Path("data").mkdir()
    Path("data/arithmetic.yaml").write_text("name: mine\npath: rows.jsonl\n")
    assert load_data("arithmetic").name == "mine"


def test_a_file_here_does_not_change_what_a_shipped_recipe_refers_to():
    Path("data").mkdir()
    Path("data/arithmetic.yaml").write_text("name: mine\npath: rows.jsonl\n")
    assert load_recipe("tiny_cpu").data.name == "arithmetic"
    assert load_recipe("tiny_cpu", ["data=arithmetic"]).data.name == "mine"


def test_a_name_of_two_kinds_asks_which_one():
    result = run("recipes", "arithmetic")
    assert result.exit_code == 2
    assert "say data/arithmetic or eval/arithmetic" in result.output
    assert run("recipes", "eval/arithmetic", "--copy").exit_code == 0
    assert load_suite("arithmetic.yaml").name == "arithmetic"


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["train", "tiny_cup"], "no recipe 'tiny_cup', neither as a file nor in the package"),
        (["check", "tiny_cup"], "did you mean 'tiny_cpu'? Known: llama3p2_3b_math_dapo, "),
        (["plan", "tiny_cup"], "did you mean 'tiny_cpu'?"),
        (["eval", "org/model", "--suite", "math50"], "did you mean 'math500'? Known: aime24, "),
        (["verify", "arithmetics"], "did you mean 'arithmetic'? Known: arithmetic, countdown, "),
        (["data", "show", "dapo"], "no data set 'dapo'"),
        (["check", "tiny_cpu", "data=sums"], "no data set 'sums'"),
        (["check", "tiny_cpu", "eval.suite=paperr"], "did you mean 'paper'?"),
        (["recipes", "tiny"], "no file 'tiny', neither as a file nor in the package"),
        (["check", "folder"], "folder is a folder, expected the file of a recipe"),
        (
            ["verify", "arithmetic", "--out", "folder"],
            "--out 'folder' is a folder: name a ",
        ),
    ],
)
def test_a_name_that_is_nowhere_lists_what_there_is(command: list[str], said: str):
    Path("folder").mkdir()
    result = run(*command)
    assert result.exit_code == 2, result.output
    assert said in result.output


def test_the_wheel_takes_them_along_and_finds_them_there(tmp_path: Path, monkeypatch):
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)
    included = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert included == {kind: f"grpo/shipped/{kind}" for kind in ("recipes", "data", "eval")}
    installed = tmp_path / "site-packages" / "grpo"
    (installed / "shipped" / "recipes").mkdir(parents=True)
    (installed / "shipped" / "recipes" / "one.yaml").write_text("# One.\nname: one\n")
    monkeypatch.setattr(module, "_PACKAGE", installed)
    assert find("one", "recipes") == installed / "shipped" / "recipes" / "one.yaml"
    with pytest.raises(UserError, match="no recipe 'tiny_cpu'"):
        find("tiny_cpu", "recipes")


def test_a_file_of_the_folder_above_is_none_of_the_command_lines(tmp_path: Path, monkeypatch):
    """Neither for the recipe's name nor for a name among its overrides."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "gsm8k_train.yaml").write_text("name: another\npath: x.jsonl\n")
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    recipe = load_recipe(Path("tiny_cpu"), ["data=gsm8k_train"])
    assert recipe.data.name == "gsm8k_train"
