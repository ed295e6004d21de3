"""Verdicts are known by the rules that gave them."""

import importlib
import operator
import shutil
import sys
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import pytest

from grpo.errors import UserError
from grpo.verify import VERIFIERS
from grpo.verify import fingerprint as module
from grpo.verify.fingerprint import fingerprint


@pytest.fixture
def rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the rules, which a test may change."""
    copied = Path(shutil.copytree(Path(module.__file__).parent, tmp_path / "verify"))
    monkeypatch.setattr(module, "_PACKAGE", copied)
    fingerprint.cache_clear()
    yield copied
    fingerprint.cache_clear()


def test_it_changes_with_any_file_of_the_rules_and_is_the_same_otherwise(rules: Path):
    before = fingerprint("math")
    fingerprint.cache_clear()
    assert fingerprint("math") == before and len(before) == 16
    with (rules / "equivalence" / "__init__.py").open("a") as file:
        file.write("# another rule\n")
    fingerprint.cache_clear()
    assert fingerprint("math") != before


def test_it_changes_with_the_library_that_reads_mathematics(rules: Path, monkeypatch):
    before = fingerprint("math")
    fingerprint.cache_clear()
    monkeypatch.setattr(module, "version", lambda name: "0.0")
    assert fingerprint("math") != before


def test_it_changes_with_the_file_of_a_plugins_verifier(tmp_path: Path, monkeypatch):
    source = tmp_path / "my_rewards.py"
    source.write_text("from grpo.types import Verdict\ndef ask(response, answer): ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import my_rewards  # pyright: ignore[reportMissingImports]

    monkeypatch.setitem(VERIFIERS._parts, "mine", my_rewards.ask)
    fingerprint.cache_clear()
    before = fingerprint("mine")
    source.write_text(source.read_text() + "# another rule\n")
    fingerprint.cache_clear()
    assert fingerprint("mine") != before


def test_an_unknown_verifier_is_the_users_mistake():
    with pytest.raises(UserError, match="unknown verifier 'maths'"):
        fingerprint("maths")


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A plugin whose parts are a function, an object and a partial, and its helper."""
    (tmp_path / "the_helper.py").write_text("LIMIT = 3\n")
    (tmp_path / "the_rewards.py").write_text(
        "import functools\n"
        "from the_helper import LIMIT\n"
        "def ask(response, answer, limit=LIMIT): ...\n"
        "class Asks:\n"
        "    def __call__(self, response, answer): ...\n"
        "asks, fewer = Asks(), functools.partial(ask, limit=1)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    for module_name in ("the_helper", "the_rewards"):
        monkeypatch.delitem(sys.modules, module_name, raising=False)
    parts = importlib.import_module("the_rewards")
    for name in ("ask", "asks", "fewer"):
        monkeypatch.setitem(VERIFIERS._parts, name, vars(parts)[name])
    fingerprint.cache_clear()
    yield tmp_path
    for module_name in ("the_helper", "the_rewards"):
        del sys.modules[module_name]
    fingerprint.cache_clear()


@pytest.mark.parametrize("name", ["ask", "asks", "fewer"])
@pytest.mark.parametrize("file", ["the_helper.py", "the_rewards.py"])
def test_it_changes_with_what_a_plugin_imports_whatever_kind_of_callable_it_registers(
    plugin: Path, name: str, file: str
):
    before = fingerprint(name)
    fingerprint.cache_clear()
    assert fingerprint(name) == before
    with (plugin / file).open("a") as source:
        source.write("# another rule\n")
    fingerprint.cache_clear()
    assert fingerprint(name) != before


def test_libraries_beside_a_plugin_are_none_of_its_rules(plugin: Path):
    before = fingerprint("ask")
    library = plugin / ".venv" / "site-packages" / "the_library.py"
    library.parent.mkdir(parents=True)
    library.write_text("")
    module_of_it = ModuleType("the_library")
    module_of_it.__file__ = str(library)
    with patch.dict(sys.modules, {"the_library": module_of_it}):
        fingerprint.cache_clear()
        assert fingerprint("ask") == before


def test_a_plugin_that_is_installed_as_one_file_is_that_file(tmp_path: Path, monkeypatch):
    packages = tmp_path / "site-packages"
    packages.mkdir()
    for module_name in ("the_plugin", "the_neighbour"):
        (packages / f"{module_name}.py").write_text("def ask(response, answer): ...\n")
        monkeypatch.delitem(sys.modules, module_name, raising=False)
    monkeypatch.syspath_prepend(str(packages))
    importlib.import_module("the_neighbour")
    monkeypatch.setitem(VERIFIERS._parts, "ask", importlib.import_module("the_plugin").ask)
    fingerprint.cache_clear()
    before = fingerprint("ask")
    for changed, same in (("the_neighbour", True), ("the_plugin", False)):
        with (packages / f"{changed}.py").open("a") as source:
            source.write("# another rule\n")
        fingerprint.cache_clear()
        assert (fingerprint("ask") == before) is same


def test_a_function_of_python_itself_has_no_file(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(VERIFIERS._parts, "equal", operator.eq)
    fingerprint.cache_clear()
    assert fingerprint("equal") == fingerprint("math")
