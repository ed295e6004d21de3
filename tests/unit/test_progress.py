"""A sign of life every ten seconds, in a pipe and in a terminal, whatever is worked on."""

import io
import re
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import pytest

from grpo.console import Screen
from grpo.progress import PlainSpell
from tests.unit.test_console import Clock, Terminal, colour_terminal


@pytest.fixture(autouse=True)
def a_terminal_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    colour_terminal(monkeypatch, 160)


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line is due at any time."""
    monkeypatch.setattr("grpo.progress.PLAIN_PROGRESS_EVERY_S", 0.0)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it never came to pass"
        time.sleep(0.005)


def watchers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "progress"]


# --- a bar ---


def test_a_line_says_what_is_counted_and_what_the_caller_knows_of_it() -> None:
    out, clock = io.StringIO(), Clock()
    with Screen(out, clock=clock).progress("step 3: rollouts", 256, "answers") as bar:
        clock.now_s = 20.4
        bar.update(112, 256, "8,540 tokens, 419 tokens/s", "at most 2m11s")
    assert out.getvalue().splitlines() == [
        "step 3: rollouts: 112/256 answers (44%), 8,540 tokens, 419 tokens/s after 20.4s, "
        "ETA at most 2m11s",
        "step 3: rollouts: 112/256 answers (44%), 8,540 tokens, 419 tokens/s in 20.4s",
    ]


def test_a_line_comes_every_ten_seconds_though_nothing_has_advanced() -> None:
    out, clock = io.StringIO(), Clock()
    with Screen(out, clock=clock).progress("rollouts", 4) as bar:
        for _ in range(41):
            bar.update(0, 4)
            clock.now_s += 0.5
        lines = out.getvalue().splitlines()
    assert lines == [
        "rollouts: 0/4 (0%) after 10.0s, ETA ?",
        "rollouts: 0/4 (0%) after 20.0s, ETA ?",
    ]


def test_the_ten_seconds_run_from_the_last_word_whoever_said_it() -> None:
    out, clock = io.StringIO(), Clock()
    screen = Screen(out, clock=clock)
    with screen.waiting("learning"):
        clock.now_s = 6
    with screen.progress("rollouts", 4) as bar:
        clock.now_s = 10
        bar.update(1, 4)
        clock.now_s = 12
        screen.note("a note")
        clock.now_s = 21
        bar.update(1, 4)
        clock.now_s = 22
        bar.update(2, 4)
        lines = out.getvalue().splitlines()
    assert lines == [
        "rollouts: 1/4 (25%) after 4.0s, ETA 12.0s",
        "a note",
        "rollouts: 2/4 (50%) after 16.0s, ETA 16.0s",
    ]


def test_a_bar_that_nobody_moves_says_so_by_itself(always: None) -> None:
    out, clock = io.StringIO(), Clock()
    with Screen(out, clock=clock).progress("judge sums", 4) as bar:
        clock.now_s = 30
        bar.advance(3)
        out.truncate(0)
        wait_until(lambda: "judge sums: 3/4 (75%) after 30.0s, ETA 10.0s\n" in out.getvalue())


@pytest.mark.parametrize("width", ["80", "160"])
def test_a_terminal_draws_one_line_with_counts_tokens_and_the_time_that_is_left(
    width: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", width)
    terminal = Terminal()
    with Screen(terminal).progress("step 3: rollouts", 256, "answers") as bar:
        bar.update(112, 260, "8,540 tokens, 419 tokens/s", "2m11s")
    drawn = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.getvalue())
    assert drawn.count("\n") == 1, drawn
    assert "112/260 answers" in drawn and "ETA 2m11s 8,540 tokens, 419 tokens/s" in drawn


# --- work without parts ---


def test_work_without_parts_says_how_long_it_has_taken_and_usually_takes(always: None) -> None:
    out, clock = io.StringIO(), Clock()
    with Screen(out, clock=clock).waiting("step 3: learning", 9.5) as spell:
        clock.now_s = 12
        wait_until(lambda: "step 3: learning: 12.0s (usually 9.5s)\n" in out.getvalue())
        spell.say("weights to the engines")
        clock.now_s = 15
        wait_until(lambda: "weights to the engines: 3.0s\n" in out.getvalue())


def test_short_work_without_parts_is_silent_and_leaves_no_thread() -> None:
    out, clock = io.StringIO(), Clock()
    with Screen(out, clock=clock).waiting("saving"):
        clock.now_s = 9.7
        assert len(watchers()) == 1
    assert out.getvalue() == "" and not watchers()


def test_what_fails_meanwhile_passes_through_and_leaves_no_thread() -> None:
    with pytest.raises(ZeroDivisionError), Screen(io.StringIO()).waiting("learning"):
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), Screen(io.StringIO()).progress("judging", 3):
        raise ZeroDivisionError
    assert not watchers()


def test_nothing_is_said_once_the_work_is_done(always: None) -> None:
    out = io.StringIO()
    with Screen(out).waiting("learning"):
        wait_until(lambda: "learning" in out.getvalue())
    assert not watchers()


def test_of_work_within_work_only_the_inner_speaks(always: None) -> None:
    out = io.StringIO()
    screen = Screen(out)
    with screen.progress("rollouts", 4):
        wait_until(lambda: "rollouts" in out.getvalue())
        with screen.waiting("loading the model into rollout-1"):
            before = len(out.getvalue())
            wait_until(lambda: out.getvalue()[before:].count("rollout-1") > 3)
            inner = out.getvalue()[before:]
            assert len(watchers()) == 1
        before = len(out.getvalue())
        wait_until(lambda: "rollouts" in out.getvalue()[before:])
    assert "rollouts:" not in inner
    assert not watchers()


@pytest.mark.parametrize("kind", [io.StringIO, Terminal])
def test_in_a_terminal_work_within_work_has_its_turn_too(kind: type[io.StringIO]) -> None:
    out = kind()
    screen = Screen(out)
    with screen.progress("rollouts", 4) as bar, screen.waiting("loading") as spell:
        spell.say("connecting")
        bar.update(1, 4)
    with screen.waiting("learning", 9.5):
        pass
    if isinstance(out, Terminal):
        for word in ("rollouts", "connecting", "learning", "usually 9.5s"):
            assert word in out.getvalue()


class Pieces(io.StringIO):
    """Remembers what it was given at once."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[str] = []

    def write(self, text: str) -> int:
        self.pieces.append(text)
        return super().write(text)


