"""What a run says that it was made with."""

import subprocess
from pathlib import Path

from grpo.store import facts as module
from grpo.store.facts import facts

CHECKOUT = Path(__file__).resolve().parents[2]


def git(folder: Path, *words: str) -> str:
    asked = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b", *words]
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()


def test_the_revision_is_that_of_this_checkout():
    assert facts()["git_revision"] == git(CHECKOUT, "rev-parse", "HEAD")


def test_no_git_on_the_machine_is_no_revision_and_no_traceback(monkeypatch, tmp_path: Path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert facts()["git_revision"] == "unknown"


def test_somebody_elses_repository_around_an_installation_is_not_its_revision(
    monkeypatch, tmp_path: Path
):
    installed = tmp_path / "lib" / "site-packages" / "grpo" / "store"
    installed.mkdir(parents=True)
    git(tmp_path, "init", "-q")
    git(tmp_path, "commit", "-q", "--allow-empty", "-m", "theirs")
    monkeypatch.setattr(module, "__file__", str(installed / "facts.py"))
    assert git(installed, "rev-parse", "HEAD") != ""
    assert facts()["git_revision"] == "unknown"
