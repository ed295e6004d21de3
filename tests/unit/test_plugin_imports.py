"""Modules of the user's own, from where the command was started."""

import subprocess
import sys
from pathlib import Path

import pytest

ASK = "import sys; from grpo.plugins import import_plugins; from grpo.errors import UserError\n"


def run(folder: Path, program: str) -> str:
    """What a fresh Python says that was started there, as the `grpo` command is: the working
    directory is not on its path."""
    command = [sys.executable, "-c", f"import sys; sys.path.remove(''); {ASK}{program}"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "my_lab.py").write_text("print('mine')")
    (tmp_path / "statistics.py").write_text("print('not the library')")
    return tmp_path


def test_without_plugins_the_working_directory_stays_off_the_path(folder: Path):
    assert run(folder, "import_plugins([]); import os; print(os.getcwd() in sys.path)") == "False"


def test_a_plugin_of_the_working_directory_shadows_no_library(folder: Path):
    program = "import_plugins(['my_lab']); import statistics; print(statistics.mean([1, 3]))"
    assert run(folder, program) == "mine\n2"


def test_a_plugin_that_a_library_hides_is_refused_with_both_places(folder: Path):
    program = "\ntry: import_plugins(['statistics'])\nexcept UserError as error: print(error)"
    said = run(folder, program)
    assert said.startswith(f"plugins: 'statistics' is {folder / 'statistics.py'}, but ")
    assert said.endswith("comes first: give yours another name")


def test_an_environment_within_the_working_directory_hides_a_plugin_as_well(folder: Path):
    packages = folder / ".venv" / "lib" / "site-packages"
    packages.mkdir(parents=True)
    (packages / "my_lab.py").write_text("print('of the library')")
    program = (
        f"\nsys.path.insert(0, {str(packages)!r})\n"
        "try: import_plugins(['my_lab'])\nexcept UserError as error: print(error)"
    )
    said = run(folder, program)
    assert said.startswith(f"plugins: 'my_lab' is {folder / 'my_lab.py'}, but {packages}")


def test_a_module_that_is_built_into_python_hides_a_plugin_as_well(folder: Path):
    (folder / "_thread.py").write_text("")
    program = "\ntry: import_plugins(['_thread'])\nexcept UserError as error: print(error)"
    assert "_thread.py, but a module of Python has the same name" in run(folder, program)


@pytest.mark.parametrize("file", ["a_package/__init__.py", "a_folder/a_part.py"])
def test_packages_of_the_working_directory_are_plugins_too(folder: Path, file: str):
    (folder / file).parent.mkdir()
    (folder / file).write_text("print('mine')")
    name = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    assert run(folder, f"import_plugins([{name!r}])") == "mine"


def test_a_worker_finds_the_plugins_of_the_driver_and_shadows_no_library(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("GRPO_WORKING_DIRECTORY", str(folder))
    program = "import_plugins(['my_lab']); import statistics; print(statistics.mean([1, 3]))"
    assert run(tmp_path_factory.mktemp("elsewhere"), program) == "mine\n2"
