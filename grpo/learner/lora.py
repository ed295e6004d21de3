"""Low-rank adapters in a rank of the learner: put in, switched off, written out.

y = W x + (alpha / rank) B A x with W frozen (Hu et al. 2021, arXiv 2106.09685). peft makes the
layers; its import takes seconds, so that only a run with adapters pays for it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from grpo.config.lora import LoraConfig
from grpo.errors import UserError
from grpo.sync.buckets import shard_range
from grpo.sync.merged import ADAPTER

if TYPE_CHECKING:
    import peft


def add_adapters(model: torch.nn.Module, config: LoraConfig, seed: int) -> None:
    """Gives each target layer its A and B, in place, and freezes everything else.

    In place, because the model then keeps its class and the names by which the policy calls it. A
    is drawn from `seed`, alike on every rank and after every restart, and B is zero: the first step
    starts from the base model. They have the base's dtype, as DeepSpeed wants of all parameters of
    one engine; where that is bfloat16, its float32 masters take the steps that bfloat16 would lose.
    The weights may be partitioned already: only their shapes matter.
    """
    from peft import inject_adapter_in_model

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        inject_adapter_in_model(_described(config), model, ADAPTER)


def num_trained(model: torch.nn.Module) -> int:
    """Parameters of the adapters in a model whose weights ZeRO-3 has partitioned."""
    trained: list[Any] = [p for p in model.parameters() if p.requires_grad]
    return sum(parameter.ds_numel for parameter in trained)


def save_adapter(
    folder: Path, config: LoraConfig, tensors: Mapping[str, torch.Tensor], base: str
) -> None:
    """A folder that `peft.PeftModel.from_pretrained(base, folder)` loads. `tensors`: A and B of
    every layer by the names that they have in the model."""
    described = _described(config)
    described.base_model_name_or_path = base
    described.inference_mode = True
    described.save_pretrained(str(folder))
    renamed = {
        f"base_model.model.{name.replace(f'.{ADAPTER}.', '.')}": tensor.contiguous()
        for name, tensor in tensors.items()
    }
    save_file(renamed, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def _described(config: LoraConfig) -> "peft.LoraConfig":
    """The same in peft's words."""
    import peft

    return peft.LoraConfig(
        task_type=peft.TaskType.CAUSAL_LM,
        r=config.rank,
        # peft's annotation says int, and it divides by the rank.
        lora_alpha=config.alpha,  # pyright: ignore[reportArgumentType]
        target_modules=list(config.targets),
        lora_dropout=0.0,
        bias="none",
    )


def base_sums(model: torch.nn.Module) -> dict[str, int]:
    """For each frozen parameter the sum of this rank's shard, read as integers: two bases that
    differ in a weight have different sums, all but certainly."""
    sums: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            continue
        held: Any = parameter  # ZeRO-3's attributes
        start, end = shard_range(
            held.ds_zero_partition_rank, held.ds_zero_partition_world_size, held.ds_numel
        )
        shard = held.ds_tensor[: end - start]  # what pads the last one is left out
        bits = shard.view({2: torch.int16, 4: torch.int32}[shard.element_size()])
        sums[name] = bits.sum(dtype=torch.int64)
    return dict(zip(sums, torch.stack(list(sums.values())).tolist(), strict=True))


def all_base_sums(model: torch.nn.Module) -> dict[str, int]:
    """The same of whole parameters: the sum over all ranks. Collective."""
    sums = base_sums(model)
    one: Any = next(model.parameters())
    device = one.ds_tensor.device
    totals = torch.tensor(list(sums.values()), dtype=torch.int64, device=device)
    if dist.get_world_size() > 1:
        dist.all_reduce(totals)
    return dict(zip(sums, totals.tolist(), strict=True))


def check_same_base(now: Mapping[str, int], then: Mapping[str, int], model: str) -> None:
    """Raises UserError where adapters that were trained on one base meet another."""
    if now == then:
        return
    others = [name for name in now.keys() | then.keys() if now.get(name) != then.get(name)]
    raise UserError(
        f"model {model} is not the one that this run's adapters were trained on: {len(others)} of "
        f"its tensors differ, such as {min(others)}. Put the old files back, or start a new run "
        "from the merged model in the checkpoint's hf/ with another name=NAME and model.path"
    )
