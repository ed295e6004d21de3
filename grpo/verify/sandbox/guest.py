"""Process 1 of a sandbox: forks one process for every run, then kills and reaps whatever is left.

    host  -- request: CPU seconds; the files source, stdin, stdout, stderr (, channel) -->  guest
    host  -- stop -->                                                                       guest
    host  <-- reply: wait status, CPU seconds, whether the memory limit was passed --       guest

It judges nothing and knows no answer. The sandbox is started with the text of this file and of
nest.py, so it imports nothing but the standard library. When the host closes the socket, or dies,
it ends, and as process 1 of its PID namespace it takes every process of the sandbox with it.
"""

import _thread
import ctypes
import os
import resource
import select
import signal
import socket
import struct
import sys
import time
import types

TYPE_CHECKING = False  # typing itself would take a fifth of the start
if TYPE_CHECKING:
    from typing import Any

REQUEST = struct.Struct("<d")
REPLY = struct.Struct("<id?")
STOP = b"stop"
READY = b"ready"

_WATCH_MS = 50  # how often the memory of all processes is summed
_THREAD_STACK = 8 << 20  # the large stack of the main thread is no default for others
_LONGEST_PATH = 1000
_FILES = 256  # that this process may have open
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_CHILD_SUBREAPER = 1, 4, 36
_CAPABILITY_VERSION_3 = 0x20080522
_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _SECCOMP_MODE_FILTER = 22, 38, 2


def prctl(option: int, *values: int) -> None:
    arguments = [ctypes.c_ulong(value) for value in (*values, 0, 0, 0, 0)[:4]]
    if ctypes.CDLL(None, use_errno=True).prctl(option, *arguments) != 0:
        raise OSError(ctypes.get_errno(), f"prctl {option}")


def guest(settings: "dict[str, Any]") -> bytes:
    """Serves until the host hangs up. Returns in forked children only: the text they shall run."""
    control = socket.socket(fileno=settings["control"])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the only signal that Python would react to
    if settings["uid"] is not None:
        os.setgroups([])
        os.setresgid(settings["uid"], settings["uid"], settings["uid"])
        os.setresuid(settings["uid"], settings["uid"], settings["uid"])
    _drop_capabilities()
    resource.setrlimit(resource.RLIMIT_NOFILE, (_FILES, _FILES))
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # after setresuid, which takes it back
    prctl(_PR_SET_DUMPABLE, 0)  # no other process looks into this one
    if os.getpid() != 1:
        prctl(_PR_SET_CHILD_SUBREAPER, 1)
    prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _install_filter(settings["filter"])
    memory = settings["memory_bytes"] if os.getpid() == 1 else None
    sys.path_importer_cache.clear()  # from before there was anything at these paths
    for module in settings["preload"]:  # once for all runs
        __import__(module)
    control.send(READY)
    while True:
        request, fds, _, _ = socket.recv_fds(control, 64, 5)
        if not request:
            os._exit(0)
        if request == STOP:  # it crossed the reply
            continue
        child = os.fork()
        if child == 0:
            return _become(settings, fds, *REQUEST.unpack(request))
        for fd in fds:
            os.close(fd)
        over_memory, alive = _watch(control, child, memory)
        status, cpu_s = _sweep(child)
        if not alive:
            os._exit(0)
        control.send(REPLY.pack(status, cpu_s, over_memory))
        _clear(settings["scratch"])


def _drop_capabilities() -> None:
    header = ctypes.create_string_buffer(struct.pack("<Ii", _CAPABILITY_VERSION_3, 0), 8)
    none = ctypes.create_string_buffer(24)
    if ctypes.CDLL(None, use_errno=True).capset(header, none) != 0:
        raise OSError(ctypes.get_errno(), "capset")


def _install_filter(program: bytes) -> None:
    """`program`: instructions of 8 bytes for seccomp; b"" for none."""
    if not program:
        return
    code = ctypes.create_string_buffer(program)
    header = struct.pack("HL", len(program) // 8, ctypes.addressof(code))
    holder = ctypes.create_string_buffer(header)
    prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(holder))