def test_lines_of_two_threads_come_out_whole(always: None) -> None:
    out = Pieces()
    screen = Screen(out, out)
    with screen.waiting("learning"):
        for number in range(50):
            screen.note(f"note {number}")
            screen.warn(f"warning {number}")
            time.sleep(0)
    assert len(out.pieces) >= 100
    for piece in out.pieces:
        assert re.fullmatch(r"(note \d+|warning: warning \d+|learning: \d+\.\ds)\n", piece)


def test_a_warning_makes_room_for_itself_where_something_is_drawn_on_its_terminal() -> None:
    """Written past the console that draws, it would end in the middle of the spinner's line."""
    out, err, file = Terminal(), Terminal(), io.StringIO()
    with Screen(out, err).waiting("learning"):
        Screen(out, err).warn("before")
    assert "before" in err.getvalue(), "another screen knows nothing of the spinner"
    screen = Screen(out, err)
    with screen.waiting("learning"):
        screen.warn("beside a spinner")
    screen.warn("afterwards")
    assert "warning: beside a spinner\x1b[0m\n" in out.getvalue()
    assert "beside" not in err.getvalue() and "afterwards" in err.getvalue()
    screen = Screen(out, file)
    with screen.waiting("learning"):
        screen.warn("in a file")
    assert file.getvalue() == "warning: in a file\n"


def test_a_reader_that_is_gone_ends_the_lines_and_not_the_work(
    always: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[object] = []
    monkeypatch.setattr(threading, "excepthook", told.append)

    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    with Screen(Gone()).waiting("learning"):
        wait_until(lambda: not watchers())
    assert not told


def test_a_system_without_threads_costs_the_lines_and_not_the_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    out, done = io.StringIO(), []
    with Screen(out).waiting("learning"):
        done.append("outer")
        with Screen(out).progress("judging", 1):
            done.append("inner")
    assert done == ["outer", "inner"] and out.getvalue() == ""


def test_what_a_signal_cuts_short_is_not_shown_again(
    always: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes while the inner one is being ended."""
    out = io.StringIO()
    screen, stop = Screen(out), PlainSpell.stop

    def cut_short(self: PlainSpell) -> None:
        stop(self)
        if "inner" in self._line():
            raise KeyboardInterrupt

    monkeypatch.setattr(PlainSpell, "stop", cut_short)
    with suppress(KeyboardInterrupt), screen.waiting("outer"), screen.waiting("inner"):
        pass
    before = out.getvalue().count("inner")
    with screen.waiting("next"):
        wait_until(lambda: "next" in out.getvalue())
    wait_until(lambda: not watchers())
    assert out.getvalue().count("inner") == before


def test_a_pipe_that_is_to_have_colours_and_a_dumb_terminal_get_lines(
    always: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    pipe = io.StringIO()
    with Screen(pipe).waiting("learning"):
        wait_until(lambda: "learning: " in pipe.getvalue())
    monkeypatch.delenv("FORCE_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    dumb = Terminal()
    with Screen(dumb).waiting("learning"):
        wait_until(lambda: "learning: " in dumb.getvalue())
    assert "\x1b[?25l" not in pipe.getvalue() + dumb.getvalue()  # hides the cursor
