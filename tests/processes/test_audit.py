"""An audit finds rows that can never be rewarded and wrong answers that are."""

import json
import re
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from grpo.cli.verify import settings as read_settings
from grpo.cli.verify import verify
from grpo.config.data import DataConfig
from grpo.config.recipe import VerifierConfig
from grpo.console import Screen
from grpo.data import load_rows
from grpo.errors import RunError, UserError
from grpo.preflight.audit import audit
from grpo.preflight.audit_report import Limits, check_limits
from grpo.preflight.mutate import (
    FORMATS,
    answer_of_another,
    last_digit_changed,
    off_by_one,
    sign_flipped,
)
from tests.examples import examples

ROOT = Path(__file__).parents[2]
PLUGINS = ("tests.unit.hostile_verifiers",)
AIME = ROOT.parent / "shared" / "data" / "eval" / "aime24.jsonl"

app = typer.Typer()
app.command()(verify)


def data_file(folder: Path, answers: Sequence[str]) -> Path:
    path = folder / "rows.jsonl"
    rows = [
        {"id": f"r{i}", "problem": f"What is asked in problem {i}?", "answer": answer}
        for i, answer in enumerate(answers)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture(autouse=True)
def in_the_project(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)


# --- wrong answers ---


@pytest.mark.parametrize(
    ("gold", "one_more", "digit", "negative"),
    [
        ("7", "8", "0", "-7"),
        ("-12", "-13", "-15", "12"),
        ("099", "100", "092", "-099"),
        ("$\\frac{3}{4}$", "$\\frac{4}{4}$", "$\\frac{3}{7}$", "-\\frac{3}{4}"),
        ("2.5", "3.5", "2.8", "-2.5"),
        ("x_1^2+5", "x_1^2+6", "x_1^2+8", "-x_1^2+5"),
        ("2^{10}", "3^{10}", "5^{10}", "-2^{10}"),
        ("9 \\text{ cm}^2", "10 \\text{ cm}^2", "2 \\text{ cm}^2", None),
        ("(1, 2)", "(2, 2)", "(1, 5)", None),
        ("\\pm 3", "\\pm 4", "\\pm 6", None),
        ("x = 4", "x = 5", "x = 7", None),
        ("0", "1", "3", None),
        ("\\pi", None, None, None),
        ("\\text{Tuesday 3}", None, None, None),
        ("east", None, None, None),
        ("9" * 101, None, None, "-" + "9" * 101),
    ],
)
def test_wrong_answers_look_like_the_reference(
    gold: str, one_more: str | None, digit: str | None, negative: str | None
):
    assert off_by_one(gold) == one_more
    assert last_digit_changed(gold) == digit
    assert sign_flipped(gold) == negative


@examples(50)
@given(st.fractions(max_denominator=999).filter(bool), st.sampled_from(["{}", "{}.25"]))
def test_a_mutated_number_is_another_number(value: Fraction, shape: str):
    text = shape.format(value.numerator) if value.denominator == 1 else str(value)
    for mutate in (off_by_one, last_digit_changed, sign_flipped):
        mutated = mutate(text)
        assert mutated is not None
        above, _, below = mutated.partition("/")
        assert below == "0" or Fraction(above) / Fraction(below or 1) != Fraction(text)


@pytest.mark.parametrize(
    ("golds", "expected"),
    [
        (["1", "2"], "2"),
        (["1", "1.0", "\\frac{2}{2}", "3/3", "$1$", "4"], "4"),
        (["0.5", "1/2"], None),
        (["5", "x = 5", "y = 6"], "y = 6"),
        (["\\frac{1}{0}", "7"], "7"),
        (["x^2", "x^{2}"], "x^{2}"),
        (["3"], None),
    ],
)
def test_the_answer_of_another_row_is_not_the_same_text_or_number(
    golds: list[str], expected: str | None
):
    assert answer_of_another(golds, 0) == expected


@pytest.mark.parametrize(("name", "write"), FORMATS.items())
def test_every_format_holds_the_reference_and_keeps_its_own_dollars(name: str, write):
    assert "x^2" in write("x^2")
    assert write("x^2").count("$") == name.count("$")
    assert write("$5$ or $6$").count("$") == 4


# --- an audit ---


def test_the_audit_counts_what_a_verifier_accepts(tmp_path: Path):
    path = data_file(tmp_path, ["12", "7", "\\frac{1}{2}", "}{"])
    config = DataConfig(name="rows", path=str(path))
    result = audit(config, VerifierConfig(name="exact", workers=1), (), Screen())
    # The four rows by hand: `exact` compares text, so dollar signs are another text. The last one
    # closes its box at once, and so does row 3's answer of another row.
    assert result.num_rows == 4
    assert result.accepted[r"\boxed{gold}"] == 3
    assert result.accepted["Answer: gold"] == 4
    assert result.accepted["Answer: $gold$"] == 0
    assert result.accepted["<answer>gold</answer>"] == 4
    assert (result.never, result.false_positives, result.stopped) == ([], [], [])
    assert [finding.id for finding in result.partly] == ["r0", "r1", "r2", "r3"]
    assert result.mutated == {
        "off by one": 3,
        "last digit changed": 3,
        "sign flipped": 3,
        "another row's answer": 4,
    }
    assert len(result.seconds) == sum(result.reasons.values()) > 4 * 5 + 13
    assert result.attacked["its own text"] == 4
    assert result.had == {"the commonest reference": 1}


def test_the_worked_solution_of_a_generated_row_is_what_is_judged():
    task = {"name": "countdown", "rows": 5, "largest": 9, "largest_target": 9}
    config = DataConfig.model_validate({"name": "puzzles", "task": task})
    result = audit(config, VerifierConfig(name="countdown", workers=1), (), Screen())
    assert result.accepted[r"\boxed{gold}"] == 5
    assert not result.fooled


def test_programs_are_refused_in_words():
    config = DataConfig(name="rows", path="rows.jsonl")
    with pytest.raises(UserError, match="judges programs"):
        audit(config, VerifierConfig(name="code"), (), Screen())


def test_the_limit_is_a_share_of_the_rows(tmp_path: Path):
    path = data_file(tmp_path, ["12", "7", "8", "hang 1"])
    config = DataConfig(name="rows", path=str(path))
    result = audit(config, VerifierConfig(name="picky", workers=1), PLUGINS, Screen())
    assert [finding.row for finding in result.never] == [4]
    assert result.never[0].what.endswith("Answer: $gold$, <answer>gold</answer>: wrong")
    check_limits(result, Limits(0.25, 1, 1))
    with pytest.raises(RunError, match=r"1 of 4 rows \(25\.00 %\) can never .* limit is 24 %"):
        check_limits(result, Limits(0.24, 1, 1))


# --- answers made from the problem alone ---

# What a real set may have, one row for each way to be paid without solving anything.
PLANTED = {
    "a formula of it": ("Simplify $\\sqrt{53}$ if that can be done.", "\\sqrt{53}"),
    "its own text, marked": ("x^2+1", "x^2+1"),
    "both choices": ("Is it three or four?", "three or four"),
    "an empty answer": ("Who is the last one to leave?", "None"),
    "many boxes": ("List all digits in order.", "0, 1, 2, 3, 4, 5, 6, 7, 8, 9"),
    "its only number": ("Which value has a function that is constant and 71?", "71"),
    "its first number": ("Of 72 birds 11 and then 19 fly off. How many were there?", "72"),
    "its last number": ("Take 13 away, then 29, and write 73 as it is.", "73"),
    "one of two choices": ("Is ninety-one prime or composite?", "composite"),
    "any number of it": ("From 31 to 74 and on to 37, what is the largest?", "74"),
}


def word_problems(count: int) -> list[tuple[str, str]]:
    return [
        (f"Ann has {i + 20} apples, buys {2 * i + 30} and eats five. How many?", str(3 * i + 45))
        for i in range(count)
    ]


def planted_file(folder: Path, planted: dict[str, tuple[str, str]]) -> Path:
    rows = [(str(i), *row) for i, row in enumerate(word_problems(90))]
    rows[30:30] = [(name, *row) for name, row in planted.items()]
    path = folder / "planted.yaml"
    lines = [json.dumps({"id": a, "problem": b, "answer": c}) for a, b, c in rows]
    (folder / "planted.jsonl").write_text("\n".join(lines))
    path.write_text(f"name: planted\npath: {folder / 'planted.jsonl'}\n")
    return path


def test_ten_planted_giveaways_are_found_and_nothing_else(tmp_path: Path):
    path, out = planted_file(tmp_path, PLANTED), tmp_path / "audit.json"
    result = run(str(path), "--out", str(out))
    assert result.exit_code == 1, result.output
    found = [
        json.loads(x) for x in (tmp_path / "audit.giveaways.jsonl").read_text().split("\n")[1:-1]
    ]
    assert {one["id"] for one in found} == PLANTED.keys()
    by_attack = {(one["id"], one["attack"]) for one in found}
    assert {(name, name) for name in PLANTED} <= by_attack
    said = "'a formula of it' is paid on 1 of 100 rows (1.00 %), and the limit is 0.5 %"
    assert said in result.output
    assert "filters.giveaways=drop" in result.output
    kept = {
        filter: {row.id for row in load_rows(filtered(path, tmp_path, filter))}
        for filter in ("drop", "drop_guesses")
    }
    assert PLANTED.keys() & kept["drop"] == set(list(PLANTED)[5:])
    assert kept["drop_guesses"] == {str(i) for i in range(90)}


def filtered(path: Path, folder: Path, filter: str) -> DataConfig:
    overrides = [
        f"filters.giveaways={filter}",
        f"filters.giveaways_file={folder / 'audit.giveaways.jsonl'}",
    ]
    return read_settings(str(path), overrides, None, "math")[0]


def test_without_them_the_exit_code_is_0(tmp_path: Path):
    path, out = planted_file(tmp_path, {}), tmp_path / "audit.json"
    result = run(str(path), "--out", str(out))
    assert result.exit_code == 0, result.output
    assert len((tmp_path / "audit.giveaways.jsonl").read_text().splitlines()) == 1


def test_a_data_set_of_first_numbers_or_coin_tosses_is_refused(tmp_path: Path):
    rows = [(f"Of {i + 50} birds {i + 20} fly off. How many were there?", i) for i in range(10)]
    path = data_file(tmp_path, [])
    lines = [{"problem": p, "answer": str(i + 50)} for p, i in rows]
    lines += [{"problem": f"Is claim {i} true?", "answer": "Yes"} for i in range(10)]
    path.write_text("\n".join(map(json.dumps, lines)))
    config = DataConfig(name="rows", path=str(path))
    result = audit(config, VerifierConfig(name="exact", workers=1), (), Screen())
    assert result.had["its first number"] == result.had["one of two choices"] == 10
    with pytest.raises(RunError) as raised:
        check_limits(result, Limits(1, 1, 0.05))
    assert "'its first number' is paid on 10 of 20 rows (50.00 %)" in str(raised.value)
    assert "filters.giveaways=drop_guesses" in str(raised.value)
    check_limits(result, Limits(1, 0.005, 0.5))


def test_a_verifier_that_overlooks_brackets_order_signs_and_degrees_is_found_out(tmp_path: Path):
    """It also takes the reference for said wherever the characters stand in prose."""
    golds = ["[1, 5)", "x + 3", "\\sin 20^\\circ", "15\\text{ cm}", "(3, -4)", "a"]
    config = DataConfig(name="rows", path=str(data_file(tmp_path, golds)))
    judge = VerifierConfig(name="careless", workers=1)
    result = audit(config, judge, PLUGINS, Screen())
    assert result.fooled["brackets flipped"] == result.fooled["inner sign changed"] == 1
    assert result.fooled["degree dropped"] == 1
    assert (result.mutated["another unit"], result.fooled["another unit"]) == (1, 0)
    assert (result.mutated["pair swapped"], result.fooled["pair swapped"]) == (1, 0)
    assert result.had["prose alone"] == 1
    with pytest.raises(RunError) as raised:
        check_limits(result, Limits(1, 0.2, 1))
    said = "'brackets flipped' makes 1 of 1 wrong answers (100.00 %) that are paid"
    assert said in str(raised.value)


def test_an_audit_looks_at_the_rows_that_an_earlier_one_would_leave_out(tmp_path: Path):
    config = filtered(planted_file(tmp_path, {}), tmp_path, "drop")
    small = config.model_copy(update={"rows": 2})
    assert audit(small, VerifierConfig(name="exact", workers=1), (), Screen()).num_rows == 2


# --- the command ---


def test_the_command_lists_rows_and_writes_all_of_it_as_json(tmp_path: Path):
    path, out = data_file(tmp_path, ["12", "hang 1", "3"]), tmp_path / "audit.json"
    command = ["math_train", "--path", str(path), "--out", str(out), "--verifier", "gullible"]
    # A worker for each of five answers: those that hang do so side by side.
    command += ["verifier.timeout_s=0.5", "verifier.workers=5"]
    command += ["plugins=[tests.unit.hostile_verifiers]", "--most", "1", "--most-guessed", "1"]
    result = run(*command, "--limit", "0.4")
    assert result.exit_code == 0, result.output
    assert "rows that can never be rewarded: 1" in result.output
    tree = json.loads(out.read_text())
    assert tree["rows"] == 3
    assert tree["accepted"] == dict.fromkeys(FORMATS, 2)
    assert [(f["row"], f["id"]) for f in tree["never"]] == [(2, "r1")]
    assert tree["reasons"].keys() == {"correct", "timeout"}
    assert tree["attacks_paid"]["prose alone"] == 2
    assert [f["what"] for f in tree["false_positives"]][:2] == [
        "off by one: 13 (correct)",
        "last digit changed: 15 (correct)",
    ]
    wrong = {"off by one": 3, "last digit changed": 3, "sign flipped": 2, "another row's answer": 3}
    assert tree["wrong_judged"] == wrong
    assert tree["wrong_accepted"] == dict.fromkeys(wrong, 2)
    result = run(*command, "--limit", "0.3")
    assert result.exit_code == 1
    assert "failed: 1 of 3 rows (33.33 %) can never be rewarded" in result.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["dapo_math"], "no data set 'dapo_math'.*did you mean 'dapo_math_17k'"),
        (["math_train", "--path", "nowhere.jsonl"], "nowhere.jsonl"),
        (["arithmetic", "--verifier", "maths"], "unknown verifier 'maths'"),
        (["arithmetic", "verifier.timeouts=3"], "verifier.timeouts.*did you mean"),
        (["arithmetic", "verifier.workers=none"], "verifier.workers.*got 'none'"),
        (["arithmetic", "verifier.options.strictly=1"], "no option 'strictly'"),
        (["arithmetic", "verifier.workers.a=1"], "workers has no keys"),
        (["arithmetic", "verifier.workers"], "expected key=value"),
        (["arithmetic", "verifier.timeout_s={"], "not valid YAML"),
        (["arithmetic", "plugins=my_parts"], "expected a list of modules"),
        (["arithmetic", "plugins=[no.such.lab]"], "cannot be imported"),
        (["arithmetic", "row=3"], "unknown key 'row'"),
    ],
)
def test_a_mistake_exits_with_2_and_is_told_in_words(arguments: list[str], said: str):
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert re.search(said, result.output)
    assert "Traceback" not in result.output


