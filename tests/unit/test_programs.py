"""Which of a response's blocks is its program."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo.verify.programs import blocks, names_of, program_of
from tests.examples import examples


def fenced(*texts: str) -> str:
    return "\n".join(f"So:\n```python\n{text}\n```" for text in texts)


def program(*texts: str, asked: tuple[str, ...] = ()) -> str:
    return program_of(list(texts), asked)


@pytest.mark.parametrize(
    ("response", "found"),
    [
        ("```python\na\n```", ["a\n"]),
        ("```python\na\n```\n```python\nb\n```", ["a\n", "b\n"]),
        ("```python\na\n```\nprints\n```\n42\n```", ["a\n"]),
        ("```\na\n```\n```\nb\n```", ["a\n", "b\n"]),
        ("```cpp\na\n```\n```Python3\nb\n```\n```json\nc\n```", ["b\n"]),
        ("1. so:\n   ```py\n   if x:\n       y\n   ```", ["if x:\n    y\n"]),
        ("````python\na\n````", ["a\n"]),
        ("```python title=x\na\n```", ["a\n"]),
        ("```\nnever closed, then\n```python\na\n```", ["a\n"]),
        ("```python\n```", [""]),
        ("print(1)", []),
        ("`print(1)`", []),
        ("", []),
    ],
)
def test_blocks_marked_python_count_else_all(response: str, found: list[str]):
    assert blocks(response) == blocks(response, truncated=True) == found


@pytest.mark.parametrize(
    ("response", "ended", "cut_off"),
    [
        ("```python\na", ["a"], []),
        ("```\na", ["a"], []),
        ("```python\na\n```\n```python\nb", ["a\n", "b"], []),
        ("```\na\n```\n```python\nb", ["b"], []),
        ("```python\na\n```\nIt prints\n```\n42", ["a\n"], ["a\n"]),
        ("```python\na\n```\n```", ["a\n"], ["a\n"]),
        ("```python\na\n```\n```python\n", ["a\n"], ["a\n"]),
        ("```python", [], []),
    ],
)
def test_a_block_left_open_counts_where_the_response_ended_by_itself(
    response: str, ended: list[str], cut_off: list[str]
):
    assert blocks(response) == ended
    assert blocks(response, truncated=True) == cut_off


@examples(50)
@given(st.lists(st.sampled_from(["```", "```python", "x = 1", "~~~", "", "  ```"])), st.booleans())
def test_what_is_taken_stands_in_the_response_and_holds_no_fence(lines: list[str], cut: bool):
    for block in blocks("\n".join(lines), truncated=cut):
        assert block in "\n".join(lines) + "\n"
        assert "```" not in block


ADD = "def add(a, b):\n    return a + b\n"
SUB = "def add(a, b):\n    return a - b\n"


@pytest.mark.parametrize(
    "use",
    [
        "print(add(1, 2))",
        "assert add(1, 2) == 3",
        "result = add(1, 2)\nprint(result)",
        ">>> add(1, 2)\n3",
        "add(1, 2)  # 3",
        "add(1, 2)  -> 3",
        "for i in range(3):\n    print(add(i, i))",
    ],
)
def test_a_function_is_in_the_last_block_that_defines_it_and_not_where_it_is_used(use: str):
    assert program(ADD, use, asked=("add",)) == ADD
    assert program(ADD, SUB, use, asked=("add",)) == SUB
    assert program(ADD, use, SUB, asked=("add",)) == SUB


def test_a_later_definition_is_the_answer_though_it_is_broken():
    broken = "def add(a, b:\n    return a + b"
    assert program(ADD, broken, asked=("add",)) == broken
    assert program("add = sum", "class Solution:\n    pass", asked=("add",)).startswith("class")


def test_nothing_that_is_asked_leaves_the_last_block():
    assert program("x = 1", "y = 2", asked=("add",)) == "y = 2"


def test_what_a_block_lacks_comes_from_the_nearest_earlier_one_that_defines_it():
    helper, other = "def h(x):\n    return x\n", "def h(x):\n    return -x\n"
    solution = "def f(x):\n    return h(x)\n"
    assert program(helper, other, solution, asked=("f",)) == f"{other}\n{solution}"
    assert program("import math", "def f(x):\n    return math.pi", asked=("f",)).startswith(
        "import"
    )
    # One that is complete takes nothing.
    assert program(helper, other + solution, asked=("f",)) == other + solution
    chain = program("a = 1", "b = a", "def f():\n    return b", asked=("f",))
    assert chain == "a = 1\nb = a\ndef f():\n    return b"


SCRIPT = (
    "def solve(x):\n    return 2 * x\n\nif __name__ == '__main__':\n    print(solve(int(input())))"
)


@pytest.mark.parametrize("use", ["print(solve(3))", "r = solve(3)\nprint(r)", ">>> solve(3)\n6"])
def test_an_example_behind_a_script_is_left_out(use: str):
    assert program(SCRIPT, use) == SCRIPT


def test_a_script_s_parts_are_joined():
    define = "def solve(x):\n    return 2 * x\n"
    for last in (
        "print(solve(int(input())))",
        "solve(1)",
        "import sys\nprint(solve(sys.stdin.read()))",
    ):
        assert program(define, last) == f"{define}\n{last}"


def test_a_script_that_reads_is_no_example_and_the_last_one_counts_alone_where_it_can():
    right, last = "print(int(input()) + 1)", "print(int(input()) + 2)"
    assert program(right, last) == last
    # It lacks a helper of a draft that runs by itself: together they print twice, and fail.
    lacks = "print(solve(int(input())) + 1)"
    assert program(SCRIPT, lacks) == f"{SCRIPT}\n{lacks}"
    assert program(SCRIPT, "this is no Python") == "this is no Python"


def test_names_that_are_there_already_are_not_taken_from_a_draft():
    given_names = names_of("from math import *\nimport math\n", ("math",))
    assert {"math", "sqrt"} <= given_names
    draft, last = "import math\nprint(math.pi)", "print(math.e)"
    assert program_of([draft, last], given=given_names) == last
    assert program_of([draft, last]) != last


@examples(100)
@given(
    st.lists(
        st.sampled_from(
            ["", "(" * 300, "-" * 3000, "\0", "def f(:", "f()", "def f(): f()", "lambda f: g",
             "try:\n  g()\nexcept E as f: pass", "match f:\n  case [*g]: g()", "import x.y as f"]
        ),
        min_size=1,
        max_size=30,
    ),
    st.sampled_from([(), ("f",)]),
)  # fmt: skip
def test_any_blocks_give_one_program_made_of_them(texts: list[str], asked: tuple[str, ...]):
    whole = program(*texts, asked=asked)
    assert all(line in "\n".join(texts).split("\n") for line in whole.split("\n"))
