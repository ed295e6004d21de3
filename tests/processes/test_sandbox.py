"""The sandbox's own parts: levels, limits, the filter. tests/attacks holds it against attacks."""

import errno
import re
import signal
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from grpo.errors import RunError, UserError
from grpo.verify.sandbox import (
    Allowance,
    Level,
    LevelName,
    Limits,
    Sandbox,
    choose_level,
    level,
    probe,
    run_together,
    why_not,
)
from grpo.verify.sandbox import filter as filter_module
from grpo.verify.sandbox.launch import (
    bubblewrap_obstacle,
    command,
    environment,
    machine_obstacle,
)

pytestmark = pytest.mark.skipif(machine_obstacle() is not None, reason=str(machine_obstacle()))

SMALL = Limits(memory_mb=256, processes=8, scratch_mb=1)
AMPLE = Allowance(cpu_s=5.0, wall_s=30.0)
LEVELS: tuple[LevelName, ...] = ("bubblewrap", "namespaces", "unsandboxed")


@pytest.fixture(scope="module", params=LEVELS)
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    obstacle = None if request.param == "unsandboxed" else why_not(request.param)
    if obstacle is not None:
        pytest.skip(f"{request.param}: {obstacle}")
    with Sandbox(SMALL, request.param) as opened:
        yield opened


# --- runs ---


def test_a_run_s_outcome_holds_what_it_printed_and_how_it_ended(sandbox: Sandbox):
    program = "import sys\nprint(input()[::-1])\nprint('ende', file=sys.stderr)\nsys.exit(7)"
    outcome = sandbox.run(program, b"reliefpfeiler", AMPLE)
    assert (outcome.status, outcome.code) == ("exit", 7)
    assert outcome.stdout == b"reliefpfeiler\n"[::-1].strip() + b"\n"
    assert outcome.stderr_tail == b"ende\n"
    assert 0 < outcome.cpu_s < 5
    assert outcome.wall_s > 0


def test_a_program_runs_as_the_main_module_after_its_prelude(sandbox: Sandbox):
    program = (
        "x = 2\0from __future__ import annotations\nprint(__name__, x, __import__('sys').argv)"
    )
    assert sandbox.run(program, b"", AMPLE).stdout == b"__main__ 2 ['solution.py']\n"


def test_each_run_finds_an_empty_folder_of_its_own(sandbox: Sandbox):
    program = "import os\nprint(os.listdir('.'))\nopen('left', 'w').close()\nos.mkdir('folder')"
    for _ in range(2):
        assert sandbox.run(program, b"", AMPLE).stdout == b"[]\n"


def test_a_run_sees_the_environment_that_it_is_given_and_no_other(sandbox: Sandbox):
    program = "import os\nprint(sorted(os.environ))"
    expected = f"{sorted(environment(sandbox.level, ()))}\n".encode()
    assert sandbox.run(program, b"", AMPLE).stdout == expected


def test_threads_and_locks_of_multiprocessing_work(sandbox: Sandbox):
    program = """
import multiprocessing, threading
lock = multiprocessing.Lock()
threads = [threading.Thread(target=lock.acquire) for _ in range(1)]
for thread in threads:
    thread.start()
    thread.join()
print(lock.acquire(block=False), open("/dev/stdin").read())
"""
    assert sandbox.run(program, b"in", AMPLE).stdout == b"False in\n"


def test_the_time_limit_is_cpu_time_and_the_deadline_wall_time(sandbox: Sandbox):
    busy = sandbox.run("while True: pass", b"", Allowance(cpu_s=0.1, wall_s=30.0))
    assert busy.status == "time"
    assert 0.1 < busy.cpu_s < 2.5  # the kernel counts whole seconds
    idle = sandbox.run("import time\ntime.sleep(60)", b"", Allowance(cpu_s=60.0, wall_s=0.3))
    assert (idle.status, idle.code) == ("time", -signal.SIGKILL)
    assert idle.cpu_s < 5


def test_output_is_kept_up_to_its_limit(sandbox: Sandbox):
    outcome = sandbox.run("print('x' * 5000)", b"", Allowance(5.0, 30.0, output_bytes=1000))
    assert (outcome.status, outcome.stdout) == ("output", b"x" * 1000)


