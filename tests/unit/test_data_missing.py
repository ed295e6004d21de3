"""Values that are not there, and values that no prompt of text can show."""

import io
import json
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from grpo.config.data import DataConfig
from grpo.console import Screen
from grpo.data import load_rows
from grpo.data.inspect import check
from grpo.data.read import Fault, Record
from grpo.data.rows import to_row
from grpo.errors import UserError
from grpo.types import Row

NAN = float("nan")


def config_of(**settings: object) -> DataConfig:
    values = {"name": "d", "path": "raw.jsonl", "decontaminate": {"against": []}}
    return DataConfig.model_validate(values | settings)


def read(**values: object) -> Row | Fault:
    return to_row(Record("raw.jsonl:1", 1, {"problem": "1+1", **values}), config_of())


@pytest.mark.parametrize("missing", [NAN, np.float32("nan"), np.array([NAN]), [NAN], [None], None])
def test_an_answer_that_is_not_a_number_is_a_missing_one(missing: object):
    found = read(answer=missing)
    assert isinstance(found, Fault) and found.kind == "empty_answer"
    assert ("answer is NaN" in found.message) == (isinstance(missing, float | np.floating))
    assert read(answer=missing, final_answer="2") == Row("1", "1+1", "2")
    assert read(answer="2", id=missing) == Row("1", "1+1", "2")


def test_a_problem_that_is_not_a_number_is_a_missing_one():
    found = read(problem=NAN, answer="2")
    assert isinstance(found, Fault) and "no problem" in found.message


@pytest.mark.parametrize("value", [float("inf"), -float("inf"), b"2", [b"2"]])
def test_an_answer_that_is_no_text_and_no_finite_number_is_refused(value: object):
    found = read(answer=value)
    assert isinstance(found, Fault) and found.kind == "unreadable"
    assert "expected text, a number or a list of one" in found.message


def test_a_word_that_reads_nan_stays_an_answer():
    assert read(answer="nan") == Row("1", "1+1", "nan")


def test_missing_answers_of_files_obey_the_filter_and_are_told_by_the_check(tmp_path: Path):
    lines = tmp_path / "raw.jsonl"
    lines.write_text('{"problem": "1+1", "answer": NaN}\n{"problem": "2+2", "answer": 4}')
    table = tmp_path / "raw.parquet"
    rows = [{"problem": "1+1", "answer": NAN}, {"problem": "2+2", "answer": 4.5}]
    pq.write_table(pa.Table.from_pylist([*rows, {"problem": "3+3", "answer": None}]), table)
    for path, kept in ((lines, Row("2", "2+2", "4")), (table, Row("2", "2+2", "4.5"))):
        with pytest.raises(UserError, match=r"no answer .*answer is NaN.*empty_answer=drop"):
            load_rows(config_of(path=str(path)))
        told = io.StringIO()
        with pytest.raises(UserError, match="answer is NaN"):
            check(config_of(path=str(path)), Screen(told, told))
        assert load_rows(config_of(path=str(path), filters={"empty_answer": "drop"})) == [kept]


def test_what_a_row_carries_for_a_benchmark_is_never_nan():
    record = Record("raw.jsonl:1", 1, {"problem": "1+1", "answer": "2", "error": NAN, "level": 3})
    row = to_row(record, config_of(), ["error", "level"])
    assert isinstance(row, Row) and row.extra == {"error": None, "level": 3}


PNG = b"\x89PNG\r\n"


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("image", "figures/a.png"),
        ("images", ["a.png"]),
        ("images", [{"bytes": PNG, "path": None}]),
        ("Image", {"bytes": None, "path": "a.png"}),
        ("image_1", PNG),
        ("image_url", "https://example.org/a.png"),
        ("decoded_image", Image.new("RGB", (1, 1))),
        ("video", "a.mp4"),
        ("audios", ["a.wav"]),
        ("figure", {"bytes": PNG, "path": "a.png"}),
        ("figure", PNG),
        ("scans", [{"bytes": PNG, "path": "a.png"}]),
    ],
)
def test_a_row_with_images_sound_or_video_is_refused_unless_one_says_so(column: str, value: object):
    found = read(answer="2", **{column: value})
    assert isinstance(found, Fault) and found.kind == "unreadable"
    assert f"in the column {column!r}" in found.message
    assert f"data.columns.ignored=[{column}]" in found.message
    record = Record("raw.jsonl:1", 1, {"problem": "1+1", "answer": "2", column: value})
    assert to_row(record, config_of(columns={"ignored": [column]})) == Row("1", "1+1", "2")


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("image", None),
        ("image", ""),
        ("images", []),
        ("images", [None]),
        ("image", {"bytes": None, "path": None}),
        ("image", NAN),
        ("image", False),
        ("has_image", True),
        ("imagery", "vivid"),
        ("imaginary_part", 2),
        ("sha256", b"\x00\x01"),
        ("path", "a.png"),
    ],
)
def test_a_column_without_any_stays_unnoticed(column: str, value: object):
    assert read(answer="2", **{column: value}) == Row("1", "1+1", "2")


def test_the_check_tells_rows_with_images_and_the_filter_leaves_them_out(tmp_path: Path):
    path = tmp_path / "raw.jsonl"
    rows = [{"problem": "1+1", "answer": "2", "image": "a.png"}, {"problem": "2+2", "answer": "4"}]
    path.write_text("\n".join(map(json.dumps, rows)))
    told = io.StringIO()
    with pytest.raises(UserError, match=r"raw.jsonl:1 holds images"):
        check(config_of(path=str(path)), Screen(told, told))
    kept = config_of(path=str(path), filters={"bad_rows": "skip"})
    assert load_rows(kept) == [Row("2", "2+2", "4")]
    check(kept, Screen(told, told))
    assert "raw.jsonl:1 holds images" in told.getvalue()


def test_the_hubs_images_are_refused_without_being_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "hub").mkdir()
    features = datasets.Features(
        {k: datasets.Value("string") for k in ("problem", "answer")} | {"scan": datasets.Image()}
    )
    broken = [{"problem": "1+1", "answer": "2", "scan": {"bytes": b"no picture", "path": None}}]
    whole = [{"problem": "2+2", "answer": "4", "scan": None}]
    made = datasets.Dataset.from_list(broken + whole, features=features)
    made.to_parquet(str(tmp_path / "hub" / "train.parquet"))
    config = config_of(path=None, hub=str(tmp_path / "hub"))
    with pytest.raises(UserError, match="in the column 'scan'"):
        load_rows(config)
    skipping = config.model_copy(
        update={"columns": config.columns.model_copy(update={"ignored": ["scan"]})}
    )
    assert [row.problem for row in load_rows(skipping)] == ["1+1", "2+2"]
