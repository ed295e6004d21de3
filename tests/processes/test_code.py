"""Programs are found, run on every test, and compared as the benchmarks compare."""

import base64
import ctypes
import json
import os
import pickle
import re
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo.errors import UserError
from grpo.types import Verdict
from grpo.verify import VERIFIERS
from grpo.verify.code import check_machine, last_program
from grpo.verify.code_tests import CallTests, StreamTests, read_tests, same_output
from grpo.verify.pool import VerifierPool
from grpo.verify.sandbox import Level, probe
from grpo.verify.sandbox.calls import from_plain, to_plain
from grpo.verify.sandbox.launch import machine_obstacle
from tests.examples import examples

DATA = Path(__file__).parents[3] / "shared" / "data" / "code"
needs_data = pytest.mark.skipif(not DATA.exists(), reason=f"{DATA} is not there")
needs_linux = pytest.mark.skipif(machine_obstacle() is not None, reason=str(machine_obstacle()))

SUM = {"inputs": ["1 2\n", "3 4\n"], "outputs": ["3\n", "7\n"]}
SUMS = "print(sum(map(int, input().split())))"


def judged(program: str, tests: dict[str, Any], **options: Any) -> Verdict:
    response = f"Here it is.\n```python\n{program}\n```\nDone."
    # Other tests hold the sandbox; these are about what is judged, on any machine.
    return VERIFIERS["code"](response, json.dumps(tests), allow_unsandboxed=True, **options)


def reward(program: str, tests: dict[str, Any], **options: Any) -> float:
    return judged(program, tests, **options).reward


# --- the program ---


@pytest.mark.parametrize(
    ("response", "program"),
    [
        ("```python\na\n```", "a\n"),
        ("```python\na\n```\n```python\nb\n```", "b\n"),
        ("```python\na\n```\nprints\n```\n42\n```", "a\n"),
        ("```\na\n```\n```\nb\n```", "b\n"),
        ("```cpp\na\n```\n```Python3\nb\n```\n```json\nc\n```", "b\n"),
        ("1. so:\n   ```py\n   if x:\n       y\n   ```", "if x:\n    y\n"),
        ("````python\na\n````", "a\n"),
        ("```python title=x\na\n```", "a\n"),
        ("```python\na\n```\n```python\ncut off", "a\n"),
        ("```\nnever closed, then\n```python\na\n```", "a\n"),
        ("```python\n```", ""),
        ("print(1)", None),
        ("```python\nprint(1)", None),
        ("`print(1)`", None),
        ("", None),
    ],
)
def test_the_last_python_block_counts_else_the_last_block(response: str, program: str | None):
    assert last_program(response) == program


@examples(50)
@given(st.lists(st.sampled_from(["```", "```python", "x = 1", "~~~", "", "  ```"])))
def test_what_is_taken_stands_in_the_response_and_holds_no_fence(lines: list[str]):
    program = last_program("\n".join(lines))
    if program is not None:
        assert program in "\n".join(lines) + "\n"
        assert "```" not in program


def test_no_block_is_no_answer():
    assert VERIFIERS["code"]("I give up.", json.dumps(SUM)) == Verdict(0.0, "", "no answer")


# --- the tests ---


def test_the_formats_of_the_data_sets_are_read():
    assert read_tests('{"inputs": ["1", ["2", "3"]], "outputs": [4, "5"]}') == StreamTests(
        (("1", "4"), ("2\n3", "5"))
    )
    cases = [{"input": "1", "output": "2", "testtype": "stdin"}]
    private = [{"input": "3", "output": "4"}]
    packed = base64.b64encode(zlib.compress(pickle.dumps(json.dumps(private)))).decode()
    for private_cases in (private, json.dumps(private), packed):
        row = {"public_test_cases": json.dumps(cases), "private_test_cases": private_cases}
        tests = read_tests(json.dumps(row))
        assert isinstance(tests, StreamTests)
        assert tests.cases == (("1", "2"), ("3", "4"))
    mbpp = {"test_list": ["assert f(1) == 2"], "test_imports": ["import math"]}
    assert read_tests(json.dumps(mbpp)) == CallTests(("assert f(1) == 2",), "import math")


