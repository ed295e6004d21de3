"""DeepSpeed ZeRO-3 as this trainer uses it."""

import os
from typing import Any

import deepspeed
import torch
from deepspeed.utils import logger as deepspeed_logger

from grpo.config.recipe import LearnerConfig
from grpo.learner.memory import REDUCE_BUCKET, SUB_GROUP


def init_distributed(rank: int, world_size: int, address: str, port: int) -> torch.device:
    """Joins the learner's process group: NCCL on GPUs, gloo on CPU."""
    on_gpu = torch.cuda.is_available()
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": "0",
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
    }
    deepspeed_logger.setLevel("WARNING")
    if not on_gpu:
        # A C++ op that DeepSpeed would compile here serves inference only.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(
        "nccl" if on_gpu else "gloo", rank=rank, world_size=world_size, verbose=False
    )
    return torch.device("cuda", 0) if on_gpu else torch.device("cpu")


def zero_config(config: LearnerConfig, dtype: str) -> dict[str, Any]:
    """The DeepSpeed configuration of a rank.

    Gradient accumulation is ours (`managed_gradient_accumulation: false`): every `step()` is an
    optimizer step, after any number of `backward()`s.
    """
    zero: dict[str, Any] = {
        "stage": 3,
        "overlap_comm": torch.cuda.is_available(),
        "contiguous_gradients": True,
        "stage3_param_persistence_threshold": 100_000,
        "reduce_bucket_size": REDUCE_BUCKET,
        "sub_group_size": SUB_GROUP,
    }
    if config.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": config.grad_clip,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": dtype == "bfloat16"},
        "steps_per_print": 10**12,
    }


def make_optimizer(model: torch.nn.Module, config: LearnerConfig) -> torch.optim.Optimizer:
    """Of what trains: with adapters, these alone."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if config.optimizer == "sgd":
        return torch.optim.SGD(trained, lr=config.lr, weight_decay=config.weight_decay)
    return torch.optim.AdamW(
        trained,
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        # On a CPU torch would go over memory eight times, and take two temporaries.
        fused=config.offload_optimizer or not torch.cuda.is_available(),
    )
