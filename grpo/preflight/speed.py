"""How fast this machine multiplies matrices, in each format that a model may compute in."""

from collections.abc import Mapping

import torch
from torch.utils.benchmark import Timer

_FORMATS = (torch.float32, torch.bfloat16)
_SIZE = 512
_ON_GPU_SIZE = 8192
_MEASURED_S = 0.3
# Less than this apart, and the smaller format has its memory to say for itself.
_CLEARLY = 1.2


def multiplied(dtype: torch.dtype) -> float:
    """Floating-point operations per second of torch.mm on the GPU, or else on all cores."""
    on_gpu = torch.cuda.is_available()
    size, device = (_ON_GPU_SIZE, "cuda") if on_gpu else (_SIZE, "cpu")
    matrix = torch.randn(size, size, device=device).to(dtype)
    timer = Timer(
        "torch.mm(matrix, matrix)",
        globals={"torch": torch, "matrix": matrix},
        num_threads=torch.get_num_threads(),
    )
    return operations(size) / timer.blocked_autorange(min_run_time=_MEASURED_S).median


def operations(size: int) -> int:
    """Of the product of two square matrices: a multiplication and an addition for each element of
    each row of the one with each column of the other."""
    return 2 * size**3


def finding(per_s: Mapping[str, float]) -> str:
    """By name of the format, its operations per second. What a person learns from them."""
    told = ", ".join(f"{name} {speed / 1e9:,.0f} GFLOP/s" for name, speed in per_s.items())
    if per_s["float32"] > _CLEARLY * per_s["bfloat16"]:
        return f"{told}: bfloat16 is slower here, use model.dtype=float32"
    return told


def examine_speed() -> str:
    """Takes about a second."""
    try:
        return finding({str(d).removeprefix("torch."): multiplied(d) for d in _FORMATS})
    except RuntimeError as error:  # no memory is left on the GPU, or torch has no code for it
        return f"not measured: {str(error).splitlines()[0]}"
