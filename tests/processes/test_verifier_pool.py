"""Every answer gets one verdict in bounded time, whatever the verifier does."""

import asyncio
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo.errors import RunError, UserError
from grpo.types import Verdict
from grpo.verify import fork_server as fork_server_module
from grpo.verify import pool as pool_module
from grpo.verify.fork_server import ForkServer
from grpo.verify.pool import VerifierPool
from grpo.verify.worker import judge
from tests.examples import examples

HERE = Path(__file__).parent
PLUGINS = ("tests.unit.hostile_verifiers",)
# sympy multiplies this out exactly: minutes to for ever.
TOWER = r"\boxed{9^{9^{9^{9}}}}"


def hostile_pool(workers: int = 2, timeout_s: float = 1.0, **options: object) -> VerifierPool:
    return VerifierPool("hostile", options, workers=workers, timeout_s=timeout_s, plugins=PLUGINS)


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Gets a line for every call of the verifier in the pools below."""
    return tmp_path_factory.mktemp("pool") / "calls"


@pytest.fixture(scope="module")
def hostile(calls: Path) -> Iterator[VerifierPool]:
    """Two workers with a deadline of a second."""
    with hostile_pool(reward=0.5, log=str(calls)) as pool:
        yield pool


@pytest.fixture(scope="module")
def single(calls: Path) -> Iterator[VerifierPool]:
    """One worker with a deadline far off."""
    with hostile_pool(workers=1, timeout_s=60.0, log=str(calls)) as pool:
        yield pool


def worker_of(pool: VerifierPool) -> int:
    (verdict,) = pool.judge(["pid"], "x")
    return int(verdict.parsed)


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().split()[3])


def is_gone(pid: int) -> bool:
    """Ended; who should reap it may not have come to it yet."""
    try:
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True


def until(holds: object, *, seconds: float = 20) -> bool:
    assert callable(holds)
    deadline = time.monotonic() + seconds
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.02)
    return bool(holds())


def descendants(pid: int) -> set[int]:
    children = {
        int(child)
        for file in Path(f"/proc/{pid}/task").glob("*/children")
        for child in file.read_text().split()
    }
    return children.union(*map(descendants, children))


# --- deadlines and deaths ---


def test_a_verifier_is_told_what_it_asks_for():
    answer = "\\boxed{4"
    with VerifierPool("exact", {}, workers=1, timeout_s=60) as pool:
        for facts, reward in [
            ({}, 1.0),
            ({"thinking": True}, 0.0),
            ({"problem": "2+2", "truncated": True}, 1.0),
        ]:
            assert pool.submit(f"{answer}}}", "4", **facts).result().reward == reward
        assert pool.submit("Answer: 4", "4", truncated=True).result().reward == 0.0
        assert pool.submit(f"x</think>{answer}}}", "4", thinking=True).result().reward == 1.0
    # One without these keywords is called as it is.
    with hostile_pool(timeout_s=60) as pool:
        told = pool.submit("a", "x", problem="p", thinking=True, truncated=True).result()
        (as_it_is,) = pool.judge(["a"], "x")
        assert (told.reward, told.parsed, told.reason) == (1.0, "a", "correct")
        assert replace(told, seconds=as_it_is.seconds) == as_it_is


def test_an_answer_past_its_deadline_is_a_timeout_and_the_others_go_on(hostile: VerifierPool):
    started = time.monotonic()
    verdicts = hostile.judge(["a", "hang", "b", "spin", "c"], "x")
    assert [v.reason for v in verdicts] == ["correct", "timeout", "correct", "timeout", "correct"]
    assert [v.reward for v in verdicts] == [0.5, 0.0, 0.5, 0.0, 0.5]
    assert [v.seconds for v in verdicts if v.reason == "timeout"] == [1.0, 1.0]
    assert time.monotonic() - started < 30
    assert hostile.counts["timeout"] >= 2


@pytest.mark.parametrize("death", ["die", "fault"])
def test_a_worker_that_dies_is_replaced_and_its_answer_judged_once_more(
    hostile: VerifierPool, death: str, tmp_path: Path
):
    verdicts = hostile.judge([death, "a", f"die_once {tmp_path / 'died'}"], "x")
    assert [v.reason for v in verdicts] == ["verifier crashed", "correct", "correct"]


def test_an_exception_becomes_a_verdict_with_its_words(hostile: VerifierPool):
    verdicts = hostile.judge(["raise", "exit"], "x")
    assert [v.reason for v in verdicts] == [
        "verifier crashed: ZeroDivisionError: one over nothing",
        "verifier crashed: SystemExit: done",
    ]


def test_an_answer_that_takes_too_much_memory_is_told_and_its_worker_is_replaced(
    single: VerifierPool,
):
    before = worker_of(single)
    (verdict,) = single.judge(["memory"], "x")
    assert verdict.reason.startswith("verifier crashed: MemoryError")
    assert worker_of(single) != before


def test_a_reward_that_is_no_number_is_a_crash_and_not_a_reward(hostile: VerifierPool):
    verdicts = hostile.judge(["worth nan", "worth inf", "worth 0.25"], "x")
    assert [v.reward for v in verdicts] == [0.0, 0.0, 0.25]
    assert verdicts[0].reason == "verifier crashed: ValueError: reward nan is not finite"
    assert verdicts[2].reason == "correct"


def test_a_worker_killed_between_two_answers_does_not_end_the_pool(hostile: VerifierPool):
    idle = worker_of(hostile)
    os.kill(idle, signal.SIGKILL)
    assert [v.reason for v in hostile.judge(["a", "b", "c"], "x")] == ["correct"] * 3
    assert until(lambda: is_gone(idle))


def test_a_worker_killed_from_outside_while_it_judges_has_its_answer_judged_again(
    single: VerifierPool,
):
    pid = worker_of(single)
    future = single.submit("nap 0.5", "x")
    time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)
    assert future.result(timeout=60).reason == "correct"
    assert worker_of(single) != pid


def test_a_worker_that_does_not_read_its_answer_is_replaced(
    single: VerifierPool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(fork_server_module, "_SEND_S", 1)
    for _ in range(2):  # who judged and who stood by; those who follow are made with the second
        os.kill(worker_of(single), signal.SIGKILL)
    stopped = worker_of(single)
    os.kill(stopped, signal.SIGSTOP)
    (verdict,) = single.judge(["size " + "a" * 3_000_000], "x")
    assert (verdict.parsed, verdict.reason) == ("3000000", "correct")
    assert until(lambda: is_gone(stopped))


def test_the_pool_goes_on_when_the_fork_server_is_killed(single: VerifierPool):
    server = parent_of(worker_of(single))
    answers = [single.submit(f"nap 0.{i}", "x") for i in (1, 2, 3)]
    os.kill(server, signal.SIGKILL)
    assert [future.result(timeout=60).reason for future in answers] == ["correct"] * 3
    assert is_gone(server)


def test_what_a_killed_worker_started_is_killed_with_it(hostile: VerifierPool, tmp_path: Path):
    marker = tmp_path / "pid"
    (verdict,) = hostile.judge([f"child {marker}"], "x")
    assert verdict.reason == "timeout"
    assert until(lambda: is_gone(int(marker.read_text())))


def test_a_fork_server_whose_pool_is_gone_before_it_is_ready_says_nothing(capfd):
    """As where a run is stopped while it starts."""
    server = ForkServer("exact", {}, ())
    server._control.close()
    assert server._process.wait(60) == 0
    assert capfd.readouterr().err == ""


def test_ctrl_c_in_a_terminal_does_not_reach_the_verifier(single: VerifierPool):
    """It goes to the driver's whole process group."""
    single.judge(["1"], "1")
    server = single._fork_server
    assert server is not None
    assert os.getpgid(server._process.pid) != os.getpgid(0)