class Evil:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (eval, ("__import__('os').abort()",))


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        ("42", "no JSON object but '42'"),
        ("{", "Expecting property name"),
        ("[" * 100_000, "nested too deep"),
        ("{}", "but no key"),
        ('{"input": []}', "none of the keys public_test_cases, inputs, test_list and test, but in"),
        ('{"inputs": [], "outputs": []}', "not one test"),
        ('{"inputs": ["1"], "outputs": []}', "no lists of one length"),
        ('{"inputs": ["1"]}', "no lists of one length"),
        ('{"inputs": [[1]], "outputs": [1], "fn_name": "a b"}', "fn_name is 'a b'"),
        ('{"test_list": "assert f()"}', "test_list is no list of strings"),
        ('{"test": "def check(f): pass"}', "entry_point is None"),
        ('{"public_test_cases": [{"input": "1"}]}', "no object with input and output"),
        (
            '{"public_test_cases": [{"input": "1", "output": "1", "testtype": "functional"}]}',
            "functional tests need fn_name",
        ),
        ('{"public_test_cases": [], "private_test_cases": "AAAA"}', "cannot be unpacked"),
        ('{"public_test_cases": [], "private_test_cases": "!"}', "base64"),
        ('{"public_test_cases": 5}', "public_test_cases"),
        ('{"public_test_cases": [], "metadata": 5}', "metadata"),
        (
            json.dumps(
                {
                    "public_test_cases": [],
                    "private_test_cases": base64.b64encode(
                        zlib.compress(pickle.dumps(Evil()))
                    ).decode(),
                }
            ),
            "hold a builtins.eval, not a string",
        ),
    ],
)
def test_tests_that_cannot_be_read_are_the_data_s_fault_and_say_why(answer: str, complaint: str):
    verdict = VERIFIERS["code"](f"```python\n{SUMS}\n```", answer)
    assert verdict.reward == 0.0
    assert verdict.reason.startswith("gold does not parse: ")
    with pytest.raises(ValueError, match=re.escape(complaint)):
        read_tests(answer)


@pytest.mark.parametrize(
    ("printed", "expected", "same"),
    [
        ("3", "3\n", True),
        ("  1 2 \n3\n\n", "1 2\n3", True),
        ("1.0", "1", True),
        ("1 2.50", "1.0 2.5", True),
        ("1e3", "1000", True),
        ("YES", "yes", False),
        ("1\n2", "1 2", False),
        ("1\n\n2", "1\n2", False),
        ("0.3333333", "0.3333334", False),
        ("50000000000000000", "50000000000000001", False),
        ("1 x", "1.0 x", False),
        ("NaN", "1", False),
        ("sNaN", "1", False),
        ("1e999999999", "1", False),
        ("", "0", False),
        ("", "", True),
    ],
)
def test_output_is_compared_as_live_code_bench_does(printed: str, expected: str, same: bool):
    assert same_output(printed, expected) is same


@examples(50)
@given(st.lists(st.lists(st.integers(-(10**30), 10**30), min_size=1), min_size=1))
def test_numbers_are_equal_however_they_are_written_and_never_when_one_is_off(
    table: list[list[int]],
):
    expected = "\n".join(" ".join(map(str, row)) for row in table)
    written = "\n".join("  ".join(f"{number}.00" for number in row) + " " for row in table)
    assert same_output(written + "\n\n", expected)
    table[-1][-1] += 1
    off = "\n".join(" ".join(map(str, row)) for row in table)
    assert not same_output(off, expected)


# --- verdicts ---


@needs_linux
def test_a_program_that_reads_and_prints_is_judged_on_all_its_tests():
    assert judged(SUMS, SUM) == Verdict(1.0, "2 of 2 tests passed", "correct")
    half = judged("print(7)", SUM)
    assert half == Verdict(0.0, "1 of 2 tests passed", "wrong: test 1: printed '7', expected '3'")
    assert reward("print(7)", SUM, reward="fraction") == 0.5


@needs_linux
@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("1 / 0", "runtime error: test 1: ZeroDivisionError: division by zero"),
        ("def f(:", "runtime error: test 1: SyntaxError: invalid syntax"),
        (f"{SUMS}\nraise SystemExit(3)", "runtime error: test 1: exit code 3"),
        ("import nothing_like_it", "runtime error: test 1: ModuleNotFoundError: No module named"),
        ("while True: pass", "time limit: test 1"),
        ("print('x' * 10 ** 6)", "output limit: test 1"),
        ("x = bytearray(10 ** 9)", "memory limit: test 1"),
        ("print(open('/etc/nothing').read())", "runtime error: test 1: FileNotFoundError"),
        ("", "wrong: test 1: printed '', expected '3'"),
    ],
)
def test_a_failure_says_where_and_why(program: str, reason: str):
    verdict = judged(program, SUM, test_timeout_s=0.5, memory_mb=512)
    assert verdict.reward == 0.0
    assert verdict.reason.startswith(reason)


