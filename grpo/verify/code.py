"""Programs judged by running them on every test of their problem, inside a sandbox."""

import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from grpo.errors import UserError
from grpo.types import Verdict
from grpo.verify.answers import after_thinking, fold
from grpo.verify.code_tests import CallTests, StreamTests, read_tests
from grpo.verify.outputs import same_output
from grpo.verify.programs import blocks, names_in, names_of, program_of
from grpo.verify.registry import VERIFIERS
from grpo.verify.sandbox import (
    Allowance,
    Limits,
    Outcome,
    Sandbox,
    calls,
    choose_level,
    package_entries,
    run_together,
)

# Programs may be long: only the end of a response is searched, but more of it than for an answer.
_TAIL_CHARS = 200_000
_REASON_CAP = 200
_TOTAL_TIMEOUT_S = 30.0
_PACKAGES = ["numpy"]  # of LiveCodeBench's own environment what its programs use
_STARTS_WITHIN_S = 15.0  # a sandbox, on a busy machine
_SHOWN = 60  # characters of an output in a reason
_SPARE_OUTPUT_BYTES = 1 << 16  # beyond four times what is expected
_CALLS_OUTPUT_BYTES = 4 << 20  # that functions under test may print, for nobody to read

_CALLS_SOURCE = Path(calls.__file__).read_text(encoding="utf-8")
_CALLS_MODULES = (
    "ast", "collections", "functools", "itertools", "json", "math", "numbers", "operator", "typing",
)  # fmt: skip
_KINDS = {
    "time": "time limit",
    "memory": "memory limit",
    "output": "output limit",
    "lost": "sandbox lost",
}

Judge = Callable[[int, Allowance], str]  # (which test, what it may take) -> why it fails, or ""


@VERIFIERS.register("code")
def code(
    response: str,
    answer: str,
    *,
    truncated: bool = False,
    thinking: bool = False,
    reward: Literal["all", "fraction"] = "all",
    test_timeout_s: Annotated[float, Field(gt=0)] = 6.0,
    total_timeout_s: Annotated[float, Field(gt=0)] = _TOTAL_TIMEOUT_S,
    memory_mb: Annotated[int, Field(ge=64)] = 1024,
    processes: Annotated[int, Field(ge=1)] = 32,
    packages: list[str] = _PACKAGES,
    tolerance: Annotated[float, Field(ge=0, le=0.01)] = 1e-6,
    allow_unsandboxed: bool = False,
) -> Verdict:
    """Does the program in the response pass its tests?

    The program is the last ```python block behind the thinking, else the last block, with what it
    lacks from the blocks before it (grpo/verify/programs.py); `answer` is JSON that describes the
    tests (grpo/verify/code_tests.py lists the formats). Every test runs in a process of its own.
    `reward`: 1 where all pass, or the fraction that passes. `tolerance`: how far what is expected
    as a decimal may be off (`is_close` in grpo/verify/sandbox/calls.py); asserts of the data are
    run as they are. `test_timeout_s`: CPU seconds of one test, twice that in wall time.
    `total_timeout_s`: wall time of all; the pool's deadline must be later. `memory_mb` and
    `processes` hold for all of a program's processes together, threads counted; `packages` are
    distributions that it may import. Raises UserError where the machine has no sandbox and
    `allow_unsandboxed` is false, RunError where the sandbox does not start.
    """
    spoken = after_thinking(response, thinking=thinking, most=_TAIL_CHARS)
    texts = blocks(spoken or "", truncated=truncated)
    if not texts:
        return Verdict(0.0, "", "no answer")
    try:
        tests = read_tests(answer)
    except ValueError as error:
        return Verdict(0.0, "", f"gold does not parse: {error}"[:_REASON_CAP])
    program = _program(texts, tests)
    limits = Limits(memory_mb=memory_mb, processes=processes, packages=tuple(packages))
    deadline = time.monotonic() + total_timeout_s
    failures: dict[int, str] = {}
    with _open_judge(tests, program, tolerance, limits, allow_unsandboxed) as judge:
        for index in range(len(tests.cases)):
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                failures[index] = f"time limit: the {total_timeout_s:g} s for all tests are over"
                continue
            wall_s = min(2 * test_timeout_s, left_s)
            failure = judge(index, Allowance(test_timeout_s, wall_s))
            if failure:
                failures[index] = failure
    return _verdict(len(tests.cases), failures, reward)


def check_machine(options: Mapping[str, Any], timeout_s: float, timeout_key: str) -> None:
    """Raises UserError where verifier `code` with these options could not run on this machine, or
    not within the pool's deadline of `timeout_s` for one answer, which stands at `timeout_key`."""
    VERIFIERS.bind("code", options)
    total_s = float(options.get("total_timeout_s", _TOTAL_TIMEOUT_S))
    if timeout_s <= total_s:
        raise UserError(
            f"verifier code may take total_timeout_s = {total_s:g} s for one answer, but "
            f"{timeout_key} kills it after {timeout_s:g} s: set {timeout_key} to "
            f"{total_s + _STARTS_WITHIN_S:g} or more, or total_timeout_s lower"
        )
    package_entries(tuple(options.get("packages", _PACKAGES)))
    choose_level(bool(options.get("allow_unsandboxed", False)))


