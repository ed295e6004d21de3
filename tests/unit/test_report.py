"""Pictures of a run."""

import json
from pathlib import Path

import pytest

from grpo.report.curves import running_mean, write_curves
from grpo.store.checkpoint import RunFolder

PNG = b"\x89PNG"


def run_with(path: Path, rows: list[dict[str, object]]) -> RunFolder:
    run = RunFolder(path)
    path.mkdir(parents=True, exist_ok=True)
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


def test_a_running_mean_by_hand() -> None:
    assert running_mean([2.0, 4.0, 6.0, 8.0], 2) == pytest.approx([2.0, 3.0, 5.0, 7.0])
    assert running_mean([2.0, 4.0], 9) == pytest.approx([2.0, 3.0])
    assert running_mean([], 3) == []


def test_a_run_gets_two_pictures(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"step": 0, "eval/arithmetic/avg": 0.2}]
    rows += [{"step": s, "reward/mean": s / 9, "length/mean": 50 + s} for s in range(1, 9)]
    rows += [{"step": 8, "eval/arithmetic/avg": 0.8}]
    run = run_with(tmp_path / "demo", rows)
    assert write_curves(run) == [run.path / "reward.png", run.path / "length.png"]
    assert all(path.read_bytes()[:4] == PNG for path in write_curves(run))
    assert sorted(p.name for p in run.path.iterdir()) == [
        "length.png",
        "metrics.jsonl",
        "reward.png",
    ]


def test_rewards_outside_zero_and_one_and_nulls_are_drawn_too(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"step": 1, "reward/mean": -1.0, "eval/aime/2024/avg": 0.2},
        {"step": 2, "reward/mean": None, "length/mean": None},
        {"step": 3, "reward/mean": 0.5, "length/mean": 10.0},
    ]
    run = run_with(tmp_path, rows)
    assert write_curves(run) == [run.path / "reward.png"]


@pytest.mark.parametrize("rows", [[], [{"step": 1, "reward/mean": 0.5, "length/mean": 3.0}]])
def test_fewer_than_two_steps_have_no_pictures(
    tmp_path: Path, rows: list[dict[str, object]]
) -> None:
    assert write_curves(run_with(tmp_path, rows)) == []


def test_a_run_that_never_began_has_no_pictures(tmp_path: Path) -> None:
    assert write_curves(RunFolder(tmp_path / "nothing")) == []
