"""wandb, which starts a process of its own."""

from pathlib import Path

import pytest

from grpo.config.recipe import LoggingConfig
from grpo.store.board import WandbBoard, open_board


def test_auto_without_a_key_is_offline_silent_and_goes_on_with_one_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no_netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / "run"
    for step in (1, 2):
        board = open_board(LoggingConfig(wandb="auto"), "demo", {"seed": 0}, folder)
        assert isinstance(board, WandbBoard) and board.mode == "offline"
        board.log(step, {"reward/mean": 0.5})
        board.finish()
    run_id = (folder / ".wandb_id").read_text()
    written = list((folder / "wandb").glob(f"offline-run-*/run-{run_id}.wandb"))
    assert written and all(path.stat().st_size > 0 for path in written)
    printed = capfd.readouterr()
    assert printed.out == "" and printed.err == ""
