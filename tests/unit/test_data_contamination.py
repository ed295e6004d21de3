"""Rows that a benchmark asks: equal problems, long runs of equal words, and no set phrases."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo.config.data import Decontamination
from grpo.data.contamination import Overlap, compare
from grpo.data.text import joined, ngrams, runs, sentences, squeezed, words
from grpo.types import Row
from tests.examples import examples

THIRTEEN = "one two three four five six seven eight nine ten eleven twelve thirteen"


def rows_of(*problems: str) -> list[Row]:
    return [Row(str(i), problem, "1") for i, problem in enumerate(problems)]


def found(problems: list[str], asked: list[str], **settings: object) -> list[tuple[int, str]]:
    config = Decontamination.model_validate(settings)
    overlaps = compare(rows_of(*problems), {"bench": asked}, config).overlaps
    return [(overlap.index, overlap.kind) for overlap in overlaps]


@pytest.mark.parametrize(
    ("problem", "asked", "equal"),
    [
        ("What is $X$?", "what is x?", True),
        ("What\n is  X ?", "what is x?", True),
        ("What is x?", "What is y?", False),
        ("What is x? ", "What is x", True),
        ("Find $-x$.", "Find $x$.", False),
        (r"Evaluate \(\dbinom{7}{3}\)", r"Evaluate $\binom{7}{3}.$", True),
        (r"Evaluate $\binom73$", r"Evaluate $\tbinom{7}3$", True),
        (r"Evaluate $\binom{7}{3}$", r"Evaluate $\binom{7}{2}$", False),
        (r"Evaluate $\binom{12}{3}$", r"Evaluate $\binom{1}{23}$", False),
        (
            r"Find $\left\lfloor\dfrac 12\right\rfloor$",
            r"Find $\lfloor \frac{1}{2} \rfloor.$",
            True,
        ),
        (r"\[\left(\frac{1}{2}, 3\right)\]", r"$\displaystyle (\tfrac12,\,3)$", True),
        (r"Find $1.5+2$.", r"Find $15+2$.", False),
        (r"Find $1, 2$.", r"Find $12$.", False),
        (r"Find $1{,}000+10,000$.", "Find 1000 + 10000", True),
        (r"$x\leq 3$, $y\neq 2$", r"$x \le 3$, $y \ne 2$", True),
        (r"$x\left.y\right|$ is", r"$x y|$ is", True),
        (r"$\sin 30^{\circ}$", "sin 30°", True),
        ("$5!$", "$5$", False),
        (r"1, 2, \ldots, 9", r"$1,2,\dots,9$", True),
        (r"$\leftarrow$ is", r"$\rightarrow$ is", False),
    ],
)
def test_equal_problems_differ_at_most_in_case_stops_spaces_and_the_style_of_formulas(
    problem: str, asked: str, equal: bool
):
    assert found([problem], [asked]) == [(0, "exact")] * equal
    assert found([problem], [asked], exact=False, contained=False) == []


@pytest.mark.parametrize(
    ("problem", "hit"),
    [
        (f"Start: {THIRTEEN} end", True),
        (f"Start: {THIRTEEN.upper().replace(' ', ', ')}!", True),
        ("Start: " + THIRTEEN.removesuffix(" thirteen") + " end", False),
        (THIRTEEN.replace("seven", "7"), False),
        (THIRTEEN.replace("seven eight", "eight seven"), False),
    ],
)
def test_thirteen_equal_words_in_a_row_are_an_overlap_and_twelve_are_none(problem: str, hit: bool):
    asked = f"Given {THIRTEEN} what now?"
    assert found([problem], [asked]) == [(0, "ngram")] * hit
    assert found([problem], [asked], ngram=0) == []


def test_a_phrase_in_more_than_ten_different_problems_is_set():
    asked = [f"{THIRTEEN} asks the benchmark"]
    ten = [f"{number} times {THIRTEEN}" for number in range(10)]
    assert len(found(ten, asked)) == 10
    assert found([*ten, f"another {THIRTEEN}"], asked) == []
    assert len(found([*ten, f"another {THIRTEEN}"], asked, set_phrase=11)) == 11


def test_copies_of_one_problem_do_not_make_a_set_phrase():
    asked = [f"{THIRTEEN} asks the benchmark"]
    assert len(found([f"again ${THIRTEEN}$"] * 12, asked)) == 12


def test_a_copy_that_lost_its_spaces_does_not_hide_one_that_has_them():
    asked = [f"{THIRTEEN} asks the benchmark"]
    assert found([THIRTEEN.replace(" ", ""), THIRTEEN], asked) == [(1, "ngram")]


def test_an_equal_problem_is_found_although_all_its_words_are_a_set_phrase():
    many = [f"{number} times {THIRTEEN}" for number in range(11)]
    assert found([*many, THIRTEEN.title()], [THIRTEEN]) == [(11, "exact")]


def test_an_overlap_names_its_benchmark_and_what_is_shared():
    benchmarks = {"a": [f"{THIRTEEN} a"], "b": [f"B {THIRTEEN}"], "c": ["other"]}
    overlaps = compare(rows_of(f"b {THIRTEEN}"), benchmarks, Decontamination()).overlaps
    assert overlaps == [
        Overlap(0, "b", "exact", f"B {THIRTEEN}"),
        Overlap(0, "a", "ngram", THIRTEEN),
    ]


def test_phrases_known_to_be_set_stay_so_when_they_have_become_rare():
    asked = {"bench": [f"{THIRTEEN} asks the benchmark"]}
    config = Decontamination()
    first = compare(rows_of(*[f"{n} {THIRTEEN}" for n in range(11)]), asked, config)
    assert first.set_phrases == [THIRTEEN]
    few = rows_of(f"0 {THIRTEEN}")
    assert compare(few, asked, config).rows == {0}
    assert compare(few, asked, config, set_phrases=first.set_phrases).rows == set()


def test_words_are_letters_and_digits_and_a_character_where_there_are_no_spaces():
    assert words(r"\frac{4}{5} Ångström, x_1 ２") == ["frac", "4", "5", "ångström", "x", "1", "2"]
    assert words("求x的值") == ["求", "x", "的", "值"]
    assert list(ngrams("a b c", 2)) == ["a b", "b c"]
    assert list(ngrams("a b c", 4)) == []


SHORT = r"Compute $\dbinom{8}{4}$."


@pytest.mark.parametrize(
    "problem",
    [
        r"Compute \(\binom{8}{4}\). Put your answer within \boxed{}.",
        r"Compute $\binom{8}{4}$ Let's think step by step.",
        "Solve the following problem: compute $\\binom84$\nPut your answer in a box.",
        r"Please reason step by step. Compute $\binom{8}{4}$.The answer is of the form m+n.",
        "**Problem 3.** Compute $\\binom{8}{4}$.\n\nReason.",
    ],
)
def test_a_short_problem_with_an_instruction_before_or_after_it_is_found(problem: str):
    assert found([problem], [SHORT]) == [(0, "contained")]
    assert found([problem], [SHORT], contained=False) == []
    assert found([problem], [SHORT], ngram=0, exact=False) == [(0, "contained")]


@pytest.mark.parametrize(
    ("problem", "asked"),
    [
        (r"Compute $\binom{8}{4}+1$.", SHORT),
        (r"Compute $\binom{8}{4}$ and halve it.", SHORT),
        (r"Do not compute $\binom{8}{4}$.", SHORT),
        (r"Compute $\binom{8}{5}$. Put your answer within \boxed{4}.", SHORT),
        (r"Compute $\binom{8}{4}2$.", SHORT),
        ("Let $x=7$. Compute $1+1$. Then add $x$.", "Compute $1+1$."),  # too short to mean it
        ("Let $f$ be a line. Find the slope of it. Then halve it.", "Find the slope of it."),
        ("", SHORT),
        ("Say 3. Reason.", "..."),
    ],
)
def test_a_short_problem_within_a_sentence_or_with_too_little_to_tell_is_none(
    problem: str, asked: str
):
    assert found([problem], [asked]) == []


def test_a_short_problem_that_stands_in_many_is_a_set_phrase():
    asked = ["Round to 10 decimal places."]
    ten = [f"What is the root of {number}? {asked[0]}" for number in range(10)]
    assert found(ten, asked) == [(i, "contained") for i in range(10)]
    config = Decontamination()
    compared = compare(rows_of(*ten, f"What is pi? {asked[0]}"), {"bench": asked}, config)
    assert (compared.rows, compared.set_phrases) == (set(), ["roundto10decimalplaces"])
    few = compare(rows_of(ten[0]), {"bench": asked}, config, set_phrases=compared.set_phrases)
    assert few.rows == set()


@given(
    st.lists(st.sampled_from(["Find ", "x", "12", "3", ".", ". ", ".5", ",", "\n", "$", "\\frac"]))
)
@examples(100)
def test_the_sentences_of_a_text_make_up_its_key(parts: list[str]):
    text = "".join(parts)
    assert joined(sentences(text)) == joined(sentences(text.replace("$", r"\(")))
    assert list(runs(sentences(text), 0)) == []
    whole = joined(sentences(text))
    assert not whole or whole in runs(sentences(text), len(whole))


TEXTS = st.lists(st.sampled_from("abcA$"), max_size=7).map(" ".join)


@given(st.lists(TEXTS, max_size=6), st.lists(TEXTS, max_size=3), st.integers(1, 3))
@examples(50)
def test_the_index_finds_what_comparing_every_pair_finds(
    problems: list[str], asked: list[str], limit: int
):
    def grams(text: str) -> set[tuple[str, ...]]:
        spoken = text.lower().replace("$", " ").split()
        return {tuple(spoken[i : i + 3]) for i in range(len(spoken) - 2)}

    expected = []
    for index, problem in enumerate(problems):
        shared = {g for g in grams(problem) if any(g in grams(a) for a in asked)}
        rare = [g for g in shared if len({squeezed(p) for p in problems if g in grams(p)}) <= limit]
        if any(squeezed(problem) == squeezed(a) for a in asked):
            expected.append((index, "exact"))
        elif rare:
            expected.append((index, "ngram"))
    assert found(problems, asked, ngram=3, set_phrase=limit) == expected
