"""Two results on the same problems: the paired difference by hand, and what cannot be paired."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from grpo.cli.commands import app
from grpo.console import Screen
from grpo.errors import UserError
from grpo.eval.compare import Difference, compare
from grpo.eval.result import answers_folder, relative, result_of, save
from grpo.eval.scores import bootstrap_interval
from grpo.eval.store import Answered, write_answers
from grpo.types import Verdict


def groups(*problems: list[float], length: int | None = 10) -> list[Answered]:
    """One problem per list of rewards."""
    return [
        Answered(
            serial=serial,
            row_id=f"id-{serial}",
            problem=f"problem {serial}",
            answer="1",
            responses=("r",) * len(rewards),
            lengths=None if length is None else (length,) * len(rewards),
            finish_reasons=("stop",) * len(rewards),
            verdicts=tuple(
                Verdict(reward, str(reward), "correct" if reward == 1 else "wrong")
                for reward in rewards
            ),
        )
        for serial, rewards in enumerate(problems)
    ]


def result(folder: Path, name: str, **benchmarks: list[Answered]) -> Path:
    path = folder / f"{name}.json"
    results = []
    for benchmark, answered in benchmarks.items():
        answers = answers_folder(path) / f"{benchmark}.parquet"
        write_answers(answers, answered, {})
        results.append(result_of(benchmark, answered, relative(answers, folder)))
    save(results, path)
    return path


def compared(first: Path, second: Path) -> dict[tuple[str, str], Difference]:
    return {(d.benchmark, d.score): d for d in compare(first, second, Screen())}


def test_the_difference_is_that_of_each_problem(tmp_path: Path) -> None:
    # Per problem: 0 -> 1/2, 1/2 -> 1/2, 1 -> 1/2: the mean stays, two problems moved.
    first = result(tmp_path, "a", sums=groups([0, 0], [1, 0], [1, 1]))
    second = result(tmp_path, "b", sums=groups([1, 0], [0, 1], [1, 0], length=12))
    found = compared(first, second)
    assert list(found) == [
        ("sums", score) for score in ("avg@2", "pass@1", "pass@2", "best@2", "maj@2", "length")
    ]
    avg = found["sums", "avg@2"]
    assert (avg.first, avg.second, avg.change.value) == (0.5, 0.5, 0.0)
    assert (avg.better, avg.worse) == (1, 1)
    assert (avg.change.low, avg.change.high) == bootstrap_interval([0.5, 0.0, -0.5])
    assert not avg.certain
    best = found["sums", "best@2"]
    assert (best.first, best.second) == (pytest.approx(2 / 3), 1.0)
    assert (best.better, best.worse) == (1, 0)
    assert found["sums", "length"].change.value == 2.0


def test_pairing_sees_what_two_intervals_do_not(tmp_path: Path) -> None:
    """Half of 200 problems are hopeless; of the others every tenth is newly solved. Each result's
    own interval is seven points wide on either side, the difference is five points."""
    before = [[0.0]] * 100 + [[1.0]] * 90 + [[0.0]] * 10
    after = [[0.0]] * 100 + [[1.0]] * 100
    first = result(tmp_path, "a", sums=groups(*before))
    second = result(tmp_path, "b", sums=groups(*after))
    avg = compared(first, second)["sums", "avg@1"]
    assert avg.change.value == pytest.approx(0.05)
    assert avg.certain and avg.change.low > 0.02
    assert bootstrap_interval([p[0] for p in before])[1] > 0.5


def test_swapping_the_files_turns_the_sign(tmp_path: Path) -> None:
    first = result(tmp_path, "a", sums=groups([0, 0], [1, 0], [1, 1], [0, 1]))
    second = result(tmp_path, "b", sums=groups([1, 1], [0, 1], [1, 0], [1, 1]))
    there, back = compared(first, second), compared(second, first)
    for key, one in there.items():
        other = back[key]
        assert one.change.value == pytest.approx(-other.change.value)
        assert (one.better, one.worse) == (other.worse, other.better)
        assert one.change.low == pytest.approx(-other.change.high)


def test_a_result_compared_with_itself_has_no_difference_at_all(tmp_path: Path) -> None:
    path = result(tmp_path, "a", sums=groups([0, 1], [1, 1]), more=groups([1], [0]))
    found = compared(path, path)
    assert ("average", "avg") in found
    for one in found.values():
        assert (one.change.value, one.change.low, one.change.high) == (0.0, 0.0, 0.0)
        assert (one.better, one.worse, one.certain) == (0, 0, False)


def test_other_numbers_of_samples_compare_what_does_not_depend_on_them(tmp_path: Path) -> None:
    first = result(tmp_path, "a", sums=groups([1, 0], [0, 0]))
    second = result(tmp_path, "b", sums=groups([1, 0, 1, 0], [1, 0, 0, 0], length=None))
    found = compared(first, second)
    assert [score for _, score in found] == ["avg@2 / avg@4", "pass@1", "pass@2"]
    assert found["sums", "avg@2 / avg@4"].change.value == pytest.approx(1 / 8)


def test_the_average_weighs_benchmarks_alike(tmp_path: Path) -> None:
    first = result(tmp_path, "a", small=groups([0]), large=groups([0], [0], [0], [0]))
    second = result(tmp_path, "b", small=groups([1]), large=groups([0], [0], [0], [1]))
    average = compared(first, second)["average", "avg"]
    assert average.second == pytest.approx((1 + 1 / 4) / 2)
    assert (average.better, average.worse) == (2, 0)


def test_what_only_one_file_has_is_named_and_left_out(tmp_path: Path, capsys) -> None:
    first = result(tmp_path, "a", sums=groups([0]), more=groups([1]))
    second = result(tmp_path, "b", sums=groups([1]), other=groups([1]))
    assert {benchmark for benchmark, _ in compared(first, second)} == {"sums"}
    assert "not compared: more, other" in capsys.readouterr().err


def test_results_that_cannot_be_paired_are_refused(tmp_path: Path) -> None:
    first = result(tmp_path, "a", sums=groups([0], [1]))
    for name, benchmarks, said in (
        ("count", {"sums": groups([0])}, "has 2 problems in one file and 1 in the other"),
        ("name", {"products": groups([0], [1])}, "no benchmark of the same name"),
    ):
        with pytest.raises(UserError, match=said):
            compared(first, result(tmp_path, name, **benchmarks))
    moved = groups([0], [1])
    other = result(tmp_path, "order", sums=[groups([0])[0], groups([0], [1], [1])[2]])
    with pytest.raises(UserError, match=r"row 1 \('id-1'\) of one file is row 2 \('id-2'\)"):
        compared(first, other)
    unjudged = [Answered(n, g.row_id, g.problem, "1", ("r",)) for n, g in enumerate(moved)]
    path = result(tmp_path, "unjudged", sums=moved)
    write_answers(answers_folder(path) / "sums.parquet", unjudged, {})
    with pytest.raises(UserError, match="are not judged"):
        compared(first, path)


def test_the_command_prints_both_sides_and_the_interval(tmp_path: Path) -> None:
    first = result(tmp_path, "a", sums=groups([0], [0], [0]))
    second = result(tmp_path, "b", sums=groups([1], [1], [1]))
    done = CliRunner().invoke(app, ["compare", str(first), str(second)])
    assert done.exit_code == 0, done.output
    row = next(line for line in done.output.splitlines() if "avg@1" in line)
    assert row.split() == [
        *("sums", "avg@1", "0.000", "1.000", "+1.000"),
        *("+1.000", "to", "+1.000", "yes", "3/0"),
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot read"),
        ("{", "is not the JSON result"),
        ("[1]", "is not the JSON result"),
        ('{"step": 1}', "is not the JSON result"),
        ('[{"name": "x"}]', "is not the JSON result"),
    ],
)
def test_a_file_that_is_no_result_exits_with_2(
    tmp_path: Path, content: str | None, said: str
) -> None:
    first = result(tmp_path, "a", sums=groups([0]))
    other = tmp_path / "other.json"
    if content is not None:
        other.write_text(content)
    done = CliRunner().invoke(app, ["compare", str(first), str(other)])
    assert done.exit_code == 2, done.output
    assert said in done.output and "Traceback" not in done.output


def test_answers_that_are_gone_are_named(tmp_path: Path) -> None:
    path = result(tmp_path, "a", sums=groups([0]))
    (answers_folder(path) / "sums.parquet").unlink()
    with pytest.raises(UserError, match="keep the folder beside the file"):
        compared(path, path)
