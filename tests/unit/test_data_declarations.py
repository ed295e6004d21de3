"""The declarations in data/ and what docs say of them."""

import json
import re
from pathlib import Path
from typing import get_args

import pytest

from grpo.config.data import Copy, DataConfig, Decontamination, Filters
from grpo.config.load import load_data
from grpo.data.load import sift
from grpo.data.read import open_source

ROOT = Path(__file__).parents[2]
NAMES = sorted(path.stem for path in (ROOT / "data").glob("*.yaml"))
GENERATED = ["arithmetic", "countdown", "stories"]


@pytest.fixture(autouse=True)
def in_the_root(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)


def declared(name: str, *overrides: str) -> DataConfig:
    return load_data(f"data/{name}.yaml", overrides)


@pytest.mark.parametrize("name", NAMES)
def test_a_declaration_is_named_by_its_file_and_says_what_it_is_compared_with(name: str):
    config = declared(name)
    assert config.name == name
    missing = [file for file in config.decontaminate.against if not Path(file).is_file()]
    assert not missing
    assert config.decontaminate.against or name == "countdown"


@pytest.mark.parametrize("name", [name for name in NAMES if name not in GENERATED])
def test_a_data_set_of_the_hub_is_one_commit_of_it(name: str):
    revision = declared(name).revision
    # Of one the commit is not known; its file says so.
    assert (revision is None) == (name == "orz_math")
    assert revision is None or re.fullmatch("[0-9a-f]{40}", revision)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in GENERATED])
def test_the_template_asks_for_the_box_that_the_math_verifier_looks_for(name: str):
    assert r"\boxed{}" in declared(name).template


def test_the_hubs_gsm8k_rows_have_the_number_after_the_mark(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"question": "2 * 3?", "answer": "It is <<2*3=6>>6.\n#### 6"}))
    loaded = sift(open_source(config := declared("gsm8k_train", f"path={path}")), config)
    assert [(row.problem, row.answer) for row in loaded.rows] == [("2 * 3?", "6")]


def test_the_reference_names_every_declaration_and_every_key_of_what_is_left_out():
    text = (ROOT / "docs" / "data.md").read_text()
    assert sorted(re.findall(r"^\| `(\w+)` \| (?:about )?\d", text, re.MULTILINE)) == NAMES
    keys = [*Filters.model_fields, *Decontamination.model_fields, *Copy.model_fields]
    assert not [key for key in keys if not re.search(rf"\b{key}\b", text)]
    for key in ("bad_rows", "empty_answer", "language", "duplicates"):
        values = get_args(Filters.model_fields[key].annotation)
        row = re.search(rf"^\| `{key}` \| ([^|]*) \|", text, re.MULTILINE)
        assert row and sorted(re.findall(r"`(\w+)`", row[1])) == sorted(values)
