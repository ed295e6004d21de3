"""Where a run writes: whether it may, and whether its checkpoints have room."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from grpo.config.recipe import Recipe
from grpo.errors import UserError
from grpo.fleet.places import unwritable
from grpo.learner.base_model import at_hand
from grpo.learner.memory import FLOAT32, GIB, ITEMSIZE, adapter_parameters
from grpo.learner.shapes import known_models, model_shape
from grpo.rollout.engine import on_gpu
from grpo.store.checkpoint import RunFolder, run_folder

_SHM = Path("/dev/shm")
# What a container has by default is 64 MiB; NCCL's makers recommend 1 GiB.
_SHM_BYTES = 1 << 30


def check_output(recipe: Recipe) -> None:
    """Raises UserError where the run could not write into its folder, or into one within it."""
    folder = RunFolder(run_folder(recipe))
    inside = (folder.checkpoints, folder.rollouts, folder.evaluations, folder.path / "logs")
    for path in (folder.path, *(path for path in inside if path.exists())):
        if (why := unwritable(path)) is not None:
            raise UserError(
                f"output is {recipe.output!r}, and the run cannot write {path} ({why}): choose "
                "another folder with output=DIR, or mend its permissions"
            )
    for file in (folder.recipe, folder.metrics):
        if file.exists() and not os.access(file, os.W_OK):
            raise UserError(f"the run cannot write {file}: mend its permissions")


@dataclass(frozen=True, slots=True)
class Room:
    """Of the disk that checkpoints go to, in bytes. wanted: checkpoints to come that will be there
    at once, the one under way included."""

    one: float
    wanted: int
    free: float
    where: Path

    @property
    def in_words(self) -> str:
        return (
            f"{self.wanted} of {self.one / GIB:.3g} GiB each to come, {self.free / GIB:.3g} GiB "
            "free"
        )

    @property
    def lack(self) -> str | None:
        """What is said where they do not fit; None where they do."""
        if self.one * self.wanted <= self.free:
            return None
        return (
            f"the disk of {self.where} has {self.free / GIB:.3g} GiB free, and the run's "
            f"checkpoints need {self.one * self.wanted / GIB:.3g} GiB ({self.wanted} of "
            f"{self.one / GIB:.3g} GiB, weights and optimizer state): make room, keep fewer with "
            "checkpoint.keep=N, or choose another disk with output=DIR"
        )

    def check(self) -> None:
        """Raises UserError where not even the next checkpoint fits."""
        if self.one > self.free:
            raise UserError(f"not one checkpoint fits: {self.lack}")


def room_for_checkpoints(recipe: Recipe) -> Room | None:
    """None where the size of the model is not known yet, or not known how to count."""
    path = recipe.model.path
    if path is not None and at_hand(path) is None and path not in known_models():
        return None
    try:
        one = checkpoint_bytes(recipe)
    except UserError:  # a mixture of experts, say, which only a plan refuses
        return None
    checkpoints = RunFolder(run_folder(recipe)).checkpoints
    there = len(list(checkpoints.glob("step_*")))
    # A new one is whole before the oldest goes.
    wanted = max(1, recipe.checkpoint.keep + 1 - there)
    return Room(one, wanted, shutil.disk_usage(_existing(checkpoints)).free, checkpoints)


def checkpoint_bytes(recipe: Recipe) -> float:
    """hf/ and, in float32, what DeepSpeed saves of each trained parameter: its master and AdamW's
    two moments; with adapters also adapter/. Measured on a small model to half a percent."""
    shape, itemsize = model_shape(recipe)[0], ITEMSIZE[recipe.model.dtype]
    lora = recipe.learner.lora
    adapters = 0 if lora is None else adapter_parameters(lora, shape)
    trained = shape.parameters if lora is None else adapters
    saved = {"adamw": 3 * FLOAT32, "sgd": FLOAT32}[recipe.learner.optimizer]
    return float(itemsize * (shape.parameters + adapters) + saved * trained)


def shared_memory_warning(recipe: Recipe, where: Path = _SHM) -> str | None:
    """Processes that compute together exchange tensors through /dev/shm: NCCL's, and those of a
    tensor-parallel engine. Our own transports do not: `shm` uses memory without a file system."""
    several = recipe.rollout.tensor_parallel > 1
    if on_gpu():
        several = several or recipe.learner.ranks > 1 or recipe.rollout.engines > 1
    if not several or not where.is_dir():
        return None
    total = shutil.disk_usage(where).total
    if total >= _SHM_BYTES:
        return None
    return (
        f"{where} has {total >> 20} MiB, and processes that compute together exchange tensors "
        "through it: they may end with a bus error, or NCCL with an unhandled system error. Give "
        "it 1 GiB (docker run --shm-size=1g, or --ipc=host)"
    )


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    here = folder.absolute()
    while not here.exists():
        here = here.parent
    return here
