"""Verdicts are known by the rules that gave them."""

import shutil
from pathlib import Path

import pytest

from grpo.errors import UserError
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
    from grpo.verify import VERIFIERS

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
