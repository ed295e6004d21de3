"""A full disk makes a run wait; other failures end it at once."""

import errno
import os
import shutil
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest

from grpo.console import Screen
from grpo.errors import DiskFull
from grpo.store import disk as disks
from grpo.store.checkpoint import RunFolder
from grpo.store.disk import PatientDisk
from grpo.store.log import MetricsLog, read_metrics


class Time:
    """Seconds pass when somebody sleeps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.now = 1000.0
        monkeypatch.setattr(disks.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(disks.time, "sleep", self.sleep)

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Time:
    return Time(monkeypatch)


def full_until(clock: Time, when: float, number: int = errno.ENOSPC) -> Callable[[], None]:
    def write() -> None:
        if clock.now < when:
            raise OSError(number, os.strerror(number), "metrics.jsonl")

    return write


def patient(
    minutes: float, stop: Callable[[], bool] = lambda: False
) -> tuple[PatientDisk, StringIO]:
    told = StringIO()
    return PatientDisk(minutes, Screen(StringIO(), told), stop), told


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_write_is_tried_again_every_minute_with_a_notice_each_time(clock: Time, number: int):
    disk, told = patient(30)
    disk.write("metrics", full_until(clock, 1000 + 150, number))
    assert clock.now == pytest.approx(1180), "after 60, 120 and 180 s"
    text = " ".join(told.getvalue().split())
    assert text.count("metrics: metrics.jsonl cannot be written") == 3
    assert "30 more minutes at most" in text and "28 more minutes at most" in text


def test_after_wait_minutes_the_disk_is_an_error_that_says_what_could_not_be_written(clock: Time):
    disk, _ = patient(1.5)
    with pytest.raises(DiskFull, match=r"rollouts: metrics\.jsonl cannot be written: No space"):
        disk.write("rollouts", full_until(clock, 1e9))
    assert clock.now == pytest.approx(1090)


def test_without_patience_the_first_failure_is_the_last(clock: Time):
    disk, told = patient(0)
    with pytest.raises(DiskFull):
        disk.write("metrics", full_until(clock, 1e9))
    assert clock.now == 1000 and told.getvalue() == ""


def test_a_run_that_is_told_to_stop_tries_once_more_and_waits_no_longer(clock: Time):
    disk, told = patient(30, lambda: clock.now >= 1010)
    with pytest.raises(DiskFull):
        disk.write("metrics", full_until(clock, 1e9))
    assert clock.now == pytest.approx(1010, abs=1)
    assert told.getvalue().count("tries again") == 1


def test_what_room_on_the_disk_would_not_mend_is_raised_as_it_is(clock: Time):
    disk, _ = patient(30)
    with pytest.raises(PermissionError):
        disk.write("metrics", full_until(clock, 1e9, errno.EACCES))
    assert clock.now == 1000


def test_a_checkpoint_on_a_full_disk_is_written_again(clock: Time, tmp_path: Path):
    folder = RunFolder(tmp_path)
    tried: list[float] = []

    def write() -> None:
        with folder.write_checkpoint(3, keep=2) as writing:
            (writing / "weights").write_text("whole")
            tried.append(clock.now)
            if len(tried) < 3:
                raise RuntimeError("PytorchStreamWriter failed: No space left on device")
            (writing / "state.json").write_text("{}")

    disk, told = patient(30)
    disk.write("checkpoint", write)
    assert tried == pytest.approx([1000, 1060, 1120])
    assert [path.name for path in sorted(folder.checkpoints.glob("[!.]*"))] == [
        "latest", "step_000003",
    ]  # fmt: skip
    assert "checkpoint step_000003: the disk of" in told.getvalue()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
def test_a_metrics_line_that_half_fits_is_taken_back(tmp_path: Path):
    """On a real file system of 16 KiB: what follows is a whole line, not the rest of a cut one."""
    small = tmp_path / "small"
    small.mkdir()
    if os.system(f"mount -t tmpfs -o size=16k tmpfs {small} 2>/dev/null"):
        pytest.skip("file systems cannot be mounted here")
    try:
        log = MetricsLog(small / "metrics.jsonl")
        log.log(1, {"a": 0.1})
        with open(small / "other", "wb", buffering=0) as other:
            other.write(b"x" * (shutil.disk_usage(small).free))
        long = {f"name{i}": float(i) for i in range(400)}
        with pytest.raises(OSError, match="No space"):
            log.log(2, long)
        (small / "other").unlink()
        log.log(2, long)
        assert [row["step"] for row in read_metrics(log.path)] == [1, 2]
    finally:
        os.system(f"umount {small}")
