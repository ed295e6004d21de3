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
from grpo.verify.code import check_machine
from grpo.verify.code_tests import CallTests, StreamTests, read_tests
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


def test_no_block_is_no_answer():
    assert VERIFIERS["code"]("I give up.", json.dumps(SUM)) == Verdict(0.0, "", "no answer")


@needs_linux
@pytest.mark.parametrize("answer", ["print(add(1, 2))", "assert add(1, 2) == 3", "add(1, 2)  -> 3"])
def test_an_example_of_its_use_behind_a_function_is_not_the_program(answer: str):
    tests = json.dumps({"inputs": [[1, 2]], "outputs": [3], "fn_name": "add"})
    response = f"```python\ndef add(a, b):\n    return a + b\n```\nUse:\n```python\n{answer}\n```"
    assert VERIFIERS["code"](response, tests, allow_unsandboxed=True).reward == 1.0
    asserts = json.dumps({"test_list": ["assert add(1, 2) == 3"]})
    assert VERIFIERS["code"](response, asserts, allow_unsandboxed=True).reward == 1.0
    # The last definition is judged, however right an earlier one is.
    again = response + "\nOr:\n```python\ndef add(a, b):\n    return a - b\n```"
    for reference in (tests, asserts):
        assert VERIFIERS["code"](again, reference, allow_unsandboxed=True).reward == 0.0


@needs_linux
def test_a_program_of_150_000_characters_is_judged_whole():
    table = f"table = [{'0, ' * 50_000}]\n"
    assert reward(f"import sys\n{table}{SUMS}", SUM) == 1.0


@needs_linux
def test_what_a_prelude_defines_is_not_taken_from_a_draft():
    cases = [{"input": "5", "output": "2", "testtype": "stdin"}]
    draft = "import math\nprint(math.sqrt(int(input())))"
    final = "print(math.isqrt(int(input())))"  # LiveCodeBench's prelude has math
    response = f"```python\n{draft}\n```\nNo, rounded:\n```python\n{final}\n```"
    tests = json.dumps({"public_test_cases": cases})
    assert VERIFIERS["code"](response, tests, allow_unsandboxed=True).reward == 1.0


@needs_linux
def test_a_last_fence_left_open_counts_unless_the_response_was_cut_off():
    response = f"```python\nprint(0)\n```\nNo:\n```python\n{SUMS}"
    options = {"allow_unsandboxed": True}
    assert VERIFIERS["code"](response, json.dumps(SUM), **options).reward == 1.0
    cut = VERIFIERS["code"](response, json.dumps(SUM), truncated=True, **options)
    assert (cut.reward, cut.reason) == (0.0, "no answer")
    # Cut off behind a complete block, it is paid.
    whole = f"```python\n{SUMS}\n```\nThis adds"
    assert VERIFIERS["code"](whole, json.dumps(SUM), truncated=True, **options).reward == 1.0


@needs_linux
@pytest.mark.parametrize(
    ("response", "thinking", "reward"),
    [
        ("<think>\n{}\nhmm, wait", False, 0.0),
        ("{}\nhmm, wait", True, 0.0),
        ("<think>\n{}\n</think>\nThat is it.", False, 0.0),
        ("{}\n</think>\nThat is it.", True, 0.0),
        ("Let me see.\n</think>\n{}", True, 1.0),
        ("</think>{}", True, 1.0),
        ("<think>\n```python\nprint(0)\n```\n</think>\n{}", False, 1.0),
    ],
)
def test_drafts_within_thinking_are_no_programs(response: str, thinking: bool, reward: float):
    text = response.format(f"```python\n{SUMS}\n```")
    verdict = VERIFIERS["code"](text, json.dumps(SUM), thinking=thinking, allow_unsandboxed=True)
    assert (verdict.reward, verdict.reason) == (reward, "correct" if reward else "no answer")


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
def test_floats_may_be_off_by_the_tolerance_and_tuples_are_lists_at_any_depth():
    def tests(expected: str) -> dict[str, Any]:
        cases = [{"input": "1", "output": expected, "testtype": "functional"}]
        return {"public_test_cases": cases, "fn_name": "f"}

    for expected, returned in [
        ("0.3", "0.1 + 0.2"),
        ("[0.3, [1, 0.3]]", "[0.1 + 0.2, (1, 0.1 + 0.2)]"),
        ('{"a": 0.3}', "{'a': 0.1 + 0.2}"),
        ("[[1, 2]]", "[(1, 2)]"),
        ("[[1, 2]]", "((1, 2),)"),
    ]:
        assert reward(f"def f(x):\n    return {returned}", tests(expected)) == 1.0, returned
    assert reward("def f(x):\n    return 0.1 + 0.2", tests("0.3"), tolerance=0) == 0.0
    for expected, returned in [
        ("0.3", "0.301"),
        ("3", "3.0000001"),
        ("0.5", "float('nan')"),
        ("0.5", "'0.5'"),
        ("[[1, 2]]", "[{1, 2}]"),
        ("[0.5, 1]", "[0.5]"),
    ]:
        assert reward(f"def f(x):\n    return {returned}", tests(expected)) == 0.0, returned
    # What the data asserts is run as it is.
    asserts = {"test_list": ["assert f(1) == 0.3"]}
    assert reward("def f(x):\n    return 0.1 + 0.2", asserts) == 0.0


@needs_linux
def test_printed_floats_may_be_off_by_the_tolerance():
    tests = {"inputs": [""], "outputs": ["0.333333333333"]}
    assert reward("print(0.333333)", tests) == 1.0
    assert reward("print(0.333333)", tests, tolerance=0) == 0.0
    assert reward("print(0.33333)", tests) == 0.0
    assert reward("print(0.33333)", tests, tolerance=1e-4) == 1.0


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
