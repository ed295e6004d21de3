"""What signals ask of a run, and how long it may take."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from io import StringIO

import pytest
import typer

from grpo import stop as stops
from grpo.cli.exit_codes import exit_codes
from grpo.console import Screen
from grpo.errors import Interrupted
from grpo.stop import StopRequest, handlers_kept


@contextmanager
def listening(grace_s: float = 60.0) -> Iterator[tuple[StopRequest, StringIO]]:
    told = StringIO()
    with StopRequest(Screen(StringIO(), told), grace_s).listening() as stop:
        yield stop, told


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_asks_and_names_the_grace(number: signal.Signals):
    with listening(45.0) as (stop, told):
        assert not stop()
        signal.raise_signal(number)
        assert stop()
        assert f"{number.name}: stopping once what is finished is saved, in 45 s" in told.getvalue()


def test_a_signal_that_arrives_twice_at_once_is_one_and_a_later_one_stops_at_once(monkeypatch):
    with pytest.raises(Interrupted) as stopped, listening() as (stop, _):
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        monkeypatch.setattr(stops, "_ECHO_S", -1.0)
        assert stop()
        signal.raise_signal(signal.SIGINT)
    assert stopped.value.at_once
    assert stopped.value.number == signal.SIGTERM, "the first one says how the run ended"


def test_after_the_grace_whatever_is_under_way_is_given_up():
    began = time.monotonic()
    with pytest.raises(Interrupted) as stopped, listening(0.2):
        signal.raise_signal(signal.SIGTERM)
        time.sleep(30)
    assert time.monotonic() - began < 10
    assert stopped.value.at_once and stopped.value.number == signal.SIGTERM


def test_no_alarm_goes_off_once_the_run_has_ended():
    with listening(0.05):
        signal.raise_signal(signal.SIGTERM)
    time.sleep(0.2)
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_once_everything_is_saved_the_grace_does_not_count_any_more():
    with listening(0.1) as (stop, _):
        signal.raise_signal(signal.SIGTERM)
        stop.stop_the_clock()
        time.sleep(0.3)


def test_while_there_is_nothing_to_save_the_first_signal_stops_at_once():
    with pytest.raises(Interrupted) as stopped, listening() as (stop, _), stop.at_once():
        signal.raise_signal(signal.SIGTERM)
        time.sleep(30)
    assert stopped.value.at_once


def test_a_start_is_not_begun_where_a_stop_was_asked_for_before():
    with pytest.raises(Interrupted), listening() as (stop, _):
        signal.raise_signal(signal.SIGTERM)
        with stop.at_once():
            pytest.fail("it began")


def test_a_clean_stop_that_somebody_else_raises_knows_the_signal():
    with pytest.raises(Interrupted) as stopped, listening():
        signal.raise_signal(signal.SIGTERM)
        raise Interrupted
    assert stopped.value.number == signal.SIGTERM and not stopped.value.at_once


def test_ctrl_c_is_heard_though_a_shell_started_the_run_in_its_background():
    """Such a shell has its children ignore it."""
    old = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with listening() as (stop, _):
            signal.raise_signal(signal.SIGINT)
            assert stop()
    finally:
        signal.signal(signal.SIGINT, old)


def test_nohup_keeps_its_meaning():
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with listening() as (stop, _):
            signal.raise_signal(signal.SIGHUP)
            assert not stop()
    finally:
        signal.signal(signal.SIGHUP, old)


def test_the_handlers_that_were_there_are_there_again():
    before = [signal.getsignal(number) for number in stops.SIGNALS]
    with listening():
        pass
    assert [signal.getsignal(number) for number in stops.SIGNALS] == before


def test_a_library_that_takes_a_signal_gives_it_back():
    with listening() as (stop, _):
        with handlers_kept():
            signal.signal(signal.SIGTERM, lambda *_: pytest.fail("the library's handler"))
        signal.raise_signal(signal.SIGTERM)
        assert stop()


@pytest.mark.parametrize("at_once", [False, True])
def test_a_library_that_exits_on_a_signal_ends_the_run_as_we_would(at_once: bool):
    def exits(number: int, _: object) -> None:
        sys.exit(number)

    with (
        pytest.raises(Interrupted) as stopped,
        listening() as (stop, _),
        stop.at_once() if at_once else nullcontext(),
        handlers_kept(),
    ):
        signal.signal(signal.SIGTERM, exits)
        signal.raise_signal(signal.SIGTERM)
    assert stopped.value.at_once and stopped.value.number == signal.SIGTERM


def test_a_signal_that_a_library_loses_is_not_lost():
    """Raised within a destructor, say, its exit is printed and forgotten."""
    with pytest.raises(Interrupted) as stopped, listening() as (stop, _), stop.at_once():
        with handlers_kept():
            signal.signal(signal.SIGTERM, lambda *_: None)
            signal.raise_signal(signal.SIGTERM)
        time.sleep(30)
    assert stopped.value.number == signal.SIGTERM


class Grave:
    """Whatever its destructor raises, Python prints and forgets."""

    def __init__(self, error: BaseException):
        self.error = error

    def __del__(self) -> None:
        raise self.error


def test_an_exit_that_a_library_loses_is_not_printed_but_other_errors_are(monkeypatch):
    told: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda lost: told.append(str(lost.exc_value)))
    with pytest.raises(Interrupted), listening() as (stop, _), stop.at_once():
        with handlers_kept():
            signal.signal(signal.SIGTERM, lambda number, _: Grave(SystemExit(number)))
            signal.raise_signal(signal.SIGTERM)
            Grave(ValueError("broken"))
        time.sleep(30)
    assert told == ["broken"]


def test_a_stop_that_is_lost_within_a_library_is_raised_behind_it():
    with pytest.raises(Interrupted) as stopped, handlers_kept():
        Grave(Interrupted(signal.SIGINT, at_once=True))
    assert stopped.value.number == signal.SIGINT


def test_a_signal_that_came_before_the_library_took_them_over_counts_once():
    with listening() as (stop, told):
        with handlers_kept():
            signal.raise_signal(signal.SIGTERM)
        assert stop() and told.getvalue().count("SIGTERM") == 1


def test_in_other_threads_handlers_are_left_alone():
    with ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: handlers_kept().__enter__()).result()


def test_another_exit_of_a_library_stays_one():
    with pytest.raises(SystemExit) as ended, listening(), handlers_kept():
        sys.exit("no shared memory")
    assert ended.value.code == "no shared memory"


def test_no_except_exception_of_a_library_swallows_a_stop():
    with pytest.raises(Interrupted):
        try:
            raise Interrupted(signal.SIGTERM, at_once=True)
        except Exception:  # as libraries write it
            pytest.fail("swallowed")


@pytest.mark.parametrize(("number", "code"), [(2, 130), (15, 143), (1, 129)])
def test_the_exit_code_names_the_signal(number: int, code: int):
    with pytest.raises(typer.Exit) as ended, exit_codes("the same command goes on"):
        raise Interrupted(number)
    assert ended.value.exit_code == code


def test_a_terminal_that_is_gone_is_not_written_to(tmp_path):
    """As after a lost ssh session: a write to the terminal would be an error."""
    program = """
