"""Sources: what cannot be read is a fault with its place, and known files are what they were."""

import hashlib
import json
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from grpo.config.data import Copy, DataConfig
from grpo.data import load_rows
from grpo.data.load import sift
from grpo.data.read import open_source
from grpo.errors import UserError
from grpo.types import Row

GOOD = '{"problem": "1+1", "answer": "2"}'


def config_of(path: Path, **settings: object) -> DataConfig:
    return DataConfig.model_validate({"name": "sums", "path": str(path), **settings})


def written(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines))
    return path


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"problem": "1+1", "answer": %s}' % ("7" * 5000), "rows.jsonl:1 is not JSON"),
        ("[" * 100_000, "rows.jsonl:1 is not JSON"),
        (r'{"problem": "1+\ud835", "answer": "2"}', "half of a surrogate pair"),
        (r'{"problem": "1+1", "answer": "\udc00"}', "half of a surrogate pair"),
        ('["1+1", "2"]', "expected an object"),
    ],
)
def test_a_line_that_no_row_can_be_made_of_is_a_users_mistake(tmp_path: Path, line: str, said: str):
    with pytest.raises(UserError, match=said):
        load_rows(config_of(written(tmp_path, line, GOOD)))


def test_bad_rows_can_be_skipped_and_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path = written(tmp_path, "{oops", "7", '{"problem": "p", "answer": ["1", "2"]}', GOOD, "", GOOD)
    config = config_of(path, filters={"bad_rows": "skip"})
    assert load_rows(config) == [Row("4", "1+1", "2")]
    assert "left out that cannot be read: 3" in caplog.text
    counts = sift(open_source(config), config).counts
    assert (counts.read, counts.unreadable, counts.exact, counts.kept) == (5, 3, 1, 1)


@pytest.mark.parametrize("empty", ["null", '""', '"  "', "[]"])
def test_rows_with_an_empty_answer_are_dropped_where_the_declaration_says_so(
    tmp_path: Path, empty: str
):
    path = written(tmp_path, f'{{"problem": "?", "answer": {empty}}}', GOOD)
    with pytest.raises(UserError, match=r"rows.jsonl:1: no answer .*filters.empty_answer=drop"):
        load_rows(config_of(path))
    config = config_of(path, filters={"empty_answer": "drop"})
    assert load_rows(config) == [Row("2", "1+1", "2")]


def test_a_row_without_any_answer_column_is_no_row_with_an_empty_answer(tmp_path: Path):
    """A misspelt column must not drop every row as unanswered."""
    path = written(tmp_path, '{"problem": "1+1", "anser": "2"}', GOOD)
    with pytest.raises(UserError, match=r"rows.jsonl:1: no answer"):
        load_rows(config_of(path, filters={"empty_answer": "drop"}))


def test_where_no_row_is_left_the_error_says_where_they_went(tmp_path: Path):
    path = written(tmp_path, '{"problem": "?", "answer": ""}', "7")
    filters = {"empty_answer": "drop", "bad_rows": "skip"}
    with pytest.raises(UserError, match="of 2 read, 1 could not be read, 1 had no answer"):
        load_rows(config_of(path, filters=filters))


@pytest.mark.parametrize(
    ("answer", "after", "read"),
    [
        ("3*4 = 12\n#### 12", "####", "12"),
        ("#### 1, no: #### 2", "####", "2"),
        ("12", "####", "12"),
        ("#### 12", "", "#### 12"),
    ],
)
def test_the_answer_follows_the_last_mark_where_there_is_one(
    tmp_path: Path, answer: str, after: str, read: str
):
    path = written(tmp_path, json.dumps({"problem": "p", "answer": answer}))
    assert load_rows(config_of(path, answer_after=after))[0].answer == read


def test_nothing_after_the_mark_is_an_empty_answer(tmp_path: Path):
    path = written(tmp_path, json.dumps({"problem": "p", "answer": "Thus ####"}))
    with pytest.raises(UserError, match="no answer"):
        load_rows(config_of(path, answer_after="####"))


def test_parquet_rows_come_in_their_order_over_many_batches(tmp_path: Path):
    path = tmp_path / "rows.parquet"
    rows = [{"problem": f"{i}+1", "answer": i + 1} for i in range(2500)]
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=700)
    assert load_rows(config_of(path)) == [
        Row(str(i + 1), f"{i}+1", str(i + 1)) for i in range(2500)
    ]
    assert open_source(config_of(path)).total == 2500


def test_a_parquet_file_that_was_cut_or_damaged_is_refused(tmp_path: Path):
    path = tmp_path / "rows.parquet"
    rows = [{"problem": f"{i}+1", "answer": i + 1} for i in range(2500)]
    pq.write_table(pa.Table.from_pylist(rows), path, compression="none", use_dictionary=False)
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    with pytest.raises(UserError, match="is not a parquet file"):
        load_rows(config_of(path))
    path.write_bytes(whole[:4] + b"\xff" * 64 + whole[68:])
    with pytest.raises(UserError, match=r"rows.parquet' is damaged after row 0"):
        load_rows(config_of(path))


def known(path: Path, **changes: object) -> list[Copy]:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return [Copy.model_validate({"file": path.name, "sha256": digest, "rows": 2} | changes)]


def test_a_known_copy_must_have_its_checksum_and_the_error_names_both(tmp_path: Path):
    path = written(tmp_path, GOOD, GOOD)
    assert len(load_rows(config_of(path, copies=known(path)))) == 1
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(UserError, match=rf"sha256 {found}, data 'sums' knows .* {'0' * 64}"):
        load_rows(config_of(path, copies=known(path, sha256="0" * 64)))


def test_a_known_copy_must_have_its_number_of_rows(tmp_path: Path):
    path = written(tmp_path, GOOD, GOOD)
    with pytest.raises(UserError, match="has 2 rows, expected 3"):
        load_rows(config_of(path, copies=known(path, rows=3)))


def test_a_file_of_another_name_is_nobodys_copy(tmp_path: Path):
    path = written(tmp_path, GOOD)
    copies = known(path, file="others.jsonl", sha256="0" * 64)
    assert load_rows(config_of(path, copies=copies)) == [Row("1", "1+1", "2")]


def test_the_hubs_rows_are_read_in_their_order_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A folder is a data set to the library, so that no network is needed."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "hub").mkdir()
    lines = [json.dumps({"problem": f"{i}+1", "answer": str(i + 1)}) for i in range(3)]
    (tmp_path / "hub" / "train.jsonl").write_text("\n".join(lines))
    config = DataConfig(name="sums", hub=str(tmp_path / "hub"), hub_rows=3)
    assert [row.problem for row in load_rows(config)] == ["0+1", "1+1", "2+1"]
    with pytest.raises(UserError, match=r"has 3 rows, expected 4"):
        load_rows(config.model_copy(update={"hub_rows": 4}))


def test_a_hub_that_is_not_there_names_the_way_out(tmp_path: Path):
    with pytest.raises(UserError, match=r"read a local copy with data.path=FILE"):
        load_rows(DataConfig(name="sums", hub=str(tmp_path / "nowhere")))
