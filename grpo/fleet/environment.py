"""What the driver's environment says to a run's processes, on this machine and on others."""

import os
from collections.abc import Mapping

from grpo.errors import UserError

RAY_ADDRESS = "RAY_ADDRESS"
# A Ray cluster's machines have the environment in which `ray start` was typed, not the driver's.
PREFIXES = (
    "DS_",
    "GLOO_",
    "GRPO_",
    "HF_",
    "MKL_",
    "NCCL_",
    "OMP_",
    "PYTORCH_",
    "TORCHINDUCTOR_",
    "TORCH_",
    "TRANSFORMERS_",
    "TRITON_",
    "VLLM_",
    "WANDB_",
)
PROXIES = (
    *("all_proxy", "http_proxy", "https_proxy", "no_proxy"),
    *("ALL_PROXY", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"),
)
NAMES = (
    "CUDA_DEVICE_MAX_CONNECTIONS",
    "CUDA_DEVICE_ORDER",
    "CUDA_LAUNCH_BLOCKING",
    "CUDA_MODULE_LOADING",
    "PYTHONPATH",
    "TOKENIZERS_PARALLELISM",
    *PROXIES,
)
# Each machine has its own.
OF_ONE_MACHINE = ("VLLM_HOST_IP", "VLLM_PORT", "WANDB_SERVICE")
# No worker needs them, and Ray writes what it is told of a process into its logs.
SECRETS = ("_KEY", "_PASSWORD", "_SECRET", "_TOKEN")


def passed_on(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of the driver that its workers get wherever they run. Never
    CUDA_VISIBLE_DEVICES, which Ray sets, nor secrets, such as a proxy's password."""
    return {
        name: value
        for name, value in environment.items()
        if (name.startswith(PREFIXES) or name in NAMES)
        and name not in OF_ONE_MACHINE
        and not name.endswith(SECRETS)
        and not (name in PROXIES and "@" in value)  # http://user:password@proxy:3128
    }


def ray_address() -> str | None:
    """The Ray cluster that a run is to join; None where it starts a Ray of its own.

    Raises UserError for the address of a Ray client, through which a run cannot call its workers.
    """
    address = os.environ.get(RAY_ADDRESS, "")
    if address.startswith("ray://"):
        raise UserError(
            f"{RAY_ADDRESS} is {address!r}, which is for Ray's client: log in to a machine of the "
            "cluster, start the run there and give the address of Ray itself, such as "
            "10.0.0.1:6379, or auto"
        )
    return None if address in ("", "local") else address