def _watch(control: socket.socket, child: int, memory: int | None) -> tuple[bool, bool]:
    """Until the child ends, the host says stop, or all processes together hold more than `memory`
    bytes: (was it the memory, is the host alive)."""
    ended = os.pidfd_open(child)
    poller = select.poll()
    poller.register(ended, select.POLLIN)
    poller.register(control, select.POLLIN)
    own = _resident(os.getpid())
    try:
        while True:
            ready = {fd for fd, _ in poller.poll(_WATCH_MS)}
            if ended in ready:
                return False, True
            if control.fileno() in ready:
                return False, bool(control.recv(64))
            if memory is not None and _resident_children(own) > memory:
                return True, True
    finally:
        os.close(ended)


def _resident(pid: int) -> int:
    with open(f"/proc/{pid}/statm", "rb") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()


def _resident_children(own: int) -> int:
    """Bytes that the other processes of this PID namespace hold beyond what they got by fork."""
    total = 0
    for name in os.listdir("/proc"):
        if name.isdigit() and name != "1":
            try:
                total += max(0, _resident(int(name)) - own)
            except (OSError, IndexError):  # it has ended
                continue
    return total


def _sweep(child: int) -> tuple[int, float]:
    """Kills and reaps every descendant: (wait status of `child`, CPU seconds of all)."""
    status, cpu_s = 0, 0.0
    while True:
        _kill_all()
        try:
            pid, ended_with, usage = os.wait4(-1, os.WNOHANG)
        except ChildProcessError:
            return status, cpu_s
        if pid == 0:
            time.sleep(0.001)
            continue
        cpu_s += usage.ru_utime + usage.ru_stime
        if pid == child:
            status = ended_with


def _kill_all() -> None:
    # Only process 1 of a PID namespace may say "everybody": anywhere else that is the machine.
    targets = [-1] if os.getpid() == 1 else _children()
    for pid in targets:
        try:
            os.kill(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            continue


def _children() -> list[int]:
    """Children of this process. Orphans are among them: it is a subreaper where it is not 1."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as stat:
                    parent = int(stat.read().rpartition(b")")[2].split()[1])
            except (OSError, IndexError):
                continue
            if parent == os.getpid():
                found.append(int(name))
    return found


def _clear(scratch: str) -> None:
    """Empties the folder, but for what is nested so deep that only an attack nests it: every look
    at such a path is a walk of its own."""
    folders = [scratch]
    for folder in folders:
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        if len(entry.path) < _LONGEST_PATH:
                            folders.append(entry.path)
                    else:
                        os.unlink(entry.path)
        except OSError:  # its own doing: modes taken away
            continue
    for folder in reversed(folders[1:]):
        try:
            os.rmdir(folder)
        except OSError:
            continue


def _become(settings: "dict[str, Any]", fds: list[int], cpu_s: float) -> bytes:
    """In the child: nothing of the guest stays open, and the limits hold."""
    os.setsid()
    with open(fds[0], "rb", closefd=False) as file:
        source = file.read()
    streams = fds[1:]
    for number, fd in enumerate(streams):
        os.dup2(fd, number)
    os.closerange(len(streams), _FILES)
    whole_s = int(cpu_s) + 1
    limits = {
        resource.RLIMIT_AS: settings["memory_bytes"],
        resource.RLIMIT_FSIZE: settings["file_bytes"],
        resource.RLIMIT_NOFILE: settings["files"],
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
    }
    if settings["processes"] is not None:
        limits[resource.RLIMIT_NPROC] = settings["processes"]
    for limit, value in limits.items():
        resource.setrlimit(limit, (value, value))
    resource.setrlimit(resource.RLIMIT_CPU, (whole_s, whole_s + 1))
    prctl(_PR_SET_DUMPABLE, 1)
    os.chdir(settings["scratch"])
    os.environ.pop("PWD", None)  # bubblewrap's, of another folder
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return source


def run(source: bytes) -> None:
    """As `python solution.py` would. What stands before a null character is run first, in the same
    namespace: no program can hold one."""
    main = types.ModuleType("__main__")
    sys.modules["__main__"] = main
    sys.argv = ["solution.py"]
    _thread.stack_size(_THREAD_STACK)
    for text in source.split(b"\0", 1):
        exec(compile(text, "solution.py", "exec"), main.__dict__)