def _program(texts: list[str], tests: StreamTests | CallTests) -> str:
    if len(texts) == 1:
        return texts[0]
    given = names_of(tests.prelude, tests.modules)
    if isinstance(tests, StreamTests):
        return program_of(texts, given=given)
    return program_of(texts, tests.names or names_in(tests.cases) - sys.stdlib_module_names, given)


@contextmanager
def _open_judge(
    tests: StreamTests | CallTests,
    program: str,
    tolerance: float,
    limits: Limits,
    allow_unsandboxed: bool,
) -> Iterator[Judge]:
    """A sandbox for the program and, where functions are called, one for those who call."""
    level = choose_level(allow_unsandboxed)
    with ExitStack() as stack:
        if isinstance(tests, StreamTests):
            limits = replace(limits, preload=tests.modules)
            sandbox = stack.enter_context(Sandbox(limits, level))
            source = f"{tests.prelude}\0{program}"
            yield lambda index, allowance: _run_stream(
                sandbox, tests.cases[index], source, tolerance, allowance
            )
        else:
            callee = replace(limits, preload=tests.modules + _CALLS_MODULES)
            caller = replace(limits, preload=_CALLS_MODULES)
            boxes = [stack.enter_context(Sandbox(part, level)) for part in (callee, caller)]
            yield lambda index, allowance: _run_calls(
                boxes, tests, index, program, tolerance, allowance
            )


def _run_stream(
    sandbox: Sandbox, case: tuple[str, str], source: str, tolerance: float, allowance: Allowance
) -> str:
    stdin, expected = case
    output_bytes = 4 * len(expected.encode()) + _SPARE_OUTPUT_BYTES
    allowance = replace(allowance, output_bytes=output_bytes)
    outcome = sandbox.run(source, stdin.encode(), allowance)
    if outcome.status != "exit" or outcome.code != 0:
        return _broken_off(outcome)
    printed = outcome.stdout.decode(errors="replace")
    if same_output(printed, expected, tolerance):
        return ""
    return f"wrong: printed {_short(printed)}, expected {_short(expected)}"


def _run_calls(
    boxes: list[Sandbox],
    tests: CallTests,
    index: int,
    program: str,
    tolerance: float,
    allowance: Allowance,
) -> str:
    allowance = replace(allowance, output_bytes=_CALLS_OUTPUT_BYTES)
    callee_end, caller_end = socket.socketpair()
    serve = f"serve(3, {tests.prelude!r}, {program!r})"
    judge = f"judge(3, {tests.setup!r}, {tests.cases[index]!r}, {tests.names!r}, {tolerance})"
    with callee_end, caller_end:
        callee = boxes[0].begin(f"{_CALLS_SOURCE}\n{serve}", b"", allowance, callee_end.fileno())
        caller = boxes[1].begin(f"{_CALLS_SOURCE}\n{judge}", b"", allowance, caller_end.fileno())
    judged, served = run_together([caller, callee])
    if judged.status == "exit" and judged.code == calls.PASSED:
        return ""
    if served.status != "exit":
        return _broken_off(served)
    if judged.status != "exit":
        return _broken_off(judged)
    said = _last_line(judged)
    if said.startswith("AssertionError"):
        return f"wrong: {said.partition(': ')[2] or tests.cases[index].strip()}"
    if said.startswith("EOFError: the program ended"):  # what it said last is on its own stderr
        return f"runtime error: {_last_line(served) or said}"
    return "memory limit" if said.startswith("MemoryError") else f"runtime error: {said}"


def _broken_off(outcome: Outcome) -> str:
    if outcome.status != "exit":
        return _KINDS[outcome.status]
    said = _last_line(outcome)
    if said.startswith("MemoryError"):
        return "memory limit"
    if outcome.code < 0:
        return f"runtime error: {signal.strsignal(-outcome.code)}"
    return f"runtime error: {said or f'exit code {outcome.code}'}"


def _last_line(outcome: Outcome) -> str:
    lines = outcome.stderr_tail.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""


def _short(text: str) -> str:
    text = text.strip()
    return repr(text) if len(text) <= _SHOWN else f"{text[:_SHOWN]!r}..."


def _verdict(total: int, failures: dict[int, str], reward: Literal["all", "fraction"]) -> Verdict:
    passed = total - len(failures)
    parsed = f"{passed} of {total} tests passed"
    if not failures:
        return Verdict(1.0, parsed, "correct")
    index = min(failures)
    kind, _, detail = failures[index].partition(": ")
    reason = f"{kind}: test {index + 1}" + (f": {detail}" if detail else "")
    return Verdict(
        passed / total if reward == "fraction" else 0.0, parsed, fold(reason)[:_REASON_CAP]
    )
