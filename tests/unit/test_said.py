"""What the library logs reaches the person who started a command."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from grpo.cli.said import show_log
from grpo.config.data import DataConfig
from grpo.data import load_rows


@pytest.fixture(autouse=True)
def as_in_a_command() -> Iterator[None]:
    log = logging.getLogger("grpo")
    before = log.handlers, log.level, log.propagate
    show_log()
    yield
    log.handlers, log.level, log.propagate = before


def test_rows_that_are_left_out_are_counted_on_the_screen(tmp_path: Path, capsys) -> None:
    rows = ['{"problem": "1+1", "answer": "2"}'] * 3 + ['{"problem": "1+2", "answer": ""}']
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    filters = {"duplicates": "exact", "empty_answer": "drop"}
    config = {"name": "sums", "path": str(tmp_path / "rows.jsonl"), "filters": filters}
    load_rows(DataConfig.model_validate(config))
    said = capsys.readouterr()
    assert said.err == "warning: sums: rows left out that have no answer: 1\n"
    assert said.out == "sums: rows left out that repeat another: 2\n"


def test_other_libraries_are_not_spoken_for(capsys) -> None:
    logging.getLogger("somebody.else").info("hello")
    assert capsys.readouterr() == ("", "")
