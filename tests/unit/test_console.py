"""What is printed, in a pipe and in a terminal."""

import io
import math
import re
from collections import Counter
from typing import Any

import numpy as np
import pytest

from grpo.console import Screen
from grpo.progress import duration
from grpo.types import Group, Prompt, Response, Row, ScoredGroup, Verdict


class Terminal(io.StringIO):
    """Claims to be a terminal, so that rich draws."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def colour_terminal(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    """What rich takes a `Terminal` for."""
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", str(columns))


@pytest.fixture(autouse=True)
def a_wide_colour_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    colour_terminal(monkeypatch, 200)


METRICS = {
    "reward/mean": 0.41234,
    "length/mean": 811.6,
    "truncated/share": 0.031,
    "learn/grad_norm": 0.2134,
    "mismatch/mean_abs": 0.00213,
    "throughput/sampled_tokens_per_s": 8123.4,
    "time/rollout_s": 12.14,
    "time/learn_s": 65.2,
    "time/sync_s": 0.41,
    "time/step_s": 78.0,
}


def group(text: str, problem: str = "2+2?", serial: int = 5) -> ScoredGroup:
    response = Response(np.zeros(3, np.int32), np.zeros(3, np.float32), "stop", (), text)
    verdicts = (Verdict(1.0, "4", "correct"), Verdict(0.0, "", "no answer"))
    return ScoredGroup(
        Group(Prompt(serial, Row("r", problem, "4"), (1,)), (response,) * 2), verdicts
    )


def test_a_step_is_one_plain_line_in_a_pipe() -> None:
    out = io.StringIO()
    Screen(out).step_line(7, 500, METRICS, eta_s=9060)
    assert out.getvalue() == (
        "step   7/500  reward 0.412  length 812  cut 3.1%  grad 0.213  mismatch 0.0021  "
        "tok/s 8,123  1m18s (rollout 12.1s + learn 1m05s + sync 0.4s)  ETA 2h31m\n"
    )


def test_missing_metrics_are_left_out() -> None:
    out = io.StringIO()
    Screen(out).step_line(1, 5, {"reward/mean": 0.5, "time/sync_s": 2.0})
    assert out.getvalue() == "step 1/5  reward 0.500  sync 2.0s\n"


def test_a_gradient_that_is_not_a_number_is_shown() -> None:
    out = io.StringIO()
    Screen(out).step_line(1, 5, {"learn/grad_norm": math.nan})
    assert out.getvalue() == "step 1/5  grad nan\n"


def test_a_terminal_gets_the_same_words_with_colour() -> None:
    plain, terminal = io.StringIO(), Terminal()
    Screen(plain).step_line(7, 500, METRICS, eta_s=9060)
    Screen(terminal).step_line(7, 500, METRICS, eta_s=9060)
    drawn = terminal.getvalue()
    assert "\x1b[" in drawn
    assert "reward" in drawn and "0.412" in drawn and "2h31m" in drawn
    assert drawn.count("\n") == 1


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.04, "0.0s"),
        (7.23, "7.2s"),
        (59.97, "1m00s"),
        (312, "5m12s"),
        (3599.7, "1h00m"),
        (9060, "2h31m"),
        (273600, "3d04h"),
        (math.nan, "?"),
        (-1, "0.0s"),
    ],
)
def test_durations_read_well(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


def test_plain_progress_writes_every_ten_seconds_and_at_the_end() -> None:
    out, clock = io.StringIO(), Clock()
    with Screen(out, clock=clock).progress("rollout", 40) as bar:
        for _ in range(40):
            clock.now_s += 0.6
            bar.advance()
    assert out.getvalue().splitlines() == [
        "rollout: 17/40 (42%) after 10.2s, ETA 13.8s",
        "rollout: 34/40 (85%) after 20.4s, ETA 3.6s",
        "rollout: 40/40 (100%) in 24.0s",
    ]


def test_plain_progress_of_short_work_is_silent() -> None:
    out, clock = io.StringIO(), Clock()
    with Screen(out, clock=clock).progress("rollout", 4) as bar:
        clock.now_s += 9.9
        bar.advance(4)
    assert out.getvalue() == ""


def test_progress_over_nothing_does_not_divide_by_it() -> None:
    out, clock = io.StringIO(), Clock()
    with Screen(out, clock=clock).progress("rollout", 0):
        clock.now_s += 10
    assert out.getvalue() == "rollout: 0/0 in 10.0s\n"


def test_a_terminal_draws_a_bar_and_markup_in_its_title_is_only_text() -> None:
    terminal = Terminal()
    with Screen(terminal).progress("[red]rollout[/nonsense]", 2) as bar:
        bar.advance()
        bar.advance()
    assert "[red]rollout[/nonsense]" in terminal.getvalue()
    assert "2/2" in terminal.getvalue()


def test_samples_show_prompt_answer_and_verdict_of_different_prompts_first() -> None:
    out = io.StringIO()
    Screen(out).samples(3, [group("so 4", serial=5), group("maybe", serial=6)], 3)
    assert out.getvalue().splitlines() == [
        "--- step 3, prompt 5, answer 0: reward 1, parsed '4' (wanted '4'), correct, 3 tokens",
        "prompt: 2+2?",
        "answer: so 4",
        "--- step 3, prompt 6, answer 0: reward 1, parsed '4' (wanted '4'), correct, 3 tokens",
        "prompt: 2+2?",
        "answer: maybe",
        "--- step 3, prompt 5, answer 1: reward 0, parsed '' (wanted '4'), no answer, 3 tokens",
        "prompt: 2+2?",
        "answer: so 4",
    ]


@pytest.mark.parametrize("kind", [io.StringIO, Terminal])
def test_sampled_markup_and_escape_sequences_are_only_text(kind: type[io.StringIO]) -> None:
    out = kind()
    Screen(out).samples(1, [group("[bold]x[/italic] :smile: \x1b[2J end")], 1)
    assert "[bold]x[/italic] :smile: \N{REPLACEMENT CHARACTER}[2J end" in out.getvalue()
    assert "\x1b[2J" not in out.getvalue()


def test_a_long_answer_keeps_its_start_and_its_end() -> None:
    out = io.StringIO()
    Screen(out).samples(1, [group("a" * 600 + "m" * 5000 + "z" * 600)], 1)
    answer = out.getvalue().splitlines()[-1]
    assert answer == f"answer: {'a' * 500} [... 5200 characters ...] {'z' * 500}"


def test_no_groups_have_no_samples() -> None:
    out = io.StringIO()
    Screen(out).samples(1, [], 2)
    assert out.getvalue() == ""


def test_a_plain_table_is_aligned() -> None:
    out = io.StringIO()
    Screen(out).table("scores", ["name", "value"], [["avg@8", 0.5], ["pass@8", 0.75]])
    assert out.getvalue().splitlines() == [
        "scores",
        "  name    value",
        "  avg@8     0.5",
        "  pass@8   0.75",
    ]


def test_a_terminal_draws_a_table_with_brackets_kept() -> None:
    terminal = Terminal()
    Screen(terminal).table("scores", ["name"], [["[0.1, 0.2]"]])
    assert "[0.1, 0.2]" in terminal.getvalue() and "━" in terminal.getvalue()


def table_at(width: int, monkeypatch: pytest.MonkeyPatch, *table: Any) -> list[str]:
    """The lines of a table in a terminal of so many columns, without colours."""
    monkeypatch.setenv("COLUMNS", str(width))
    terminal = Terminal()
    Screen(terminal).table(*table)
    return re.sub(r"\x1b\[[0-9;]*m", "", terminal.getvalue()).splitlines()


def test_a_table_wider_than_the_terminal_is_folded_into_it(monkeypatch: pytest.MonkeyPatch) -> None:
    interval = "0.374 (95 %: 0.341 to 0.406)"
    columns = ["benchmark", "score", "first", "peak", "at step", "last"]
    rows = [[f"a_benchmark_{n}", "avg@8", interval, interval, 140 + n, interval] for n in (1, 2)]
    lines = table_at(80, monkeypatch, "accuracy", columns, rows)
    assert max(map(len, lines)) <= 80
    found = Counter(re.findall(r"[^\s┃│]+", "\n".join(lines[3:])))
    for word, times in Counter(f"{interval} {interval} {interval}".split()).items():
        assert found[word] == 2 * times
    assert found["141"] == found["142"] == 1


def test_a_word_longer_than_its_column_is_cut_up_and_not_cut_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = table_at(20, monkeypatch, "files", ["path"], [["x" * 50]])
    assert max(map(len, lines)) <= 20
    assert "".join(lines).count("x") == 50


def test_texts_stand_on_the_left_and_numbers_on_the_right(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [["weights", 0.5, "yes"], ["kv", 12.25, "no"]]
    lines = table_at(80, monkeypatch, "t", ["part", "GiB", "fits"], rows)
    assert lines[4:6] == ["│ weights │   0.5 │ yes  │", "│ kv      │ 12.25 │ no   │"]


def test_warnings_go_to_stderr_and_notes_do_not() -> None:
    out, err = io.StringIO(), io.StringIO()
    screen = Screen(out, err)
    screen.note("a [note]")
    screen.warn("a [warning]")
    assert out.getvalue() == "a [note]\n"
    assert err.getvalue() == "warning: a [warning]\n"


def test_a_stream_that_knows_only_ascii_does_not_end_the_run() -> None:
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="ascii")
    Screen(out).note("naïve π")
    assert raw.getvalue() == b"na\\xefve \\u03c0\n"
