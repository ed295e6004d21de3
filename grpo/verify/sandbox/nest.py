"""Namespaces of our own, for machines without bubblewrap: user, mount, PID, network, IPC, UTS and
cgroup namespaces, and a file system of read-only binds, a scratch tmpfs and a private /proc.

Runs inside the process that becomes the sandbox, before guest.py and from its text: only the
standard library. mount(2), pivot_root(2) and sethostname(2) have no Python function.
"""

import ctypes
import os
import signal
import struct

TYPE_CHECKING = False  # as in guest.py
if TYPE_CHECKING:
    from typing import Any

_CLONE_FLAGS = {
    "user": 0x10000000,
    "mount": 0x00020000,
    "pid": 0x20000000,
    "net": 0x40000000,
    "ipc": 0x08000000,
    "uts": 0x04000000,
    "cgroup": 0x02000000,
}
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 1, 2, 4, 8
_MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 32, 4096, 16384, 1 << 18
_MNT_DETACH = 2
_SYS_MOUNT_SETATTR = 442  # the same number on every architecture
_AT_RECURSIVE = 0x8000
_MOUNT_ATTR_RDONLY, _MOUNT_ATTR_NOSUID, _MOUNT_ATTR_NODEV = 1, 2, 4
_PR_SET_PDEATHSIG = 1
_NOBODY = 65534

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")


def nest(settings: "dict[str, Any]") -> None:
    """Returns in process 1 of the new namespaces; the process that called waits for its end.

    Raises OSError that names the step where the kernel refuses.
    """
    _new_namespaces(settings["outer_uid"])
    child = os.fork()
    if child != 0:
        os.close(settings["control"])  # or the host would not see the other end close
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    _check(_libc.sethostname(b"sandbox", 7), "sethostname")
    _new_root(settings)


def _new_namespaces(outer_uid: int | None) -> None:
    """`outer_uid`: who the sandbox is outside of it, where that is not the caller. Only root may
    choose, and should: the kernel does not count root's processes."""
    uid, gid = os.geteuid(), os.getegid()
    flags = 0
    for flag in _CLONE_FLAGS.values():
        flags |= flag
    if outer_uid is None:
        _check(_libc.unshare(flags), "unshare")
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{_NOBODY} {uid} 1")
        _write("/proc/self/gid_map", f"{_NOBODY} {gid} 1")
        return
    # Such a map is written by a process that has stayed outside.
    caller = os.getpid()
    readable, writable = os.pipe()
    helper = os.fork()
    if helper == 0:
        os.close(writable)
        if os.read(readable, 1):
            _write(f"/proc/{caller}/uid_map", f"0 {uid} 1\n{_NOBODY} {outer_uid} 1")
            _write(f"/proc/{caller}/gid_map", f"0 {gid} 1\n{_NOBODY} {outer_uid} 1")
        os._exit(0)
    os.close(readable)
    try:
        _check(_libc.unshare(flags), "unshare")
        os.write(writable, b"1")
    finally:
        os.close(writable)
        os.waitpid(helper, 0)


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(text)


def _mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    done = _libc.mount(
        source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), data.encode()
    )
    _check(done, f"mount {kind or source} on {target}")


def _new_root(settings: "dict[str, Any]") -> None:
    """/ is a tmpfs that holds what the settings name; of the old root nothing is left."""
    _mount("none", "/", "", _MS_REC | _MS_PRIVATE)
    # The old root moves to /old of a tmpfs, so that nothing of it is hidden under the new one.
    _mount("tmpfs", "/tmp", "tmpfs", _MS_NOSUID | _MS_NODEV, "size=1m,mode=755")
    os.mkdir("/tmp/old")
    _pivot("/tmp", "/tmp/old")
    os.chdir("/")
    os.mkdir("/new")
    _mount("tmpfs", "/new", "tmpfs", _MS_NOSUID | _MS_NODEV, "size=1m,mode=755")
    for source, target in settings["binds"]:
        _bind("/old" + source, "/new" + target)
    for target, link in settings["links"]:
        os.makedirs(os.path.dirname("/new" + link), exist_ok=True)
        os.symlink(target, "/new" + link)
    os.mkdir("/new/proc")
    _mount("proc", "/new/proc", "proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
    scratch = "/new" + settings["scratch"]
    os.mkdir(scratch)
    size = f"size={settings['scratch_bytes']},nr_inodes=10000,mode=1777"
    _mount("tmpfs", scratch, "tmpfs", _MS_NOSUID | _MS_NODEV, size)
    os.chdir("/new")
    _pivot(".", ".")  # the root that was is now mounted on top, to be taken off
    _check(_libc.umount2(b".", _MNT_DETACH), "umount2 of the old root")
    os.chdir("/")
    _mount("none", "/", "", _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _MS_NOSUID | _MS_NODEV)


def _pivot(new: str, old: str) -> None:
    number = 155 if os.uname().machine == "x86_64" else 41
    _check(_libc.syscall(ctypes.c_long(number), new.encode(), old.encode()), "pivot_root")


def _bind(source: str, target: str) -> None:
    """A device as it is, anything else read-only with all that is mounted below."""
    device = source.startswith("/old/dev/")
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
    _mount(source, target, "", _MS_BIND | _MS_REC)
    if not device:
        wanted = _MOUNT_ATTR_RDONLY | _MOUNT_ATTR_NOSUID | _MOUNT_ATTR_NODEV
        attributes = ctypes.create_string_buffer(struct.pack("<QQQQ", wanted, 0, 0, 0), 32)
        done = _libc.syscall(
            ctypes.c_long(_SYS_MOUNT_SETATTR),
            ctypes.c_long(-1),
            ctypes.c_char_p(target.encode()),
            ctypes.c_long(_AT_RECURSIVE),
            attributes,
            ctypes.c_long(32),
        )
        _check(done, f"mount_setattr {target}")
