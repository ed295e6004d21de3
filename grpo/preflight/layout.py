"""The machine that a plan is made for, and where engines and ranks would be on it."""

import os
from dataclasses import dataclass
from typing import Literal

import torch

from grpo.config.recipe import Recipe
from grpo.errors import UserError
from grpo.fleet.bundles import Wanted, seat
from grpo.fleet.placement import gpus_needed, heads_fault, layout_fault, share_for, shares
from grpo.learner.flops import ModelShape
from grpo.learner.memory import GIB

Kind = Literal["cuda", "cpu"]


@dataclass(frozen=True, slots=True)
class Machine:
    """Where a run is to go: GPUs of `gib` GiB each, or one host of `gib` GiB for everything.

    gpus: of each of `nodes` nodes; None: as many as the recipe asks for where nobody shares.
    host_gib: of each node beside its GPUs; None where it is not known.
    """

    kind: Kind
    gib: float
    gpus: int | None = None
    nodes: int = 1
    host_gib: float | None = None

    @property
    def each_gpus(self) -> tuple[int, ...] | None:
        """Of each node."""
        return None if self.gpus is None else (self.gpus,) * self.nodes

    @property
    def all_gpus(self) -> int | None:
        return None if self.gpus is None else self.gpus * self.nodes

    def __str__(self) -> str:
        if self.kind == "cpu":
            return f"a host of {self.gib:.0f} GiB"
        of = f"of {self.gib:.0f} GiB"
        if self.gpus is None:
            return f"GPUs {of}"
        cards = f"{self.gpus} {'GPU' if self.gpus == 1 else 'GPUs'} {of}"
        return cards if self.nodes == 1 else f"{self.nodes} nodes with {cards} each"


def described(
    kind: Kind | None,
    gpus: int | None = None,
    gpu_gib: float | None = None,
    nodes: int | None = None,
    host_gib: float | None = None,
) -> Machine:
    """The machine that the arguments describe; what they leave out is as it is here. Raises
    UserError for sizes that no machine has."""
    _refuse_nonsense(kind, gpus, gpu_gib, nodes, host_gib)
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    asked_for_gpus = any(value is not None for value in (gpus, gpu_gib, nodes))
    kind = kind or ("cuda" if there or asked_for_gpus else "cpu")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    if kind == "cpu":
        return Machine(kind, host_gib or memory)
    if gpu_gib is None and not there:
        raise UserError("there is no GPU here to ask for its memory: give --gpu-gib, say 80")
    if gpu_gib is None:  # this machine's, so its main memory counts as well
        gib, host_gib = torch.cuda.get_device_properties(0).total_memory / GIB, host_gib or memory
    else:
        gib = gpu_gib
    if gpus is None and nodes is not None and not there:
        raise UserError(f"--nodes {nodes}: give --gpus, the number of GPUs of each node")
    return Machine(kind, gib, gpus or there or None, nodes or 1, host_gib)


def _refuse_nonsense(
    kind: Kind | None,
    gpus: int | None,
    gpu_gib: float | None,
    nodes: int | None,
    host_gib: float | None,
) -> None:
    for option, count in (("--gpus", gpus), ("--nodes", nodes)):
        if count is not None and count < 1:
            raise UserError(f"{option} {count}: expected a number from 1 on")
    for option, gib in (("--gpu-gib", gpu_gib), ("--host-gib", host_gib)):
        if gib is not None and not 0 < gib < float("inf"):
            raise UserError(f"{option} {gib:g}: expected a size above 0, in GiB")
    if kind == "cpu" and any(value is not None for value in (gpus, gpu_gib, nodes)):
        raise UserError("--device cpu has no GPUs: leave out --gpus, --gpu-gib and --nodes")


def takes_turns(recipe: Recipe, machine: Machine) -> bool:
    """Whether engines and ranks share GPUs there."""
    return shares(recipe, machine.all_gpus)


def gpus_used(recipe: Recipe, machine: Machine) -> int:
    return recipe.learner.ranks if takes_turns(recipe, machine) else gpus_needed(recipe)


def fault(recipe: Recipe, shape: ModelShape, machine: Machine) -> str | None:
    """Why this recipe cannot be placed on that machine, and what would help; None where it can."""
    if machine.kind == "cpu":
        return heads_fault(recipe, shape)
    found = layout_fault(recipe, machine.each_gpus) or heads_fault(recipe, shape)
    if found is not None:
        return found
    if takes_turns(recipe, machine) and "gpu_memory_utilization" not in recipe.rollout.engine:
        try:
            share_for(recipe, shape, machine.gib * GIB)
        except UserError as error:
            return str(error)
    return None


def by_node(recipe: Recipe, machine: Machine) -> list[tuple[int, int]]:
    """Engines and ranks of each node in use, as a run would place them."""
    engines, ranks = recipe.rollout.engines, recipe.learner.ranks
    if machine.each_gpus is None:
        return [(engines, ranks)]
    together = takes_turns(recipe, machine)
    wanted = Wanted(engines, recipe.rollout.tensor_parallel, ranks, together)
    seats = seat(wanted, machine.each_gpus)
    assert seats is not None, "layout_fault refuses what has no seats"
    used = sorted({*seats.engines, *seats.ranks})
    return [(seats.engines.count(node), seats.ranks.count(node)) for node in used]


def decided(recipe: Recipe, machine: Machine) -> str:
    """How engines and ranks are placed, in a line."""
    engines, ranks = recipe.rollout.engines, recipe.learner.ranks
    parallel, used = recipe.rollout.tensor_parallel, gpus_used(recipe, machine)
    there = machine.all_gpus
    of = f"{used} GPUs" if there is None else f"{used} of {there} GPUs used"
    each = f" of {parallel} GPUs each" if parallel > 1 else ""
    if takes_turns(recipe, machine):
        what = f"colocated, engines: {engines}, learner ranks: {ranks}, taking turns"
    else:
        what = f"disaggregated, engines: {engines}{each}, learner ranks: {ranks}"
    auto = " (placement: auto)" if recipe.placement == "auto" else ""
    nodes = by_node(recipe, machine)
    if len(nodes) > 1:
        shown = [f"node {i}: engines {e}, ranks {r}" for i, (e, r) in enumerate(nodes, start=1)]
        what += f"; {'; '.join(shown)}"
    return f"{what}{auto}; {of}"