def test_two_runs_talk_through_their_channel_until_the_first_ends(sandbox: Sandbox):
    ask = "import os\nos.write(3, b'6 7')\nprint(os.read(3, 100).decode())"
    answer = (
        "import os, time\na, b = os.read(3, 100).split()\n"
        "os.write(3, b'%d' % (int(a) * int(b)))\ntime.sleep(1000)"
    )
    ours, theirs = socket.socketpair()
    with Sandbox(SMALL, sandbox.level) as other:
        with ours, theirs:
            asking = sandbox.begin(ask, b"", AMPLE, ours.fileno())
            answering = other.begin(answer, b"", AMPLE, theirs.fileno())
        asked, answered = run_together([asking, answering])
    assert asked.stdout == b"42\n"
    assert (answered.status, answered.code) == ("exit", -signal.SIGKILL)


def test_a_sandbox_that_is_killed_loses_its_runs_and_leaves_nothing(sandbox: Sandbox):
    with Sandbox(SMALL, sandbox.level) as doomed:
        run = doomed.begin("import time\ntime.sleep(1000)", b"", AMPLE)
        doomed.kill()
        assert run_together([run])[0].status == "lost"
        assert doomed.run("print(1)", b"", AMPLE).status == "lost"


def test_what_runs_unsandboxed_is_killed_with_its_orphans_and_its_folder_removed(tmp_path: Path):
    mark = tmp_path / "pid"
    program = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        open(input(), "w").write(f"{os.getpid()} {os.getcwd()}")
        time.sleep(1000)
    os._exit(0)
os.wait()
while not os.path.exists(MARK) or not open(MARK).read():
    time.sleep(0.01)
""".replace("MARK", repr(str(mark)))
    with Sandbox(SMALL, "unsandboxed") as opened:
        assert opened.run(program, str(mark).encode(), AMPLE).status == "exit"
        pid, folder = mark.read_text().split()
        assert not Path(f"/proc/{pid}").exists()
        assert Path(folder).exists()
    assert not Path(folder).exists()


# --- levels ---


def test_the_level_is_the_best_that_works_and_says_what_keeps_it_from_better():
    found = level()
    assert found.name == next((n for n in LEVELS[:2] if why_not(n) is None), "none")
    better = LEVELS[: LEVELS.index(found.name)] if found.name != "none" else LEVELS[:2]
    assert found.obstacles == tuple(f"{name}: {why_not(name)}" for name in better)
    assert str(found).startswith(f"{found.name}: programs run ")


def test_without_a_sandbox_programs_are_refused_unless_the_recipe_allows_it(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(probe, "level", lambda: Level("none", ("namespaces: forbidden",)))
    with pytest.raises(UserError, match=r"namespaces: forbidden.*allow_unsandboxed: true"):
        choose_level(allow_unsandboxed=False)
    assert choose_level(allow_unsandboxed=True) == "unsandboxed"
    monkeypatch.setattr(probe, "level", lambda: Level("namespaces", ()))
    assert choose_level(allow_unsandboxed=True) == "namespaces"


def fake_bwrap(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bwrap = folder / "bwrap"
    bwrap.write_text(f"#!/bin/sh\n{text}\n")
    bwrap.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def test_a_bubblewrap_that_is_missing_or_too_old_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    fake_bwrap(tmp_path, "echo --as-pid-1 --remount-ro --perms", monkeypatch)
    obstacle = bubblewrap_obstacle()
    assert obstacle is not None and "too old: it has no --size" in obstacle
    monkeypatch.setenv("PATH", "/nowhere")
    assert "not installed" in str(bubblewrap_obstacle())


def test_a_sandbox_that_does_not_start_tells_what_was_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    fake_bwrap(tmp_path, "echo 'bwrap: no permission' >&2; exit 1", monkeypatch)
    with pytest.raises(RunError, match=r"bubblewrap sandbox did not start: bwrap: no permission"):
        Sandbox(SMALL, "bubblewrap").__enter__()


def test_bubblewrap_is_asked_for_every_kind_of_isolation():
    arguments = command("bubblewrap", 9, SMALL, "")
    for flag in ("ipc", "pid", "net", "uts"):
        assert f"--unshare-{flag}" in arguments
    assert {"--die-with-parent", "--as-pid-1", "--new-session"} < set(arguments)
    assert arguments[arguments.index("--size") + 1 :][:2] == [str(1 << 20), "--tmpfs"]
    assert arguments[arguments.index("--remount-ro") + 1] == "/"
    binds = [
        arguments[i + 1] for i, word in enumerate(arguments) if word in ("--bind", "--dev-bind")
    ]
    assert binds and all(re.fullmatch(r"/dev/[a-z]+", path) for path in binds)


# --- the filter ---

MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
ALLOWED = 0x7FFF0000


def decide(program: bytes, architecture: int, number: int, argument: int = 0) -> int:
    """What the kernel's interpreter would return for one system call."""
    data = {0: number, 4: architecture, 16: argument}
    instructions = list(struct.iter_unpack("=HBBI", program))
    at, accumulator = 0, 0
    while True:
        code, then, otherwise, value = instructions[at]
        at += 1
        if code == 0x20:
            accumulator = data[value]
        elif code == 0x06:
            return value
        else:
            holds = {
                0x15: accumulator == value,
                0x35: accumulator >= value,
                0x45: accumulator & value != 0,
            }[code]
            at += then if holds else otherwise


