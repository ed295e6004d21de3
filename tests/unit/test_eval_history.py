"""Peak and last accuracy of a run, from the files of its evaluations."""

import json
import math
from pathlib import Path

import pytest

from grpo.eval.history import history, metric_names, series, track
from grpo.eval.result import BenchmarkResult, load, mean_of, save
from grpo.eval.scores import Score


def result(name: str, avg: float, best: float, k: int = 8) -> BenchmarkResult:
    scores = {
        f"avg@{k}": Score(f"avg@{k}", avg, avg - 0.1, avg + 0.1),
        f"best@{k}": Score(f"best@{k}", best, best - 0.1, best + 0.1),
    }
    return BenchmarkResult(name, 10, scores, 5.0, 0.0, 0.0)


def test_avg_and_best_have_peaks_of_their_own() -> None:
    evaluations = {
        0: [result("sums", 0.2, 0.5)],
        10: [result("sums", 0.6, 0.7)],
        20: [result("sums", 0.4, 0.9)],
        30: [result("sums", 0.5, 0.8)],
    }
    average, best = track(evaluations)["sums"]
    assert (average.first.value, average.peak.value, average.peak_step) == (0.2, 0.6, 10)
    assert (best.first.value, best.peak.value, best.peak_step) == (0.5, 0.9, 20)
    assert (average.last.value, best.last.value) == (0.5, 0.8)


def test_the_earliest_of_equal_peaks_counts() -> None:
    evaluations = {20: [result("s", 0.6, 0.6)], 10: [result("s", 0.6, 0.6)]}
    assert track(evaluations)["s"][0].peak_step == 10


def test_the_peak_of_the_average_is_not_the_average_of_the_peaks() -> None:
    evaluations = {
        0: [result("a", 0.2, 0.3), result("b", 0.8, 0.9)],
        10: [result("a", 0.6, 0.7), result("b", 0.5, 0.6)],
    }
    average, best = track(evaluations)["average"]
    assert (average.peak.value, average.peak_step) == (pytest.approx(0.55), 10)
    assert (best.peak.value, best.peak_step) == (pytest.approx(0.65), 10)


def test_evaluations_with_another_number_of_samples_do_not_count() -> None:
    evaluations = {0: [result("s", 0.9, 0.9, k=4)], 10: [result("s", 0.5, 0.6)]}
    average, _ = track(evaluations)["s"]
    assert (average.peak.value, average.first.value) == (0.5, 0.5)


def test_a_metric_is_found_under_the_name_that_it_is_logged_under() -> None:
    evaluations = {
        20: [result("a", 0.6, 0.7), result("b", 0.5, 0.6)],
        10: [result("a", 0.2, 0.3), result("b", 0.8, 0.9)],
    }
    assert series(evaluations, "eval/a/avg") == {10: 0.2, 20: 0.6}
    assert series(evaluations, "eval/b/best") == {10: 0.9, 20: 0.6}
    average = series(evaluations, "eval/average/avg")
    assert average == {10: pytest.approx(0.5), 20: pytest.approx(0.55)}
    assert series(evaluations, "eval/c/avg") == series({}, "eval/a/avg") == {}
    assert series(evaluations, "eval/a/peak") == {}, "which never falls"
    for name in metric_names(["a", "b"]):
        assert series(evaluations, name).keys() == {10, 20}
    assert metric_names(["a"]) == ["eval/a/avg", "eval/a/best"], "no average of one"


def test_a_metric_is_compared_with_that_of_as_many_samples() -> None:
    evaluations = {0: [result("s", 0.9, 0.9, k=4)], 10: [result("s", 0.5, 0.6)]}
    assert series(evaluations, "eval/s/best") == {10: 0.6}
    later = evaluations | {20: [result("other", 0.1, 0.1)]}
    assert series(later, "eval/s/best") == {10: 0.6}


def test_results_of_earlier_versions_are_read_and_left_out(tmp_path: Path) -> None:
    old = {
        "name": "s",
        "num_problems": 4,
        "scores": {"avg@8": {"name": "avg@8", "value": 0.9, "low": 0.8, "high": 1.0}},
        "length_mean": 3.0,
        "truncated_share": 0.0,
        "no_answer_share": 0.0,
    }
    (tmp_path / "step_000000.json").write_text(json.dumps([old]))
    save([result("s", 0.5, 0.6)], tmp_path / "step_000010.json")
    assert track(history(tmp_path))["s"][0].peak.value == 0.5
    (tmp_path / "step_000010.json").unlink()
    assert track(history(tmp_path)) == {}


def test_a_history_is_read_in_the_order_of_steps(tmp_path: Path) -> None:
    for step in (100, 5, 20):
        save([result("s", step / 100, 1.0)], tmp_path / f"step_{step:06d}.json")
    (tmp_path / "step_x.json").write_text("{}")
    (tmp_path / "arithmetic.json").write_text("{}")
    assert list(history(tmp_path)) == [5, 20, 100]
    assert history(tmp_path / "nowhere") == {}


def test_a_result_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    unknown = BenchmarkResult("s", 1, result("s", 0.5, 0.6).scores, math.nan, math.nan, 0.5)
    save([result("a", 0.5, 0.6), unknown], tmp_path / "r.json")
    known, back = load(tmp_path / "r.json")
    assert known == result("a", 0.5, 0.6)
    assert math.isnan(back.length_mean) and math.isnan(back.truncated_share)


def test_the_interval_of_a_mean_of_independent_benchmarks_by_hand() -> None:
    # Half widths 3 and 4 (hundredths): sqrt(9 + 16) / 2 = 2.5.
    scores = [Score("avg@8", 0.4, 0.37, 0.44), Score("avg@8", 0.6, 0.56, 0.63)]
    mean = mean_of(scores, "avg")
    assert (mean.name, mean.value) == ("avg", pytest.approx(0.5))
    assert (mean.low, mean.high) == (pytest.approx(0.475), pytest.approx(0.525))
