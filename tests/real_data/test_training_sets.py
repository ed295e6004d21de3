"""Known training files, read whole, as their declarations in data/ say."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

import pytest

from grpo.config.data import Copy, DataConfig, Decontamination
from grpo.config.load import load_data
from grpo.data.benchmarks import find_benchmarks, read_problems
from grpo.data.contamination import Overlap, compare
from grpo.data.load import Loaded, load_rows, sift
from grpo.data.read import open_source
from grpo.errors import UserError
from grpo.types import Row

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "data"

pytestmark = pytest.mark.skipif(
    not (SHARED / "MANIFEST.md").exists(), reason="../shared/data is not here"
)
# file -> declaration, rows read, without an answer, repeated to the letter, same problem
FILES = {
    "dapo_math_17k.jsonl": ("dapo_math_17k", 17917, 0, 650, 1188),
    "math_train.jsonl": ("math_train", 7474, 4, 0, 3),
    "gsm8k_train.jsonl": ("gsm8k_train", 7473, 0, 0, 0),
    "deepscaler_sub_1209.jsonl": ("deepscaler", 1209, 1, 2, 2),
    "deepscaler_sub_2000_with_difficulty.jsonl": ("deepscaler", 2000, 0, 14, 16),
}
# Rows that equal a problem of the benchmark; none for the sets that are not named. The manifest,
# which compares in lower case without white space and $ only, has 6 for the first, 1016, 8 and 5.
EQUAL_TO = {
    "math500": {"dapo_math_17k": 9},
    "math_test_5000": {
        "dapo_math_17k": 1042,
        "math_train": 5,
        "deepscaler_sub_1209": 3,
        "deepscaler_sub_2000_with_difficulty": 4,
    },
    "amc23": {"dapo_math_17k": 11},
    "olympiadbench_oe_to_maths_en": {
        "dapo_math_17k": 10,
        "math_train": 2,
        "deepscaler_sub_1209": 1,
    },
    "aime24": {},
    "aime25": {},
    "minerva_math": {},
    "gsm8k_test": {},
}


@pytest.fixture(autouse=True)
def in_the_root(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)


def declared(name: str, *overrides: str) -> DataConfig:
    return load_data(f"data/{name}.yaml", overrides)


def copies() -> dict[str, Copy]:
    names = [path.stem for path in sorted((ROOT / "data").glob("*.yaml"))]
    return {copy.file: copy for name in names for copy in declared(name).copies}


def test_checksums_and_numbers_of_rows_are_those_of_the_manifest():
    manifest = (SHARED / "MANIFEST.md").read_text()
    entry = re.compile(
        r"### `train/(\S+)`\n- records: (\d+); size: [\d,]+ bytes; sha256: `(\w{64})`"
    )
    listed = {file: (int(rows), sha256) for file, rows, sha256 in entry.findall(manifest)}
    known = {file: (copy.rows, copy.sha256) for file, copy in copies().items() if file in listed}
    assert known == listed
    assert set(listed) == set(FILES)


@cache
def read(file: str, *overrides: str) -> Loaded:
    config = declared(FILES[file][0], f"path={SHARED / 'train' / file}", *overrides)
    return sift(open_source(config), config)


@pytest.mark.parametrize("file", FILES)
def test_every_known_file_is_read_with_the_counts_of_the_manifest(file: str):
    _, rows, empty, exact, normalized = FILES[file]
    loaded = read(file)
    counts = loaded.counts
    assert (counts.read, counts.unreadable, counts.empty_answer) == (rows, 0, empty)
    assert (counts.exact, counts.normalized) == (exact, normalized)
    assert len(loaded.rows) == counts.kept == rows - empty - exact


def test_the_chinese_rows_of_dapo_are_told_by_their_script():
    counts = read("dapo_math_17k.jsonl", "filters.language=latin", "filters.duplicates=keep").counts
    assert (counts.other_script, counts.kept) == (3432, 17917 - 3432)


def test_every_answer_of_dapo_is_an_integer():
    assert all(row.answer.lstrip("-").isdigit() for row in read("dapo_math_17k.jsonl").rows)


@cache
def asked() -> dict[str, list[str]]:
    names = [str(SHARED / "eval" / f"{name}.jsonl") for name in EQUAL_TO]
    return {benchmark.name: read_problems(benchmark) for benchmark in find_benchmarks(names)}


def overlaps(rows: Sequence[Row], names: Iterable[str], **settings: int) -> list[Overlap]:
    config = Decontamination.model_validate(settings)
    return compare(rows, {name: asked()[name] for name in names}, config).overlaps


@pytest.mark.parametrize("file", FILES)
def test_decontamination_finds_equal_problems_in_whatever_style(file: str):
    rows = read(file, "filters.duplicates=keep").rows  # the manifest counts repeated ones, too
    found = Counter(overlap.benchmark for overlap in equal(rows))
    expected = {name: equal.get(Path(file).stem, 0) for name, equal in EQUAL_TO.items()}
    assert {name: found[name] for name in EQUAL_TO} == expected


def equal(rows: Sequence[Row]) -> list[Overlap]:
    return [found for found in overlaps(rows, EQUAL_TO, ngram=0) if found.kind == "exact"]


def test_short_problems_with_an_instruction_of_dapos_are_found():
    """Seven of MATH's test set are asked with "The answer is in the form ...", one of AMC's and one
    of MATH's with another; each was read."""
    rows = read("dapo_math_17k.jsonl", "filters.duplicates=keep").rows
    found = [o for o in overlaps(rows, EQUAL_TO) if o.kind == "contained"]
    assert Counter(o.benchmark for o in found) == {"math_test_5000": 8, "amc23": 1}


def test_boilerplate_of_competitions_does_not_cost_hundreds_of_rows():
    """No row of DAPO is a problem of AIME 2024, but 408 share 13 words with one, most of them
    "... where m and n are relatively prime positive integers ..."."""
    rows = read("dapo_math_17k.jsonl", "filters.duplicates=keep").rows
    hit = [rows[overlap.index] for overlap in overlaps(rows, ["aime24"], set_phrase=100_000)]
    assert len(hit) == 408
    # Rows that share nothing make no phrase a set one, so these alone give the same answer as all.
    assert len(overlaps(hit, ["aime24"])) == 53


def test_the_real_dapo_rows_load_from_a_local_copy():
    rows = load_rows(
        load_data("data/dapo_math_17k.yaml", [f"path={SHARED}/train/dapo_math_17k.jsonl"])
    )
    assert 16_000 < len(rows) <= 17_917
    assert all(row.answer.lstrip("-").isdigit() for row in rows)


def test_the_real_math_rows_load_without_the_four_that_have_no_answer(tmp_path: Path):
    source = SHARED / "train" / "math_train.jsonl"
    with pytest.raises(UserError, match=r"math_train.jsonl:887: no answer"):
        strict = [f"path={source}", "filters.empty_answer=error"]
        load_rows(load_data("data/math_train.yaml", strict))
    lines = [line for line in source.read_text().splitlines() if json.loads(line)["answer"]]
    kept = tmp_path / "rows.jsonl"
    kept.write_text("\n".join(lines))
    rows = load_rows(load_data("data/math_train.yaml", [f"path={kept}"]))
    assert len(lines) == 7470
    assert 7400 < len(rows) <= 7470
    first = json.loads(lines[0])
    assert rows[0] == Row(str(first["id"]), first["problem"].strip(), first["answer"])