@needs_linux
def test_the_deadline_for_all_tests_holds_and_what_was_passed_counts():
    tests = {"inputs": ["0", "9", "9", "9", "9"], "outputs": ["1"] * 5}
    program = "import time\ntime.sleep(int(input()))\nprint(1)"
    start = time.monotonic()
    verdict = judged(program, tests, reward="fraction", test_timeout_s=9.0, total_timeout_s=2.0)
    assert time.monotonic() - start < 9
    assert (verdict.reward, verdict.parsed) == (0.2, "1 of 5 tests passed")
    assert verdict.reason == "time limit: test 2"


@needs_linux
def test_asserts_meet_the_functions_that_they_name():
    tests = {
        "test_list": ["assert f(4) == 2", "assert math.isclose(f(2), 1.41421356237)"],
        "test_imports": ["import math"],
    }
    assert reward("def f(x):\n    return x ** 0.5", tests) == 1.0
    verdict = judged("def f(x):\n    return x / 2", tests)
    assert verdict.reason == "wrong: test 2: assert math.isclose(f(2), 1.41421356237)"
    assert "the program defines no 'f'" in judged("def g(x):\n    return 2", tests).reason


@needs_linux
def test_a_function_may_have_a_builtin_s_name_and_a_test_may_forget_an_import():
    assert (
        reward("def sum(a, b):\n    return a * b", {"test_list": ["assert sum(2, 3) == 6"]}) == 1.0
    )
    tests = {"test_list": ["assert f(4) == math.sqrt(16)"]}
    assert reward("def f(x):\n    return x", tests) == 1.0
    fake = "class math:\n    def sqrt(x):\n        return 0\ndef f(x):\n    return 0"
    assert reward(fake, tests) == 0.0
    tests = {"test_list": ["assert sum(f(4)) == 6"], "entry_point": "f"}
    assert reward("def f(x):\n    return [1, 2, 3]\ndef sum(x):\n    return 6", tests) == 1.0
    assert reward("def f(x):\n    return [1]\ndef sum(x):\n    return 6", tests) == 0.0


@needs_linux
def test_what_a_function_raises_reaches_the_test():
    tests = {
        "test_list": ["try:\n    f(0)\nexcept ValueError:\n    pass\nelse:\n    assert False"],
    }
    assert reward("def f(x):\n    raise ValueError('no')", tests) == 1.0
    assert reward("def f(x):\n    raise KeyError('no')", tests) == 0.0
    assert reward("def f(x):\n    return 1", tests) == 0.0


@needs_linux
@pytest.mark.parametrize(
    "program",
    [
        "class Solution:\n    def twice(self, xs: List[int]) -> List[int]:\n"
        "        return [2 * x for x in xs]",
        "from __future__ import annotations\ndef twice(xs):\n    return tuple(2 * x for x in xs)",
        "import numpy\ndef twice(xs):\n    return [numpy.int64(2) * x for x in xs]",
    ],
)
def test_live_code_bench_s_functions_are_called_with_json(program: str):
    cases = [{"input": "[1, 2]", "output": "[2, 4]", "testtype": "functional"}]
    tests = {"public_test_cases": json.dumps(cases), "metadata": '{"func_name": "twice"}'}
    assert reward(program, tests) == 1.0
    assert reward(program.replace("2 * x", "x").replace("64(2)", "64(3)"), tests) == 0.0


@needs_linux
def test_apps_functions_are_called_with_lists_of_arguments():
    tests = {"inputs": [[1, 2], "3\n4"], "outputs": [[3], "7"], "fn_name": "add"}
    assert reward("class Solution:\n    def add(self, a, b):\n        return a + b", tests) == 1.0
    # The prelude's own operator.add is not what the program defines.
    assert "defines no 'add'" in judged("x = 1", tests).reason


@needs_linux
def test_human_eval_s_check_gets_the_function_and_the_prompt_s_helpers():
    tests = {
        "prompt": "def one():\n    return 1\n\ndef inc(x):\n    '''x + 1'''\n",
        "test": "def check(candidate):\n    assert candidate(3) == 3 + one()\n",
        "entry_point": "inc",
    }
    assert reward("def inc(x):\n    return x + one()", tests) == 1.0
    assert judged("def inc(x):\n    return x", tests).reason == "wrong: test 1: check(inc)"


def test_a_package_that_is_not_installed_is_refused():
    with pytest.raises(UserError, match="packages: 'no-such-thing' is not installed here"):
        check_machine({"packages": ["no-such-thing"]}, 60, "verifier.timeout_s")


def test_options_out_of_range_are_refused():
    with pytest.raises(UserError, match="option 'memory_mb': Input should be greater"):
        check_machine({"memory_mb": 1}, 60, "verifier.timeout_s")
    with pytest.raises(UserError, match="option 'test_timeout_s': Input should be greater than 0"):
        check_machine({"test_timeout_s": 0}, 60, "verifier.timeout_s")


