"""wandb, which starts a process of its own."""

import importlib
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from grpo.config.recipe import LoggingConfig
from grpo.errors import UserError
from grpo.store.board import NullBoard, WandbBoard, open_board


def test_auto_without_a_key_is_offline_silent_and_goes_on_with_one_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no_netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / "run"
    for step in (1, 2):
        board = open_board(LoggingConfig(wandb="auto"), "demo", {"seed": 0}, folder, print)
        assert isinstance(board, WandbBoard) and board.mode == "offline"
        board.log(step, {"reward/mean": 0.5})
        board.finish()
    run_id = (folder / ".wandb_id").read_text()
    written = list((folder / "wandb").glob(f"offline-run-*/run-{run_id}.wandb"))
    assert written and all(path.stat().st_size > 0 for path in written)
    printed = capfd.readouterr()
    assert printed.out == "" and printed.err == ""


_LOSES_WANDB = """
import sys, time
from pathlib import Path
import psutil
from grpo.config.recipe import LoggingConfig
from grpo.store.board import open_board

board = open_board(LoggingConfig(wandb="offline"), "demo", {}, Path(sys.argv[1]), print)
board.log(1, {"reward/mean": 0.5})
for process in psutil.Process().children(recursive=True):
    process.kill()
for step in range(2, 100):  # soon the connection is known to be gone
    board.log(step, {"reward/mean": 0.5})
    time.sleep(0.02)
board.finish()
"""


def test_a_wandb_that_dies_is_told_once_and_ends_no_run(tmp_path: Path) -> None:
    """As where the out-of-memory killer takes its process."""
    # Where this process has one already, others would join it.
    alone = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    done = subprocess.run(
        [sys.executable, "-c", _LOSES_WANDB, str(tmp_path)],
        env=alone, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("wandb fails (") == 1
    assert "metrics.jsonl has everything" in done.stdout
    assert "Traceback" not in done.stderr


def logged_steps(file: Path) -> list[int]:
    """Of a .wandb file: 7 bytes, then records of a checksum, a length, a kind and a message."""
    messages: Any = importlib.import_module("wandb.proto.wandb_internal_pb2")
    rest, steps = file.read_bytes()[7:], []
    while len(rest) >= 7 + (length := int.from_bytes(rest[4:6], "little")) > 7:
        record = messages.Record.FromString(rest[7 : 7 + length])
        rest = rest[7 + length :]
        steps += [int(i.value_json) for i in record.history.item if list(i.nested_key) == ["step"]]
    return steps


def test_steps_that_a_run_takes_again_are_shown_and_not_dropped(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    board = open_board(LoggingConfig(wandb="offline"), "demo", {}, tmp_path, print)
    for step in (1, 2, 1, 2):
        board.log(step, {"reward/mean": 0.25 * step})
    board.finish()
    (file,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    deadline = time.monotonic() + 60
    while len(logged_steps(file)) < 4 and time.monotonic() < deadline:
        time.sleep(0.1)  # wandb's own process still writes when its `finish` has returned
    assert logged_steps(file) == [1, 2, 1, 2]
    assert capfd.readouterr().err == ""


def fails(**_: Any) -> None:
    raise OSError(28, "No space left on device")


def test_a_wandb_that_does_not_start_ends_no_run_that_did_not_ask_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wandb.init", fails)
    told: list[str] = []
    board = open_board(LoggingConfig(wandb="auto"), "demo", {}, tmp_path, told.append)
    assert isinstance(board, NullBoard)
    (warning,) = told
    assert "wandb does not start (OSError: [Errno 28] No space left on device)" in warning


def test_a_wandb_that_was_asked_for_and_does_not_start_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wandb.init", fails)
    with pytest.raises(UserError, match=r"logging\.wandb is 'offline' but wandb does not start"):
        open_board(LoggingConfig(wandb="offline"), "demo", {}, tmp_path, print)
