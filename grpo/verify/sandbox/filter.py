"""A seccomp filter: system calls that no program under test needs, refused.

It takes what the other limits do not reach: memory that belongs to no process (memfd, System V
shared memory), sockets other than Unix ones (AF_VSOCK belongs to no network namespace), debugging
of other processes, further namespaces, and the parts of the kernel that are attacked most.
"""

import errno
import platform
import socket
import struct

# Of linux/bpf_common.h, linux/seccomp.h and linux/audit.h.
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data
_NEW_NAMESPACES = 0x7E020000  # every CLONE_NEW* that clone(2) takes

_AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_COLUMN = {"x86_64": 0, "aarch64": 1}
_X32 = 0x40000000  # x86_64's second table of calls

# Name: its number on x86_64 and on aarch64, from the kernel's syscall_64.tbl and asm-generic.
JUDGED = {  # by their arguments
    "clone": (56, 220),
    "clone3": (435, 435),
    "socket": (41, 198),
}
REFUSED = {
    "acct": (163, 89),
    "add_key": (248, 217),
    "bpf": (321, 280),
    "chroot": (161, 51),
    "delete_module": (176, 106),
    "fanotify_init": (300, 262),
    "finit_module": (313, 273),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "fspick": (433, 433),
    "init_module": (175, 105),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425),
    "kcmp": (312, 272),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "mq_open": (240, 180),
    "msgget": (68, 186),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "perf_event_open": (298, 241),
    "personality": (135, 92),
    "pidfd_getfd": (438, 438),
    "pivot_root": (155, 41),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "quotactl": (179, 60),
    "reboot": (169, 142),
    "request_key": (249, 218),
    "semget": (64, 190),
    "setns": (308, 268),
    "shmat": (30, 196),
    "shmget": (29, 194),
    "swapon": (167, 224),
    "syslog": (103, 116),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "userfaultfd": (323, 282),
}


def seccomp_filter() -> bytes | None:
    """Instructions for this machine's processor; None where its system calls are not listed."""
    machine = platform.machine()
    if machine not in _AUDIT:
        return None
    column = _COLUMN[machine]
    program = [
        _instruction(_LOAD, _ARCHITECTURE),
        _instruction(_EQUAL, _AUDIT[machine], then=1),
        _instruction(_RETURN, _KILL),
        _instruction(_LOAD, _NUMBER),
        _instruction(_AT_LEAST, _X32, otherwise=1),
        _refuse(errno.ENOSYS),
    ]
    for numbers in REFUSED.values():
        program += [_instruction(_EQUAL, numbers[column], otherwise=1), _refuse(errno.EPERM)]
    program += [
        # The C library then takes clone, whose flags a filter can read.
        _instruction(_EQUAL, JUDGED["clone3"][column], otherwise=1),
        _refuse(errno.ENOSYS),
        _instruction(_EQUAL, JUDGED["clone"][column], otherwise=3),
        _instruction(_LOAD, _FIRST_ARGUMENT),
        _instruction(_ANY_BIT, _NEW_NAMESPACES, otherwise=4),
        _refuse(errno.EPERM),
        _instruction(_EQUAL, JUDGED["socket"][column], otherwise=2),
        _instruction(_LOAD, _FIRST_ARGUMENT),
        _instruction(_EQUAL, socket.AF_UNIX, otherwise=1),
        _instruction(_RETURN, _ALLOW),
        _refuse(errno.EAFNOSUPPORT),
    ]
    return b"".join(program)


def _instruction(code: int, value: int, *, then: int = 0, otherwise: int = 0) -> bytes:
    """`then` and `otherwise`: how many instructions a comparison skips."""
    return struct.pack("=HBBI", code, then, otherwise, value)


def _refuse(error: int) -> bytes:
    return _instruction(_RETURN, _ERRNO | error)
