"""Which way into a sandbox this machine has, tried out, and the command that opens one."""

import functools
import importlib.metadata
import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from grpo.errors import UserError
from grpo.verify.sandbox import guest, nest
from grpo.verify.sandbox.filter import seccomp_filter

LevelName = Literal["bubblewrap", "namespaces", "unsandboxed"]

SCRATCH = "/scratch"
_PACKAGES = "/packages"
_NOBODY = 65534
_OLDEST_LINUX = (5, 14)  # before it, RLIMIT_NPROC counts what the same user runs elsewhere
_ROOT_LINKS = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
_DEVICES = ("null", "zero", "full", "random", "urandom")
_FIRST_SPARE_UID = 2_000_000_000


@dataclass(frozen=True, slots=True)
class Limits:
    """What one run may use. `processes` counts threads, too. `packages`: distributions of this
    Python that programs may import beside the standard library. `preload`: modules of the standard
    library that are imported once for all runs."""

    memory_mb: int = 1024
    processes: int = 32
    files: int = 64
    file_mb: int = 64
    scratch_mb: int = 64
    packages: tuple[str, ...] = ()
    preload: tuple[str, ...] = ()


def machine_obstacle() -> str | None:
    """Why this machine can run no sandbox at all, not even an open one; None where it can."""
    if sys.platform != "linux":
        return f"sandboxes need Linux, this is {sys.platform}"
    release = tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2])
    if release < _OLDEST_LINUX:
        return f"sandboxes need Linux 5.14 or newer, this is {os.uname().release}"
    if seccomp_filter() is None:
        return f"no seccomp filter for {os.uname().machine}: x86_64 and aarch64 have one"
    return None


def environment(level: LevelName, packages: tuple[str, ...]) -> dict[str, str]:
    """All that a program sees of an environment."""
    seen = {
        "PATH": "/usr/bin:/bin",
        "HOME": SCRATCH,
        "TMPDIR": SCRATCH,
        "LANG": "C.UTF-8",
        "PYTHONHASHSEED": "0",  # the same verdict every time
        "PYTHONINTMAXSTRDIGITS": "50000",  # as LiveCodeBench sets it
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "MALLOC_ARENA_MAX": "1",  # an arena for each thread would use up the address space
    }
    if packages and level != "unsandboxed":
        seen["PYTHONPATH"] = _PACKAGES
    elif packages:
        seen["PYTHONPATH"] = os.pathsep.join(
            sorted({str(p.parent) for p in package_entries(packages)})
        )
    return seen


def command(level: LevelName, control: int, limits: Limits, scratch: str) -> list[str]:
    """Starts guest.py, whose end of the control socket is `control`."""
    is_root = os.geteuid() == 0
    settings: dict[str, Any] = {
        "control": control,
        "filter": seccomp_filter(),
        "memory_bytes": limits.memory_mb << 20,
        "file_bytes": limits.file_mb << 20,
        "scratch_bytes": limits.scratch_mb << 20,
        "files": limits.files,
        "processes": limits.processes + 1,  # and the guest
        "scratch": SCRATCH,
        "preload": limits.preload,
        "uid": None,
    }
    if level == "namespaces":
        settings["binds"] = list(_binds(limits.packages)) + [(d, d) for d in _devices()]
        settings["links"] = list(_links())
        settings["outer_uid"] = _spare_uid() if is_root else None
        settings["uid"] = _NOBODY if is_root else None
        settings["processes"] += not is_root  # the process that waits outside is the same user
        return [*_python(), _text(settings, (nest.__file__, guest.__file__), "nest(settings)")]
    if level == "bubblewrap":
        settings["uid"] = _spare_uid() if is_root else None
        text = _text(settings, (guest.__file__,))
        return [*_bubblewrap(limits, is_root), *_python(), text]
    # The kernel counts all that this user runs, so a limit would hit the wrong ones.
    settings |= {"scratch": scratch, "processes": None}
    return [*_python(), _text(settings, (guest.__file__,))]


def _python() -> list[str]:
    """Not the virtual environment's: its packages stay outside, and it may be a link to nowhere."""
    return [sys._base_executable, "-S", "-s", "-P", "-B", "-c"]  # pyright: ignore


@functools.cache
def _source(path: str) -> str:
    return Path(path).read_text(encoding="utf-8")


def _text(settings: dict[str, Any], paths: tuple[str | None, ...], first: str = "") -> str:
    parts = [_source(path) for path in paths if path is not None]
    return "\n".join([*parts, f"settings = {settings!r}", first, "run(guest(settings))\n"])


