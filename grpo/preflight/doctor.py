"""`grpo doctor`: what this machine has and can do, before a run finds out."""

import os
import platform
import shutil

import torch

from grpo.preflight.machine import Cuda, Machine, cuda_fault, look, mend, packages, version_of
from grpo.preflight.speed import examine_speed
from grpo.verify.sandbox import level

Fact = tuple[str, str]
_GIB = 1 << 30


def examine() -> list[Fact]:
    """(what, finding) rows. Measures products of matrices and tries the sandbox, which
    takes up to some seconds."""
    machine = look()
    return [
        ("python", platform.python_version()),
        *versions(machine),
        ("math-verify", version_of("math-verify") or "missing: pip install math-verify"),
        ("CUDA", cuda(machine.cuda)),
        ("devices", _devices(machine.cuda)),
        ("attention over packed rows", attention()),
        ("products of matrices", examine_speed()),
        ("CPU cores", str(len(os.sched_getaffinity(0)))),
        ("memory", f"{_memory() / _GIB:.1f} GiB"),
        ("shared memory", _free("/dev/shm")),
        ("disk, this folder", _free(".")),
        ("sandbox for programs", str(level())),
    ]


def versions(machine: Machine) -> list[Fact]:
    """Of what a run computes with; with the command that mends them where one is not supported."""
    found = packages(machine)
    rows = [(package.name, package.finding) for package in found]
    wrong = [package for package in found if not package.fits]
    return [*rows, ("not supported", mend(wrong))] if wrong else rows


def cuda(found: Cuda) -> str:
    """What torch is built for, the driver, and why it can use no GPU where it cannot."""
    if found.build is None:
        return "torch is built without it"
    driver = f"driver {found.driver}" if found.driver else "no driver"
    return cuda_fault(found) or f"torch is built for {found.build}, {driver}"


def _devices(found: Cuda) -> str:
    if not found.usable:
        return "none" if cuda_fault(found) else "none: everything runs on CPU"
    count = torch.cuda.device_count()
    properties = [torch.cuda.get_device_properties(i) for i in range(count)]
    return ", ".join(f"{p.name}, {p.total_memory / _GIB:.0f} GiB" for p in properties)


def attention() -> str:
    """What the learner attends with here, for each number format where that makes a difference."""
    try:
        from grpo.learner.attention import PACKED, goes_to_varlen
        from grpo.learner.policy import attention_implementation
    except ImportError as error:  # of a library in a version that is not supported
        return f"unknown: {error}"
    chosen = attention_implementation()
    if chosen != PACKED:
        return chosen
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if goes_to_varlen(device, torch.bfloat16):
        return "torch's varlen_attn for bfloat16 and float16, sequence by sequence for float32"
    return "torch's own, sequence by sequence"


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _free(path: str) -> str:
    if not os.path.exists(path):
        return f"missing: {path}"
    usage = shutil.disk_usage(path)
    return f"{usage.free / _GIB:.1f} of {usage.total / _GIB:.1f} GiB free"
