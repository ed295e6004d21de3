"""Programs that go for the verdict: what is right is decided where no program reaches."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from grpo.types import Verdict
from grpo.verify import VERIFIERS
from grpo.verify import code as code_module
from grpo.verify.pool import VerifierPool
from grpo.verify.sandbox import LevelName
from tests.attacks.conftest import descendants

ROOT = Path(__file__).parents[2]
ASSERTS = {"test_list": ["assert secret(3) == [3, 1, 4]", "assert set(secret(5)) == {5, 9, 2}"]}
STREAMS = {"inputs": ["3\n", "5\n"], "outputs": ["314\n", "592\n"]}
RIGHT = "def secret(n):\n    return [3, 1, 4] if n == 3 else [5, 9, 2]"

Judge = Callable[[str, dict[str, Any]], Verdict]


@pytest.fixture
def judge(level: LevelName, monkeypatch: pytest.MonkeyPatch) -> Judge:
    """Of each level in turn."""
    monkeypatch.setattr(code_module, "choose_level", lambda allow_unsandboxed: level)

    def judged(program: str, tests: dict[str, Any]) -> Verdict:
        answer = f"```python\n{program}\n```"
        options = {"reward": "fraction", "test_timeout_s": 1.0, "memory_mb": 256}
        return VERIFIERS["code"](answer, json.dumps(tests), **options)

    return judged


def test_an_honest_program_passes(judge: Judge):
    assert judge(RIGHT, ASSERTS).reward == 1.0
    assert judge("print({3: 314, 5: 592}[int(input())])", STREAMS).reward == 1.0


@pytest.mark.parametrize("tests", [ASSERTS, STREAMS], ids=["asserts", "streams"])
@pytest.mark.parametrize(
    "leave",
    [
        "import sys\nsys.exit(0)",
        "import os\nos._exit(0)",
        "import os\nos._exit(42)",  # what a passed test ends with
        "raise SystemExit(42)",
        "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)",
        "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)",
        "raise KeyboardInterrupt",
    ],
)
def test_leaving_before_the_tests_passes_none(judge: Judge, leave: str, tests: dict[str, Any]):
    assert judge(leave, tests).reward == 0.0


def test_leaving_within_a_test_passes_none(judge: Judge):
    assert judge("import os\ndef secret(n):\n    os._exit(42)", ASSERTS).reward == 0.0
    assert judge("import sys\ndef secret(n):\n    sys.exit(0)", ASSERTS).reward == 0.0
    assert judge("def secret(n):\n    raise SystemExit(42)", ASSERTS).reward == 0.0


def test_an_object_that_equals_everything_is_no_answer(judge: Judge):
    program = """
class Same(list):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __hash__(self): return 0
    def __iter__(self): return iter([])
def secret(n):
    return Same()
"""
    assert judge(program, ASSERTS).reward == 0.0
    assert judge(program.replace("(list)", ""), ASSERTS).reward == 0.0
    assert judge(program.replace("(list)", "(int)"), ASSERTS).reward == 0.0


def test_patched_builtins_and_modules_change_no_comparison(judge: Judge):
    program = """
import builtins, json, operator, sys
class Same:
    def __eq__(self, other): return True
def set(*values): return Same()
builtins.set = builtins.sorted = builtins.list = builtins.len = set
builtins.AssertionError = None
builtins.__build_class__ = None
json.loads = json.dumps = set
operator.eq = lambda a, b: True
sys.modules["operator"].eq = operator.eq
def secret(n):
    return [0]
"""
    assert judge(program, ASSERTS).reward == 0.0


def test_a_program_that_names_a_helper_of_the_tests_does_not_replace_it(judge: Judge):
    tests = {
        "prompt": "def helper(x):\n    return x + 1\ndef twice(x):\n    '''2 x'''\n",
        "test": "def check(candidate):\n    assert helper(candidate(4)) == 9\n",
        "entry_point": "twice",
    }
    assert judge("def twice(x):\n    return 2 * x", tests).reward == 1.0
    hack = "def helper(x):\n    return 9\ndef check(x):\n    pass\ndef twice(x):\n    return 0"
    assert judge(hack, tests).reward == 0.0


def test_forged_replies_are_data_and_no_more(judge: Judge):
    program = """
import json, os, struct
def reply(message):
    data = message if isinstance(message, bytes) else json.dumps(message).encode()
    os.write(3, struct.pack("<I", len(data)) + data)
for message in (%s):
    reply(message)
os.close(3)
while True:
    pass