@pytest.mark.parametrize("machine", MACHINES)
def test_the_filter_refuses_what_it_lists_and_allows_the_rest(
    machine: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(filter_module.platform, "machine", lambda: machine)
    program = filter_module.seccomp_filter()
    assert program is not None
    architecture, column = MACHINES[machine], list(MACHINES).index(machine)

    def error_of(name: str, argument: int = 0) -> int:
        numbers = {**filter_module.REFUSED, **filter_module.JUDGED}[name]
        decision = decide(program, architecture, numbers[column], argument)
        return 0 if decision == ALLOWED else decision - 0x00050000

    assert {error_of(name) for name in filter_module.REFUSED} == {errno.EPERM}
    assert error_of("clone3") == errno.ENOSYS
    assert error_of("clone", 17) == 0  # SIGCHLD: fork
    assert error_of("clone", 0x3D0F00) == 0  # what starts a thread
    for namespace in ("0x20000", "0x2000000", "0x10000000", "0x20000000", "0x40000000"):
        assert error_of("clone", int(namespace, 16) | 17) == errno.EPERM
    assert error_of("socket", socket.AF_UNIX) == 0
    for family in (socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK, socket.AF_VSOCK):
        assert error_of("socket", family) == errno.EAFNOSUPPORT
    listed = {n[column] for n in (*filter_module.REFUSED.values(), *filter_module.JUDGED.values())}
    for number in set(range(460)) - listed:
        assert decide(program, architecture, number) == ALLOWED
    assert decide(program, 0x40000003, 1) == 0x80000000  # 32-bit calls on a 64-bit kernel
    assert decide(program, architecture, 0x40000000 | 101) == 0x00050000 | errno.ENOSYS


def test_an_unknown_processor_has_no_filter_and_no_sandbox(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(filter_module.platform, "machine", lambda: "m68k")
    assert filter_module.seccomp_filter() is None


@pytest.mark.parametrize(
    ("header", "column"),
    [
        ("/usr/include/x86_64-linux-gnu/asm/unistd_64.h", 0),
        ("/usr/include/asm-generic/unistd.h", 1),
    ],
)
def test_the_filter_s_numbers_are_the_kernel_s(header: str, column: int):
    if not Path(header).exists():
        pytest.skip(f"{header} is not there")
    lines = re.findall(r"#define __NR3?(?:264)?_(\w+)\s+(\d+)", Path(header).read_text())
    numbers = {name: int(number) for name, number in lines}
    listed = {**filter_module.REFUSED, **filter_module.JUDGED}
    known = [name for name in listed if name in numbers]
    assert len(known) > 0.8 * len(listed)
    assert {n: listed[n][column] for n in known} == {n: numbers[n] for n in known}