def test_overrides_go_to_the_data_or_to_the_verifier():
    config, judge, plugins = read_settings(
        "arithmetic",
        ["rows=5", "verifier.options={strict: false}", "verifier.options.float_rounding=3"],
        Path("mine.jsonl"),
        "math",
    )
    assert (config.rows, config.path) == (5, "mine.jsonl")
    assert judge.options == {"strict": False, "float_rounding": 3}
    assert plugins == ()


def test_values_are_read_as_in_a_recipe():
    """YAML 1.2: 1e1 is a number, off is a word, 010 is no octal 8."""
    values = ["timeout_s=1e1", "options.strict=off", "options.mark=010", "options.on=true"]
    _, judge, _ = read_settings("arithmetic", [f"verifier.{v}" for v in values], None, "math")
    assert judge.timeout_s == 10.0
    assert judge.options == {"strict": "off", "mark": "010", "on": True}


@pytest.mark.skipif(not AIME.is_file(), reason=f"{AIME} is not there")
def test_every_reference_of_a_suite_of_integers_is_rewarded_and_none_of_its_mutations():
    config = DataConfig(name="aime24", path=str(AIME))
    result = audit(config, VerifierConfig(workers=1, timeout_s=60.0), (), Screen())
    assert result.accepted == dict.fromkeys(FORMATS, 30)
    assert result.mutated == dict.fromkeys(result.mutated, 30)
    assert not result.fooled