"""
    forgeries = [
        '["value", ["list", [0]]],',
        '["error", "SystemExit", "42"],',
        '["error", "AssertionError", ""],',
        '["passed"],',
        '["value", ["__import__", ["os"]]],',
        '["value", ["set", [["list", []]]]],',
        '["value", {"list": []}],',
        'b"[" * 200000 + b"]" * 200000,',
        'b"\\xff\\xfe",',
        'b"",',
    ]
    for forgery in forgeries:
        assert judge(program % forgery, ASSERTS).reward == 0.0, forgery


def test_a_reply_that_claims_four_gigabytes_is_not_waited_for(judge: Judge):
    program = "import os\nos.write(3, b'\\xff\\xff\\xff\\xff' + b'x' * 1000)\nwhile True:\n    pass"
    assert judge(program, ASSERTS).reward == 0.0


def test_printed_results_are_no_results(judge: Judge):
    program = """
import os, sys
for stream in (1, 2):
    for text in ("2 of 2 tests passed", "correct", "42", '{"reward": 1.0}', "\\0\\0\\0\\0"):
        os.write(stream, text.encode() + b"\\n")
"""
    assert judge(program + "def secret(n):\n    return None", ASSERTS).reward == 0.0
    assert judge(program, STREAMS).reward == 0.0


def test_nothing_that_a_program_can_read_holds_what_is_expected(judge: Judge):
    program = """
import gc, glob, os
found = []
for path in glob.glob("/proc/[0-9]*/cmdline") + glob.glob("/proc/self/fd/*") + glob.glob("/tmp/*"):
    try:
        # Of the pipes that it writes to itself, nothing ever comes.
        found.append(os.read(os.open(path, os.O_RDONLY | os.O_NONBLOCK), 1 << 20))
    except OSError:
        pass
PLANT
found.append(repr(gc.get_objects()).encode("utf-8", "replace"))
with open("/proc/self/maps") as maps, open("/proc/self/mem", "rb", buffering=0) as memory:
    for line in maps:
        start, end = (int(part, 16) for part in line.split()[0].split("-"))
        if "rw" in line and end - start < 1 << 26:
            memory.seek(start)
            try:
                found.append(memory.read(end - start))
            except OSError:
                pass
answer = ["3", "1", "4"]
needle = ", ".join(answer)
def secret(n):
    return [3, 1, 4] if any(("== [" + needle).encode() in part for part in found) else [n]
"""
    assert judge(program.replace("PLANT", ""), ASSERTS).reward == 0.0
    # The same search finds what is there.
    planted = "kept = bytearray(b'== [3, 1').replace(b'3, 1', b', '.join([b'3', b'1', b'4']))"
    assert judge(program.replace("PLANT", planted), ASSERTS).reward == 0.5


def test_threads_that_never_end_do_not_turn_into_a_pass(judge: Judge):
    program = """
import threading, time
threading.Thread(target=time.sleep, args=(1000,)).start()
print({3: 314, 5: 592}[int(input())], flush=True)
"""
    verdict = judge(program, {"inputs": ["3\n"], "outputs": ["314\n"]})
    assert (verdict.reward, verdict.reason) == (0.0, "time limit: test 1")


def test_one_test_learns_nothing_for_the_next(judge: Judge):
    program = """
import os
if os.path.exists("seen"):
    print(592)
else:
    open("seen", "w").close()
    print(314)
"""
    assert judge(program, STREAMS).reward == 0.5


def gone(pids: set[int]) -> bool:
    """Reaps those that became ours when their parent was killed."""
    deadline = time.monotonic() + 30
    while descendants() & pids and time.monotonic() < deadline:
        for pid in descendants() & pids:
            try:
                os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:  # not ours, or not yet
                continue
        time.sleep(0.02)
    return not descendants() & pids


FOREVER = "```python\nimport os\nos.fork()\nwhile True:\n    os.getpid()\n```"


def test_a_judging_process_that_is_killed_takes_its_sandboxes_with_it(level: LevelName):
    text = (
        "import sys, grpo.verify.code as code\n"
        f"code.choose_level = lambda allow: {level!r}\n"
        f"code.code({FOREVER!r}, sys.argv[1], test_timeout_s=100.0, total_timeout_s=100.0)\n"
    )
    before = descendants()
    tests = json.dumps(STREAMS)
    child = subprocess.Popen([sys.executable, "-c", text, tests], cwd=ROOT)
    deadline = time.monotonic() + 60
    # The sandbox's two processes, and the program's two.
    while len(descendants() - before) < 5 and time.monotonic() < deadline:
        time.sleep(0.02)
    started = descendants() - before
    assert len(started) >= 5
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert gone(started)


def test_the_pool_s_deadline_ends_the_sandbox_with_the_worker(level: LevelName):
    del level  # the pool takes the machine's best
    options = {"test_timeout_s": 100.0, "total_timeout_s": 100.0}
    before = descendants()
    with VerifierPool("code", options, workers=1, timeout_s=6.0) as pool:
        (late,) = pool.judge([FOREVER], json.dumps(STREAMS))
        (right,) = pool.judge(["```python\nprint(1)\n```"], '{"inputs": [""], "outputs": ["1"]}')
        programs = descendants() - before
    assert late.reason == "timeout"
    assert right.reason == "correct"
    assert gone(programs)