def test_closing_cancels_what_is_not_judged_and_leaves_no_process():
    with hostile_pool(workers=1, timeout_s=99.0) as pool:
        worker = worker_of(pool)
        server = parent_of(worker)
        waiting = [pool.submit("hang", "x"), pool.submit("a", "x")]
    assert [future.cancelled() for future in waiting] == [True, True]
    assert not Path(f"/proc/{worker}").exists()
    assert not Path(f"/proc/{server}").exists()
    pool.close()


def test_an_answer_that_is_cancelled_while_it_waits_is_not_judged(
    single: VerifierPool, calls: Path
):
    before = single.counts["correct"]
    first, second = single.submit("nap 0.3", "x"), single.submit("never", "x")
    assert second.cancel()
    first.result()
    single.judge(["last"], "x")
    assert "never" not in calls.read_text().splitlines()
    assert single.counts["correct"] == before + 2


# --- each answer once ---


def test_every_answer_is_judged_exactly_once_among_hangs_and_crashes(
    hostile: VerifierPool, calls: Path
):
    rng = random.Random(0)
    deeds = ["hang"] * 4 + ["die"] * 4 + ["raise"] * 12 + ["fine"] * 180
    rng.shuffle(deeds)
    answers = [f"{deed} of {i}" for i, deed in enumerate(deeds)]
    before = hostile.counts.copy()
    verdicts = hostile.judge(answers, "x")
    expected = {
        "hang": "timeout",
        "die": "verifier crashed",
        "raise": "verifier crashed: ZeroDivisionError: one over nothing",
        "fine": "correct",
    }
    assert [v.reason for v in verdicts] == [expected[deed] for deed in deeds]
    assert hostile.counts - before == {"timeout": 4, "verifier crashed": 16, "correct": 180}
    called = Counter(line for line in calls.read_text().splitlines() if " of " in line)
    assert called == {a: 2 if a.startswith("die") else 1 for a in answers}