def _bubblewrap(limits: Limits, is_root: bool) -> list[str]:
    size = str(limits.scratch_mb << 20)
    wrapper = [shutil.which("bwrap") or "bwrap", "--die-with-parent", "--as-pid-1"]
    wrapper += ["--new-session", "--unshare-ipc", "--unshare-pid", "--unshare-net"]
    wrapper += ["--unshare-uts", "--unshare-cgroup-try", "--hostname", "sandbox"]
    if is_root:  # no user namespace: the kernel does not count root's processes in there either
        wrapper += ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        wrapper += ["--unshare-user", "--uid", str(_NOBODY), "--gid", str(_NOBODY)]
    binds = list(_binds(limits.packages))
    for folder in _parents([target for _, target in binds] + ["/dev/null"]):
        wrapper += ["--perms", "0755", "--dir", folder]  # its own would be for the owner alone
    for source, target in binds:
        wrapper += ["--ro-bind", source, target]
    for device in _devices():
        wrapper += ["--dev-bind", device, device]
    for target, link in _links():
        wrapper += ["--symlink", target, link]
    wrapper += ["--proc", "/proc", "--perms", "1777", "--size", size, "--tmpfs", SCRATCH]
    return [*wrapper, "--remount-ro", "/", "--chdir", "/"]


def _parents(targets: list[str]) -> list[str]:
    """The folders above these paths, outer ones first."""
    return sorted({str(parent) for target in targets for parent in Path(target).parents} - {"/"})


def _devices() -> list[str]:
    return [f"/dev/{name}" for name in _DEVICES]


def _binds(packages: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """(path here, path in the sandbox) of what can be read there."""
    yield "/usr", "/usr"
    for name in _ROOT_LINKS:
        if os.path.isdir(f"/{name}") and not os.path.islink(f"/{name}"):
            yield f"/{name}", f"/{name}"
    if os.path.exists("/etc/ld.so.cache"):
        yield "/etc/ld.so.cache", "/etc/ld.so.cache"
    prefix = os.path.realpath(sys.base_prefix)
    if not prefix.startswith("/usr"):
        yield prefix, prefix
        if prefix != sys.base_prefix:
            yield prefix, sys.base_prefix
    for path in package_entries(packages):
        yield str(path), f"{_PACKAGES}/{path.name}"


def _links() -> Iterator[tuple[str, str]]:
    """(target, link)"""
    for name in _ROOT_LINKS:
        if os.path.islink(f"/{name}"):
            yield os.readlink(f"/{name}"), f"/{name}"
    yield SCRATCH, "/dev/shm"
    if not any(
        target.startswith("/tmp/") for _, target in _binds(())
    ):  # this Python may live there
        yield SCRATCH, "/tmp"
    yield "/proc/self/fd/0", "/dev/stdin"
    yield "/proc/self/fd/1", "/dev/stdout"
    yield "/proc/self/fd/2", "/dev/stderr"


@functools.cache
def package_entries(packages: tuple[str, ...]) -> tuple[Path, ...]:
    """Folders and modules that these distributions put beside each other."""
    found: dict[Path, None] = {}
    for package in packages:
        try:
            distribution = importlib.metadata.distribution(package)
        except importlib.metadata.PackageNotFoundError:
            raise UserError(
                f"packages: {package!r} is not installed here: expected the name of an installed "
                f"distribution; install it into {sys.prefix} or leave it out"
            ) from None
        for file in distribution.files or ():
            if file.parts[0] not in ("..", "__pycache__"):
                entry = Path(str(distribution.locate_file(file.parts[0])))
                found[entry.resolve()] = None  # a link would be followed in the sandbox
    return tuple(found)


_counter = itertools.count()


def _spare_uid() -> int:
    """A user that is nobody, and that no other sandbox of this machine has; `nobody` itself in a
    container that knows no such high numbers."""
    with open("/proc/self/uid_map", encoding="ascii") as file:
        ranges = [tuple(map(int, line.split())) for line in file]
    wanted = _FIRST_SPARE_UID + os.getpid() * 64 + next(_counter) % 64
    known = any(start <= wanted < start + count for start, _, count in ranges)
    return wanted if known else _NOBODY


def bubblewrap_obstacle() -> str | None:
    """Why bubblewrap is no choice, as far as can be seen without starting it."""
    path = shutil.which("bwrap")
    if path is None:
        return "bwrap is not installed (Debian and Ubuntu: apt install bubblewrap)"
    known = subprocess.run([path, "--help"], capture_output=True, text=True, check=False).stdout
    missing = [o for o in ("--size", "--perms", "--as-pid-1", "--remount-ro") if o not in known]
    if missing:
        return f"{path} is too old: it has no {', '.join(missing)} (0.8 has)"
    return None