import os, signal, sys, time
from grpo.console import Screen
from grpo.stop import StopRequest
os.setsid()
with StopRequest(Screen()).listening() as stop:
    open(sys.argv[1], "w").close()
    while not stop():
        time.sleep(0.01)
    for _ in range(100):
        print("a line", flush=True)
open(sys.argv[2], "w").close()
"""
    ours, theirs = os.openpty()
    ready, done = tmp_path / "ready", tmp_path / "done"
    command = [sys.executable, "-c", program, str(ready), str(done)]
    process = subprocess.Popen(command, stdout=theirs, stderr=theirs)
    os.close(theirs)
    deadline = time.monotonic() + 60
    while not ready.exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.close(ours)
    process.send_signal(signal.SIGHUP)
    assert process.wait(timeout=60) == 0
    assert done.exists()


_TOLD_WHILE_IMPORTING = """
import os, sys

module, number = sys.argv[1:]

class Signal:
    def find_spec(self, name, *_):
        if name == module:
            os.kill(os.getpid(), int(number))

sys.meta_path.insert(0, Signal())
from grpo.cli import main
sys.argv = ["grpo", "doctor"]
main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("module", ["typer", "torch"])
def test_a_signal_that_comes_while_the_command_is_imported_is_no_traceback(
    module: str, number: signal.Signals
):
    """typer is needed for every command, torch by some of them."""
    told = subprocess.run(
        [sys.executable, "-c", _TOLD_WHILE_IMPORTING, module, str(int(number))],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert told.returncode == 128 + number, told.stderr
    assert "Traceback" not in told.stderr and "sys.meta_path" not in told.stderr


_TOLD_WHILE_ENDING = """
import atexit, os, signal, sys
from grpo.cli import main

atexit.register(lambda: os.kill(os.getpid(), signal.SIGTERM))
sys.argv = ["grpo", "recipes"]
main()
"""


def test_a_signal_that_comes_while_python_ends_is_no_traceback():
    """As while a library cleans up: by then there is nothing to save."""
    told = subprocess.run(
        [sys.executable, "-c", _TOLD_WHILE_ENDING],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert told.returncode == -signal.SIGTERM, "which a shell shows as 143"
    assert told.stderr == ""