@examples(15)
@given(
    st.lists(st.sampled_from(["a", "b c", "raise", "exit", "die", "size 12345", ""]), max_size=20)
)
def test_verdicts_come_in_the_order_of_answers(hostile: VerifierPool, answers: list[str]):
    reasons = {"raise": "verifier crashed", "exit": "verifier crashed", "die": "verifier crashed"}
    verdicts = hostile.judge(answers, "x")
    assert [v.reason.split(":")[0] for v in verdicts] == [
        reasons.get(answer, "correct") for answer in answers
    ]
    parsed = {"size 12345": "5"}
    assert [v.parsed for v in verdicts if v.reward] == [
        parsed.get(answer, answer) for answer in answers if answer not in reasons
    ]


@pytest.mark.parametrize("text", ["", "\ud800 \0 ∑", "a" * 3_000_000])
def test_any_text_reaches_the_verifier_as_it_is(hostile: VerifierPool, text: str):
    assert hostile.judge([f"size {text}"], "x")[0].parsed == str(len(text))


def test_a_worker_is_replaced_after_so_many_answers(
    single: VerifierPool, monkeypatch: pytest.MonkeyPatch
):
    os.kill(worker_of(single), signal.SIGKILL)  # the next one begins to count at the next answer
    monkeypatch.setattr(pool_module, "_JUDGED_BY_ONE", 3)
    pids = [v.parsed for v in single.judge(["pid"] * 9, "x")]
    assert [pids[:3], pids[3:6], pids[6:]] == [[pid] * 3 for pid in pids[::3]]
    assert len(set(pids)) == 3


# --- room ---


