"""Published references, rewritten as people rewrite an answer: each stays right."""

import random
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from grpo.verify.pool import VerifierPool
from tests.real_data.rewritings import REWRITINGS, itself
from tests.real_data.test_rewards import DATA, boxed, read

pytestmark = pytest.mark.skipif(not DATA.exists(), reason="../shared is not here")

ROWS = 2_000
_COUNTED = re.compile(r"[Hh]ow many (?:more |fewer )?(?!does|was|has|this|less)([a-z]{2,}s)\b")
FILES = sorted([*DATA.glob("eval/*.jsonl"), *DATA.glob("train/*.jsonl")])


@pytest.fixture(scope="module")
def pool() -> Iterator[VerifierPool]:
    with VerifierPool("math", {}, workers=2, timeout_s=20) as pool:
        yield pool


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_reference_is_paid_however_it_is_written(pool: VerifierPool, path: Path):
    """Of each rewriting that applies to a hundred rows or more, and of all together."""
    rows = [row for row in read(path) if row["answer"] not in (None, "")]
    rows = random.Random(0).sample(rows, ROWS) if len(rows) > ROWS else rows
    applied = [
        (rewriting.__name__, boxed(rewritten), gold, row["problem"])
        for row in rows
        for gold in [str(row["answer"])]
        for rewriting in REWRITINGS
        for rewritten in [rewriting(gold)]
        if rewriting is itself or rewritten != gold
    ]
    judged = list(pool.stream([item[1:] for item in applied]))
    refused = [item for item, verdict in zip(applied, judged, strict=True) if not verdict.reward]
    assert len(refused) <= 0.005 * len(applied), refused
    counts, lost = (Counter(name for name, *_ in items) for items in (applied, refused))
    assert not [name for name in lost if counts[name] >= 100 and lost[name] > 0.01 * counts[name]]


@pytest.mark.parametrize("name", ["eval/gsm8k_test", "train/math_train", "eval/math_test_5000"])
def test_a_count_is_paid_with_what_the_problem_counts(pool: VerifierPool, name: str):
    """An integer with the noun behind "how many", bare and as text."""
    asked = [
        (boxed(written), str(row["answer"]), row["problem"])
        for row in read(DATA / f"{name}.jsonl")
        for noun in _COUNTED.findall(row["problem"])[:1]
        if re.fullmatch(r"-?[\d,.]+", str(row["answer"]))
        for written in (f"{row['answer']} {noun}", f"{row['answer']}\\text{{ {noun}}}")
    ]
    judged = list(pool.stream(asked))
    refused = [item for item, verdict in zip(asked, judged, strict=True) if not verdict.reward]
    assert len(asked) > 300
    assert len(refused) <= 0.005 * len(asked), refused


def test_the_rewritings_are_what_they_say():
    """By hand, of one reference that each applies to."""
    written = {
        r"\frac{1}{2}": ("large_fraction", r"\dfrac{1}{2}"),
        "1+x": ("spaced", "1 + x"),
        "5 apples": ("words_as_text", r"5 \text{ apples }"),
        "5": ("full_stop", "5."),
        "6": ("dollars", "$6$"),
        "7": ("round_delimiters", r"\(7\)"),
        "(2, 3]": ("growing_brackets", r"\left(2, 3\right]"),
        "12500": ("thousands", "12,500"),
        "9": ("named", "x = 9"),
        "10": ("display_style", r"\displaystyle 10"),
        r"2\sqrt{3}": ("thin_spaces", r"2\,\sqrt{3}"),
    }
    by_name = {rewriting.__name__: rewriting for rewriting in REWRITINGS}
    assert {gold: (name, by_name[name](gold)) for gold, (name, _) in written.items()} == written
    assert {name for name, _ in written.values()} == set(by_name) - {"itself"}
    for kept in ("1010_2", "x^{2000}", "1, 2000"):
        assert by_name["thousands"](kept) == kept
