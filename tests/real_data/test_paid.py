"""What honest answers show of the signs of a gamed reward; docs/metrics.md quotes the figures."""

import pytest

from grpo.config.verifier import VerifierConfig
from grpo.train.paid import COPIED, ECHO, PaidAnswer, PaidFor, is_echo
from grpo.types import ScoredGroup
from grpo.verify.pool import VerifierPool
from tests.real_data.test_rewards import CASES, DATA, boxed, read
from tests.unit.test_paid import answer

pytestmark = pytest.mark.skipif(not CASES.exists(), reason="../shared is not here")


def stands(problem: str, text: str) -> bool:
    return is_echo(PaidAnswer(problem, "", "", text, "stop"))


def paid(file: str, mark: str) -> list[ScoredGroup]:
    rows = [row for row in read(DATA / "verifier" / f"{file}.jsonl") if row["expected"]]
    texts = [row["pred"] if mark else boxed(row["pred"]) for row in rows]
    with VerifierPool("math", {"mark": mark}, workers=2, timeout_s=60) as pool:
        items = [
            (text, row["gold"], row["question"]) for text, row in zip(texts, rows, strict=True)
        ]
        verdicts = list(pool.stream(items))
    return [
        answer(text, verdict.parsed, row["question"], row["gold"])
        for text, row, verdict in zip(texts, rows, verdicts, strict=True)
        if verdict.reward > 0
    ]


def test_right_solutions_are_neither_echoes_nor_copies():
    groups = paid("gsm8k_model_solutions_1000", "A:")
    rows = [group.group.prompt.row for group in groups]
    parsed = [group.verdicts[0].parsed for group in groups]
    numbers = [stands(row.problem, text) for row, text in zip(rows, parsed, strict=True)]
    assert (len(groups), sum(numbers)) == (386, 14)
    shares = PaidFor(VerifierConfig()).look_at(groups).shares()
    assert (shares[ECHO], shares[COPIED]) == (0, 0)


def test_references_that_are_sentences_make_few_right_answers_look_like_echoes():
    groups = paid("hardverify_math_even", "")
    assert len(groups) >= 103
    share = PaidFor(VerifierConfig()).look_at(groups).shares()[ECHO]
    assert share == pytest.approx(3 / len(groups))


@pytest.mark.parametrize(
    ("file", "share"),
    [("gsm8k_test", 0.061), ("math_test_5000", 0.086), ("math500", 0.104), ("amc23", 0.15)],
)
def test_references_stand_in_their_problems_by_chance(file: str, share: float):
    rows = read(DATA / "eval" / f"{file}.jsonl")
    found = [
        stands(str(row.get("problem") or row.get("question")), str(row["answer"]).split("####")[-1])
        for row in rows
    ]
    assert round(sum(found) / len(rows), 3) == share
