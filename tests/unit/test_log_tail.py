"""What a user reads of a worker's log when the worker is gone."""

from pathlib import Path

from grpo.fleet.log_tail import last_lines

WARNINGS = """\
/site-packages/vllm/dispatcher.py:138: FutureWarning: `reduce_op` is deprecated
  if hasattr(value, "__dict__"):
W1127 06:20:03.775000 5936 torch/_library/triton.py:53] Triton not available
[W1127 06:20:04.446842884 utils.cpp:68] Warning: NUMA binding: Using MEMBIND policy
[rank0]:[W1127 06:26:20.896196538 socket.cpp:207] [c10d] The hostname cannot be retrieved
"""


def written(folder: Path, text: str) -> str:
    log = folder / "rollout-0.log"
    log.write_text(text)
    return str(log)


def test_what_libraries_warn_of_is_left_out(tmp_path: Path):
    log = written(tmp_path, f"loading\n{WARNINGS}Killed: out of memory\n")
    assert last_lines(log, 15) == "loading\nKilled: out of memory"


def test_an_error_is_kept_with_its_indented_lines(tmp_path: Path):
    error = "Traceback (most recent call last):\n  File 'rank.py', line 3\n    x = 1\nValueError: x"
    assert last_lines(written(tmp_path, WARNINGS + error), 15) == error


def test_an_error_of_a_severe_kind_is_kept(tmp_path: Path):
    severe = "E1127 06:20:03.775000 5936 pair.cc:537] Read error"
    assert last_lines(written(tmp_path, WARNINGS + severe), 15) == severe


def test_a_log_of_warnings_alone_shows_them(tmp_path: Path):
    """One of them may be all that there is of a reason."""
    told = last_lines(written(tmp_path, WARNINGS), 15)
    assert told.splitlines() == WARNINGS.splitlines()


def test_warnings_behind_the_name_of_a_process_are_left_out_too(tmp_path: Path):
    prefixed = "".join(f"(EngineCore pid=12) {line}\n" for line in WARNINGS.splitlines()[2:4])
    assert last_lines(written(tmp_path, f"{prefixed}Killed"), 15) == "Killed"


def test_no_more_lines_than_asked_for_and_the_last_ones(tmp_path: Path):
    assert last_lines(written(tmp_path, "1\n2\n3\n"), 2) == "2\n3"


def test_of_a_huge_log_only_the_end_is_read(tmp_path: Path):
    log = written(tmp_path, "x" * 80 + "\n")
    with Path(log).open("ab") as file:
        file.truncate(1 << 32)  # 4 GiB, none of it on the disk
        file.seek(0, 2)
        file.write(b"\nthe end\n")
    assert last_lines(log, 1) == "the end"


def test_a_log_that_is_missing_or_empty_says_nothing(tmp_path: Path):
    assert last_lines(str(tmp_path / "none.log"), 3) == last_lines(written(tmp_path, ""), 3) == ""
