"""The numbers of a step, and the files that keep them."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from grpo.config.recipe import LoggingConfig
from grpo.store.board import NullBoard, _has_wandb_key, open_board
from grpo.store.log import MetricsLog, read_metrics, write_rollouts
from grpo.train.metrics import drift_warning, group_metrics, staleness_metrics
from grpo.types import Group, Prompt, Response, Row, ScoredGroup, Verdict, VersionSpan


def response(length: int, finish: str = "stop", versions: tuple[int, ...] = (3,)) -> Response:
    ids = np.zeros(length, dtype=np.int32)
    spans = tuple(VersionSpan(version, i, i + 1) for i, version in enumerate(versions))
    assert finish in ("stop", "length")
    return Response(
        ids, np.zeros(length, dtype=np.float32), finish, spans, f"text of {length} \ud83d"
    )


def scored(
    *parts: tuple[float, int, str], advantages: tuple[float, ...] = (), finish: str = "stop"
) -> ScoredGroup:
    """A group from (reward, length, reason) of each sibling."""
    prompt = Prompt(17, Row("row-9", "2+2?", "4"), (1, 2))
    return ScoredGroup(
        Group(prompt, tuple(response(length, finish) for _, length, _ in parts)),
        tuple(Verdict(reward, "4", reason) for reward, _, reason in parts),
        advantages,
    )


def test_group_metrics_by_hand() -> None:
    mixed = scored((1.0, 10, "correct"), (0.0, 30, "wrong"))
    right = scored((1.0, 20, "correct"), (1.0, 20, "correct"))
    wrong = scored((0.0, 40, "no answer"), (0.0, 40, "verifier crashed: KeyError"), finish="length")
    metrics = group_metrics([mixed, right, wrong, wrong])
    # rewards 1 0 1 1 0 0 0 0; lengths 10 30 20 20 40 40 40 40: squares off 30 add up to 1000
    expected = {
        "reward/mean": 3 / 8,
        "reward/std": math.sqrt(3 / 8 * 5 / 8),
        "length/mean": 30.0,
        "length/cv": math.sqrt(1000 / 8) / 30,
        "length/max": 40.0,
        "length/positive_minus_negative": 10.0 - 30.0,
        "truncated/share": 4 / 8,
        "no_answer/share": 2 / 8,
        "groups/flat_share": 3 / 4,
        "groups/unjudged_share": 0.0,
        "groups/all_right_share": 1 / 4,
        "groups/all_wrong_share": 2 / 4,
        "verdict/correct/share": 3 / 8,
        "verdict/no answer/share": 2 / 8,
        "verdict/verifier crashed/share": 2 / 8,
        "verdict/wrong/share": 1 / 8,
    }
    assert metrics == pytest.approx(expected)


def test_flat_rewards_that_rounding_moves_off_their_mean_are_neither_above_nor_below() -> None:
    metrics = group_metrics([scored((0.1, 5, "x"), (0.1, 9, "x"), (0.1, 9, "x"))])
    assert math.isnan(metrics["length/positive_minus_negative"])
    assert metrics["groups/flat_share"] == 1


def test_no_groups_have_no_metrics() -> None:
    assert group_metrics([]) == {}


def test_staleness_counts_updates_between_sampling_and_learning_token_by_token() -> None:
    prompt = Prompt(17, Row("row-9", "2+2?", "4"), (1, 2))
    through_an_update = response(4, versions=())
    spans = (VersionSpan(2, 0, 3), VersionSpan(3, 3, 4), VersionSpan(9, 4, 4))
    through_an_update = replace(through_an_update, versions=spans)
    fresh = replace(response(6), versions=(VersionSpan(3, 0, 6),))
    group = ScoredGroup(Group(prompt, (through_an_update, fresh)), (Verdict(1.0, "", ""),) * 2)
    # learned from weights 3: three tokens of ten are one update old; the last span is empty
    assert staleness_metrics([group], 3) == {"staleness/mean": 0.3, "staleness/max": 1.0}
    assert staleness_metrics([], 3) == {}


def test_stale_answers_of_a_far_policy_are_warned_of_and_nothing_else_is() -> None:
    far = {"staleness/max": 1.0, "mismatch/kl": 0.13}
    warning = drift_warning(4, far)
    assert warning and warning.startswith("step 4: the policy that sampled is 0.13 nats per token")
    assert "learner.lr" in warning and "schedule.max_staleness=0" in warning
    assert drift_warning(4, far | {"mismatch/kl": 0.03}) is None
    assert drift_warning(4, far | {"staleness/max": 0.0}) is None, "that is no staleness"
    assert drift_warning(4, {}) is None, "a step without an update"


@pytest.mark.parametrize("staleness", [0.0, 1.0])
def test_a_nan_between_the_policies_is_reported_as_divergence_at_any_staleness(
    staleness,
) -> None:
    warning = drift_warning(4, {"staleness/max": staleness, "mismatch/kl": math.nan})
    assert warning and "logprobs are not finite" in warning and "--resume DIR" in warning
    assert "max_staleness" not in warning


def test_a_log_line_is_one_json_object_with_null_for_what_json_lacks(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "run" / "metrics.jsonl")
    values = {"a": 1, "b": np.float32(0.5), "c": math.nan, "d": -math.inf, "e": np.int64(3)}
    log.log(7, values)  # pyright: ignore[reportArgumentType]
    (line,) = log.path.read_text().splitlines()
    row = json.loads(line)
    assert row.pop("time") > 1.7e9
    assert row == {"step": 7, "a": 1, "b": 0.5, "c": None, "d": None, "e": 3.0}


def test_a_half_last_line_is_not_read_and_not_glued_to_the_next(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "rew')
    assert read_metrics(path) == [{"step": 1}]
    MetricsLog(path).log(2, {})
    assert [row["step"] for row in read_metrics(path)] == [1, 2]


def test_metrics_that_were_never_written_read_as_none(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_rollouts_hold_one_row_for_each_response(tmp_path: Path) -> None:
    prompt = Prompt(17, Row("row-9", "2+2?", "4"), (1, 2))
    group = Group(prompt, (response(4, versions=(2, 3)), response(6, "length")))
    verdicts = (Verdict(1.0, "4", "correct"), Verdict(0.0, "", "no answer"))
    path = write_rollouts(tmp_path / "rollouts", 42, [ScoredGroup(group, verdicts, (0.7, -0.7))])
    assert path == tmp_path / "rollouts" / "step_000042.parquet"
    assert list(path.parent.iterdir()) == [path]
    first, second = pq.read_table(path).to_pylist()
    assert first == {
        "step": 42,
        "serial": 17,
        "row_id": "row-9",
        "index": 0,
        "problem": "2+2?",
        "answer": "4",
        "response": "text of 4 ?",  # the lone surrogate cannot be stored
        "reward": 1.0,
        "penalty": 0.0,
        "parsed": "4",
        "reason": "correct",
        "advantage": 0.7,
        "length": 4,
        "finish_reason": "stop",
        "policy_version_min": 2,
        "policy_version_max": 3,
        "shadows": [],
    }
    assert (second["index"], second["finish_reason"], second["advantage"]) == (1, "length", -0.7)


def test_rewards_are_those_of_the_verdicts_and_penalties_stand_apart(tmp_path: Path) -> None:
    punished = replace(scored((1.0, 8, "correct"), (1.0, 10, "correct")), penalties=(0.0, -0.5))
    metrics = group_metrics([punished])
    assert metrics["reward/mean"] == 1.0
    assert metrics["reward/penalty"] == -0.25
    assert metrics["groups/all_right_share"] == 1.0
    rows = pq.read_table(write_rollouts(tmp_path, 1, [punished])).to_pylist()
    assert [(row["reward"], row["penalty"]) for row in rows] == [(1.0, 0.0), (1.0, -0.5)]


def test_rollouts_without_advantages_store_null(tmp_path: Path) -> None:
    path = write_rollouts(tmp_path, 1, [scored((1.0, 3, "correct"))])
    assert pq.read_table(path).column("advantage").to_pylist() == [None]
    assert pq.read_table(write_rollouts(tmp_path, 2, [])).num_rows == 0


def test_no_board_takes_everything(tmp_path: Path) -> None:
    board = open_board(LoggingConfig(wandb="off"), "demo", {}, tmp_path, print)
    assert isinstance(board, NullBoard)
    board.log(1, {"a": 1.0})
    board.finish()
    assert list(tmp_path.iterdir()) == []


def test_a_key_is_found_in_the_environment_and_in_netrc(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_BASE_URL", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert not _has_wandb_key()
    (tmp_path / "netrc").write_text("machine elsewhere.org login user password 0\n")
    assert not _has_wandb_key()
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password 0\n")
    assert _has_wandb_key()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.my-lab.org:8080")
    assert not _has_wandb_key()
    monkeypatch.setenv("WANDB_API_KEY", "0")
    assert _has_wandb_key()
