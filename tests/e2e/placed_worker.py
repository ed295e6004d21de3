"""Workers that only say where they are."""

import os
from typing import Any

import ray

from grpo.fleet.cluster import _Host
from grpo.fleet.log_tail import last_lines
from grpo.learner.spec import LearnerSpec
from grpo.rollout.engine import EngineSpec


def here() -> tuple[str, str, str]:
    """Ray's node, this process and its GPUs."""
    node = ray.get_runtime_context().get_node_id()
    return node, str(os.getpid()), os.environ.get("CUDA_VISIBLE_DEVICES", "")


class Engine:
    async def where(self) -> tuple[str, str, str]:
        return here()

    async def environment(self) -> dict[str, str]:
        return dict(os.environ)

    async def say_and_die(self, word: str) -> None:
        os.write(2, f"{word}\n".encode())
        os._exit(1)


class Rank:
    def __init__(self, address: str, port: int):
        self._meets = address, port

    def where(self) -> tuple[str, str, str]:
        return here()

    def meets_at(self) -> tuple[str, int]:
        return self._meets


class Host(_Host):
    """Fake nodes share their address, so it says its node and its process in place of it."""

    def meeting_point(self) -> tuple[str, int]:
        node, process, _ = here()
        return node, int(process)


def make_engine(spec: EngineSpec) -> Any:
    return Engine()


def make_rank(spec: LearnerSpec, rank: int, world_size: int, address: str, port: int) -> Any:
    if spec.model == "broken":
        raise ValueError(f"rank {rank} cannot be made")
    return Rank(address, port)


def last_lines_and_reader(path: str, count: int) -> str:
    return f"{last_lines(path, count)}\nread by {here()[0]}"


def missing_elsewhere(paths: list[str]) -> list[str]:
    """As if each node but the head had a disk of its own."""
    head = "node:__internal_head__"
    mine = next(node for node in ray.nodes() if node["NodeID"] == here()[0])
    return [] if head in mine["Resources"] else paths
