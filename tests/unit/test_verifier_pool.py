"""Every answer gets one verdict in bounded time, whatever the verifier does."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from grpo.errors import UserError
from grpo.verify.pool import VerifierPool

HERE = Path(__file__).parent
# sympy multiplies this out exactly: minutes to for ever.
TOWER = r"\boxed{9^{9^{9^{9}}}}"


@pytest.fixture(scope="module")
def hostile() -> Iterator[VerifierPool]:
    with VerifierPool(
        "hostile",
        {"reward": 0.5},
        workers=2,
        timeout_s=1.0,
        plugins=("tests.unit.hostile_verifiers",),
    ) as pool:
        yield pool


def test_an_answer_past_its_deadline_is_a_timeout_and_the_others_go_on(hostile: VerifierPool):
    started = time.monotonic()
    verdicts = hostile.judge(["a", "hang", "b", "hang", "c"], "x")
    assert [v.reason for v in verdicts] == ["correct", "timeout", "correct", "timeout", "correct"]
    assert [v.reward for v in verdicts] == [0.5, 0.0, 0.5, 0.0, 0.5]
    assert time.monotonic() - started < 30
    assert hostile.counts["timeout"] >= 2


def test_a_worker_that_dies_is_replaced_and_its_answer_judged_once_more(hostile: VerifierPool):
    verdicts = hostile.judge(["die", "a"], "x")
    assert [v.reason for v in verdicts] == ["verifier crashed", "correct"]


def test_an_exception_becomes_a_verdict_with_its_words(hostile: VerifierPool):
    (verdict,) = hostile.judge(["raise"], "x")
    assert verdict.reason == "verifier crashed: ZeroDivisionError: one over nothing"


def test_a_worker_killed_between_two_answers_does_not_end_the_pool(hostile: VerifierPool):
    idle = next(p for p in multiprocessing.active_children() if p.name == "pebble_pool_worker")
    idle.kill()
    idle.join()
    assert [v.reason for v in hostile.judge(["a", "b"], "x")] == ["correct", "correct"]


def test_closing_cancels_what_is_not_judged_and_leaves_no_worker():
    with VerifierPool(
        "hostile", {}, workers=1, timeout_s=99.0, plugins=("tests.unit.hostile_verifiers",)
    ) as pool:
        (worker,) = pool.judge(["pid"], "x")
        assert Path(f"/proc/{worker.parsed}").exists()
        waiting = [pool.submit("hang", "x"), pool.submit("a", "x")]
    assert [future.cancelled() for future in waiting] == [True, True]
    assert not Path(f"/proc/{worker.parsed}").exists()


def test_a_plugin_that_does_not_import_is_the_users_mistake():
    with pytest.raises(UserError, match=r"plugins: 'no\.such\.lab' cannot be imported"):
        VerifierPool("math", {}, workers=1, timeout_s=1.0, plugins=("no.such.lab",))


def test_the_order_of_verdicts_is_the_order_of_answers(hostile: VerifierPool):
    answers = [str(i) for i in range(50)]
    assert [v.parsed for v in hostile.judge(answers, "x")] == answers


def test_an_expression_that_hangs_sympy_times_out_and_the_pool_has_its_workers_back():
    with VerifierPool("math", {}, workers=2, timeout_s=3.0) as pool:
        verdicts = pool.judge([TOWER, r"\boxed{24}", TOWER, TOWER], "24")
        assert [v.reason for v in verdicts] == ["timeout", "correct", "timeout", "timeout"]
        again = pool.judge([r"\boxed{\frac{1}{2}}"] * 8, "0.5")
        assert [v.reward for v in again] == [1.0] * 8


def test_workers_die_with_a_driver_that_is_killed_even_in_the_middle_of_a_c_call():
    script = (
        "import os, time\n"
        "from grpo.verify.pool import VerifierPool\n"
        "if __name__ == '__main__':\n"
        "    plugins = ('tests.unit.hostile_verifiers',)\n"
        "    with VerifierPool('hostile', {}, workers=2, timeout_s=99, plugins=plugins) as pool:\n"
        "        pool.submit('spin', 'x')\n"
        "        time.sleep(1)\n"
        "        print('up', flush=True)\n"
        "        time.sleep(600)\n"
    )
    path = HERE / ".killed_driver.py"
    path.write_text(script)
    try:
        driver = subprocess.Popen(
            [sys.executable, str(path)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(HERE.parents[1])},
        )
        assert driver.stdout is not None
        assert driver.stdout.readline() == "up\n"
        children = Path(f"/proc/{driver.pid}/task").glob("*/children")
        pids = {int(pid) for file in children for pid in file.read_text().split()}
        assert pids
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
        deadline = time.monotonic() + 20
        while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    finally:
        path.unlink()
