"""Answers on disk: whole or not there, and used again only where nothing has changed."""

from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo.eval.store import PART_EVERY_S, Answered, AnswerStore, read_answers, write_answers
from grpo.types import Verdict
from tests.examples import examples

SAMPLED = {"model": {"files": "abc"}, "samples": 2}
JUDGED = {"verifier": "exact", "options": {}}
RIGHT = Verdict(1.0, "7", "correct", 0.25)
WRONG = Verdict(0.0, "8", "wrong", 0.5)


def group(serial: int, **changes: object) -> Answered:
    made = Answered(
        serial=serial,
        row_id=f"id-{serial}",
        problem="3+4",
        answer="7",
        responses=("7", "8"),
        lengths=(1, 2),
        finish_reasons=("stop", "length"),
        labels={"subject": "Sums"},
    )
    return replace(made, **changes)


def done(*verdicts: Verdict) -> list[Future[Verdict]]:
    futures: list[Future[Verdict]] = []
    for verdict in verdicts:
        futures.append(Future())
        futures[-1].set_result(verdict)
    return futures


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def store(folder: Path, clock: Clock | None = None, **changes: object) -> AnswerStore:
    facts = {"sampled": SAMPLED, "judged": JUDGED, **changes}
    return AnswerStore(
        folder / "sums-1.parquet", facts["sampled"], facts["judged"], clock or Clock()
    )


def found_in(folder: Path, num_samples: int = 2, **changes: object) -> dict[int, Answered]:
    return store(folder, **changes).load(num_samples, lambda text: None)


def parts(folder: Path) -> list[Path]:
    return sorted((folder / "sums-1.parts").glob("*.parquet"))


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@given(
    st.lists(st.tuples(texts, texts, st.floats(0, 1), texts), min_size=1, max_size=4),
    st.booleans(),
    st.booleans(),
)
@examples(12)
def test_what_is_written_is_read_again(tmp_path_factory, answers, known, judged) -> None:
    path = tmp_path_factory.mktemp("answers") / "a.parquet"
    groups = [
        group(
            serial,
            problem=problem,
            responses=(response, "8"),
            lengths=(3, 4) if known else None,
            finish_reasons=("stop", "abort") if known else None,
            verdicts=(Verdict(reward, reason, reason, 0.0), WRONG) if judged else None,
            labels={problem: response},
            thinking=judged,
        )
        for serial, (problem, response, reward, reason) in enumerate(answers)
    ]
    write_answers(path, groups, {"sampled": {"a": 1}})
    assert read_answers(path) == (groups, {"sampled": {"a": 1}})


def test_half_a_surrogate_pair_does_not_end_an_evaluation(tmp_path: Path) -> None:
    write_answers(tmp_path / "a.parquet", [group(0, responses=("\ud800", "8"))], {})
    (read,), _ = read_answers(tmp_path / "a.parquet")
    assert read.responses == ("?", "8")


def test_answers_are_on_the_disk_after_half_a_minute_and_after_a_flush(tmp_path: Path) -> None:
    clock = Clock()
    writing = store(tmp_path, clock)
    writing.add(group(0), done(RIGHT, WRONG))
    assert parts(tmp_path) == []
    clock.now = PART_EVERY_S
    writing.add(group(1), done(WRONG, WRONG))
    assert sorted(found_in(tmp_path)) == [0, 1]
    writing.add(group(2), done(WRONG, WRONG))
    assert sorted(found_in(tmp_path)) == [0, 1]
    writing.flush()
    assert sorted(found_in(tmp_path)) == [0, 1, 2]
    assert found_in(tmp_path)[0] == group(0, verdicts=(RIGHT, WRONG))


def test_a_group_whose_verdicts_are_not_all_there_keeps_its_answers(tmp_path: Path) -> None:
    cancelled: Future[Verdict] = Future()
    cancelled.cancel()
    writing = store(tmp_path)
    writing.add(group(0), [*done(RIGHT), Future()])
    writing.add(group(1), [*done(RIGHT), cancelled])
    writing.flush()
    assert found_in(tmp_path) == {0: group(0), 1: group(1)}