def test_a_machine_without_a_sandbox_is_refused_before_anything_is_judged(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(probe, "level", lambda: Level("none", ("namespaces: forbidden",)))
    with pytest.raises(UserError, match="no sandbox for programs on this machine"):
        check_machine({}, 60, "verifier.timeout_s")
    if machine_obstacle() is None:
        check_machine({"allow_unsandboxed": True}, 60, "verifier.timeout_s")


def test_a_deadline_that_ends_before_the_tests_may_is_refused():
    said = "verifier.timeout_s kills it after 10 s: set verifier.timeout_s to 45 or more"
    with pytest.raises(UserError, match=said):
        check_machine({}, 10, "verifier.timeout_s")
    with pytest.raises(UserError, match="may take total_timeout_s = 100 s"):
        check_machine({"total_timeout_s": 100}, 100, "judge_timeout_s")


# --- values between programs and tests ---

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-9, 9),
    st.sampled_from([10**400, -(10**4000)]),
    st.floats(allow_nan=False),
    st.text(),
    st.binary(),
    st.complex_numbers(allow_nan=False),
)
HASHABLE = SCALARS | st.tuples(SCALARS, SCALARS) | st.frozensets(SCALARS, max_size=2)
VALUES = st.recursive(
    HASHABLE,
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner) | st.tuples(inner, inner),
    max_leaves=5,
) | st.dictionaries(HASHABLE, st.lists(HASHABLE, max_size=2), max_size=3)


@examples(50)
@given(VALUES)
def test_a_value_arrives_as_it_was_sent(value: Any):
    arrived = from_plain(json.loads(json.dumps(to_plain(value))))
    assert arrived == value
    assert type(arrived) is type(value)


class NotThere:
    def __bool__(self) -> bool:
        return False

    def __eq__(self, other: object) -> bool:
        return True


def test_subclasses_arrive_as_what_they_derive_from_and_objects_not_at_all():
    class Same(int):
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = int.__hash__

    assert from_plain(to_plain([Same(3)])) == [3]
    assert type(from_plain(to_plain(Same(3)))) is int
    assert list(from_plain(to_plain(x for x in (1, 2)))) == [1, 2]
    assert from_plain(to_plain(x for x in (1, 2))) != [1, 2]  # as an iterator is no list
    found, nothing = from_plain(to_plain((re.match("a", "a"), NotThere())))
    assert found and not nothing
    assert found != from_plain(to_plain(re.match("a", "a")))
    assert repr(found) == "<a Match>"


# --- real data ---


@needs_data
def test_the_tests_of_every_row_can_be_read():
    counts = {}
    for name, keys in {
        "humaneval.jsonl": ("test", "entry_point", "prompt"),
        "mbpp_sanitized_399.jsonl": ("test_list", "test_imports"),
        "livecodebench_stdin_even.jsonl": ("public_tests",),
    }.items():
        rows = [json.loads(line) for line in (DATA / name).read_text().splitlines()]
        for row in rows:
            tests = {key.replace("public_tests", "public_test_cases"): row[key] for key in keys}
            assert read_tests(json.dumps(tests)).cases
        counts[name] = len(rows)
    assert list(counts.values()) == [164, 399, 109]


# --- in the pool ---


@pytest.fixture
def last_resort() -> Iterator[None]:
    """Orphans that nobody closer adopts come to this process, and can be counted."""
    adopt, libc = 36, ctypes.CDLL(None)
    libc.prctl(adopt, 1)
    yield
    libc.prctl(adopt, 0)


def children(pid: int) -> set[int]:
    threads = Path(f"/proc/{pid}/task").glob("*/children")
    return {int(child) for thread in threads for child in thread.read_text().split()}


def test_a_program_whose_worker_is_killed_leaves_no_process_not_even_a_dead_one(last_resort: None):
    endless, earlier = "```python\nwhile True: pass\n```", children(os.getpid())
    with VerifierPool("code", {"test_timeout_s": 30}, workers=1, timeout_s=2) as pool:
        (server,) = children(os.getpid()) - earlier
        first = children(server)
        command = Path(f"/proc/{server}/cmdline").read_bytes()  # its workers' too; b"" once dead

        def settled() -> bool:
            now = children(server)
            alike = all(Path(f"/proc/{pid}/cmdline").read_bytes() == command for pid in now)
            return alike and len(now) == len(first) == 2 and len(now - first) == 1

        (verdict,) = pool.judge([endless], '{"inputs": [""], "outputs": ["1"]}')
        assert verdict.reason == "timeout"
        deadline = time.monotonic() + 30
        while not settled() and time.monotonic() < deadline:
            time.sleep(0.2)
        assert settled(), "a worker, and one that stands by"
        assert children(os.getpid()) - earlier == {server}