def test_submit_waits_while_the_pool_is_full(
    hostile: VerifierPool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(pool_module, "_MOST_ANSWERS", 8)
    futures = []
    for _ in range(50):
        futures.append(hostile.submit("nap 0.01", "x"))
        assert sum(not future.done() for future in futures) <= 9  # one may be just about done
    assert {future.result().reason for future in futures} == {"correct"}


def test_submit_waits_for_room_in_characters_and_still_takes_one_larger_than_all(
    hostile: VerifierPool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(pool_module, "_MOST_CHARACTERS", 100)
    huge = hostile.submit("size " + "a" * 1000, "x")
    after = hostile.submit("size a", "x")
    assert huge.result(timeout=0.5).parsed == "1000"  # it left the pool before the next came in
    assert after.result().parsed == "1"


def test_a_stream_takes_no_more_answers_than_there_is_room_for(
    hostile: VerifierPool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(pool_module, "_MOST_ANSWERS", 8)
    taken = 0

    def answers() -> Iterator[tuple[str, str, str]]:
        nonlocal taken
        for i in range(1_000_000):
            taken += 1
            yield str(i), "x", ""

    for i, verdict in zip(range(100), hostile.stream(answers()), strict=False):
        assert verdict.parsed == str(i)
        assert taken <= i + 1 + 9


def test_a_callback_may_submit_to_a_full_pool(
    single: VerifierPool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(pool_module, "_MOST_ANSWERS", 2)
    parsed: list[str] = []
    done = threading.Event()

    def again(_: object) -> None:
        for name in ("a", "b", "c"):
            single.submit(name, "x").add_done_callback(lambda f: parsed.append(f.result().parsed))
        single.submit("last", "x").add_done_callback(lambda _: done.set())

    single.submit("first", "x").add_done_callback(again)
    assert done.wait(30)
    assert parsed == ["a", "b", "c"]


def test_an_event_loop_that_submits_more_than_fits_gets_all_its_verdicts(
    hostile: VerifierPool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(pool_module, "_MOST_ANSWERS", 4)

    async def judge_all() -> list[Verdict]:
        futures = [asyncio.wrap_future(hostile.submit(str(i), "x")) for i in range(40)]
        return await asyncio.wait_for(asyncio.gather(*futures), 60)

    assert [v.parsed for v in asyncio.run(judge_all())] == [str(i) for i in range(40)]


# --- beginnings and ends ---


def test_a_plugin_that_does_not_import_is_the_users_mistake():
    with pytest.raises(UserError, match=r"plugins: 'no\.such\.lab' cannot be imported"):
        VerifierPool("math", {}, workers=1, timeout_s=1.0, plugins=("no.such.lab",))


def test_workers_that_cannot_start_end_the_run_in_words(tmp_path: Path, monkeypatch):
    (tmp_path / "here_only.py").write_text(
        "import os\nassert os.getpid() == int(os.environ['ONLY_IN'])\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("ONLY_IN", str(os.getpid()))
    pool = VerifierPool("exact", {}, workers=1, timeout_s=1.0, plugins=("here_only",))
    with pytest.raises(RunError, match="workers do not start"), pool:
        pass


def test_the_math_verifier_works_in_a_pool_and_no_tower_of_exponents_holds_it_up():
    with VerifierPool("math", {}, workers=2, timeout_s=5.0) as pool:
        towers = pool.judge([TOWER, r"\boxed{24}", TOWER], "24")
        assert [v.reward for v in towers] == [0.0, 1.0, 0.0]
        again = pool.judge([r"\boxed{\frac{1}{2}}"] * 8, "0.5")
        assert [v.reward for v in again] == [1.0] * 8


def test_the_time_of_a_verdict_is_that_of_its_judging(hostile: VerifierPool):
    (verdict,) = hostile.judge(["nap 0.2"], "x")
    assert 0.2 <= verdict.seconds < 1.0


def test_a_verdict_with_a_long_text_is_shortened_to_fit_the_pipe():
    verdict, is_spent = judge(lambda r, a: Verdict(1.0, r, "correct"), "x" * 100_000, "x", {})
    assert (len(verdict.parsed), is_spent) == (10_000, False)


def test_workers_die_with_a_driver_that_is_killed_even_in_the_middle_of_a_c_call():
    script = (
        "import os, time\n"
        "from grpo.verify.pool import VerifierPool\n"
        "plugins = ('tests.unit.hostile_verifiers',)\n"
        "with VerifierPool('hostile', {}, workers=2, timeout_s=99, plugins=plugins) as pool:\n"
        "    pool.submit('spin', 'x')\n"
        "    pool.judge(['a'], 'x')\n"
        "    print('up', flush=True)\n"
        "    time.sleep(600)\n"
    )
    driver = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(HERE.parents[1])},
    )
    assert driver.stdout is not None
    assert driver.stdout.readline() == "up\n"
    pids = descendants(driver.pid)
    assert len(pids) == 4  # the fork server, two workers, and one that stands by
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    driver.stdout.close()
    assert until(lambda: all(map(is_gone, pids)))