def test_the_end_puts_all_into_one_file_in_the_order_of_the_rows(tmp_path: Path) -> None:
    writing = store(tmp_path)
    writing.add(group(5), done(RIGHT, WRONG))
    writing.flush()
    writing.finish([group(n, verdicts=(RIGHT, WRONG)) for n in (5, 2)])
    assert [path.name for path in tmp_path.iterdir()] == ["sums-1.parquet"]
    groups, facts = read_answers(tmp_path / "sums-1.parquet")
    assert [g.serial for g in groups] == [2, 5]
    assert facts == {"sampled": SAMPLED, "judged": JUDGED}
    assert found_in(tmp_path) == {g.serial: g for g in groups}


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, -1])
def test_a_file_that_was_cut_short_is_not_trusted(tmp_path: Path, keep: float) -> None:
    writing = store(tmp_path)
    for serial in (0, 1):
        writing.add(group(serial), done(RIGHT, WRONG))
        writing.flush()
    whole = {path: path.read_bytes() for path in parts(tmp_path)}
    victim, content = next(iter(whole.items()))
    victim.write_bytes(content[: int(len(content) * keep) if 0 < keep < 1 else int(keep)])
    said: list[str] = []
    found = store(tmp_path).load(2, said.append)
    assert len(found) == 1
    (warning,) = said
    assert victim.name in warning and "sampled again" in warning


def test_a_file_with_a_wrong_byte_is_not_trusted(tmp_path: Path) -> None:
    writing = store(tmp_path)
    writing.add(group(0, problem="a problem of many words"), done(RIGHT, WRONG))
    writing.flush()
    (part,) = parts(tmp_path)
    content = part.read_bytes()
    assert content.count(b"many") >= 1
    part.write_bytes(content.replace(b"many", b"many"[::-1], 1))
    assert found_in(tmp_path) == {}


def test_a_file_on_its_way_has_a_hidden_name_and_is_not_read(tmp_path: Path) -> None:
    writing = store(tmp_path)
    writing.add(group(0), done(RIGHT, WRONG))
    writing.flush()
    (part,) = parts(tmp_path)
    part.rename(part.with_name(f".{part.name}.tmp"))
    assert found_in(tmp_path) == {}


def test_answers_that_were_sampled_in_another_way_are_left_alone(tmp_path: Path) -> None:
    store(tmp_path).finish([group(0, verdicts=(RIGHT, WRONG))])
    before = (tmp_path / "sums-1.parquet").read_bytes()
    assert found_in(tmp_path, sampled=SAMPLED | {"model": {"files": "abd"}}) == {}
    assert found_in(tmp_path, num_samples=3) == {}
    assert (tmp_path / "sums-1.parquet").read_bytes() == before


def test_another_verifier_gets_the_answers_but_not_the_verdicts(tmp_path: Path) -> None:
    store(tmp_path).finish([group(0, verdicts=(RIGHT, WRONG))])
    assert found_in(tmp_path, judged=JUDGED | {"options": {"strict": True}}) == {0: group(0)}


def test_a_parquet_file_of_somebody_else_is_refused(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    with pytest.raises(ValueError, match="holds no answers of an evaluation"):
        read_answers(tmp_path / "other.parquet")
    with pytest.raises(ValueError, match="cannot be read"):
        read_answers(tmp_path / "nowhere.parquet")


def test_a_file_from_before_thinking_was_written_down_is_read(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    write_answers(tmp_path / "a.parquet", [group(0, thinking=True)], {"sampled": {}})
    table = pq.read_table(tmp_path / "a.parquet")
    pq.write_table(table.drop_columns("thinking"), tmp_path / "a.parquet")
    assert read_answers(tmp_path / "a.parquet") == ([group(0)], {"sampled": {}})
