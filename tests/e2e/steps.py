"""Optimizer steps on made-up answers, and what the weights are after them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from grpo.algo import ADVANTAGES, AGGREGATORS
from grpo.batch.build import make_batch, with_advantages
from grpo.batch.cut import cut
from grpo.fleet.cluster import Cluster
from grpo.fleet.learner import Learner
from grpo.learner.spec import LearnerSpec
from grpo.types import (
    Batch,
    Group,
    MicroBatch,
    Prompt,
    Response,
    Row,
    ScoredGroup,
    Verdict,
    VersionSpan,
)
from tests.e2e.conftest import CANARY, start_learner

RULES = [
    ("token_mean", {}),
    ("token_mean", {"scope": "group"}),
    ("seq_mean_token_mean", {}),
    ("seq_mean_token_sum_norm", {}),
    ("balanced", {"balance": "count"}),
    ("balanced", {"balance": "adv_mass", "scope": "batch"}),
    ("delta_l", {"alpha": 0.75}),
    ("lambda_grpo", {}),
    ("luspo", {}),
]
CUTS = [(1, 120), (1, 60), (2, 10**6), (2, 120), (2, 60)]  # ranks, tokens of a micro-batch


def batch(
    rule: str,
    options: dict[str, object],
    regularize: tuple[str, dict[str, object]] = ("token_mean", {}),
) -> Batch:
    """Four groups of six responses of 1 to 30 tokens, rewards 0 and 1."""
    rng = np.random.default_rng(0)
    groups = []
    for serial in range(4):
        prompt = Prompt(
            serial, Row(str(serial), "", ""), tuple(rng.integers(3, 17, size=7).tolist())
        )
        responses = []
        for _ in range(6):
            length = int(rng.integers(1, 31))
            ids = rng.integers(3, 17, size=length).astype(np.int32)
            logprobs = np.full(length, -2.8, dtype=np.float32)
            spans = (VersionSpan(0, 0, length),)
            responses.append(Response(ids, logprobs, "stop", spans, ""))
        verdicts = tuple(Verdict(float(i % 3 == 0), "", "test") for i in range(6))
        groups.append(ScoredGroup(Group(prompt, tuple(responses)), verdicts))
    scored = with_advantages(groups, ADVANTAGES.bind("group_norm", {}))
    return make_batch(
        scored,
        AGGREGATORS.bind(rule, options),
        max_tokens=30,
        regularize=AGGREGATORS.bind(*regularize),
    )


@contextmanager
def one_and_two_ranks(
    cluster: Cluster, spec: LearnerSpec, folders: pytest.TempPathFactory
) -> Iterator[dict[int, tuple[Learner, Path]]]:
    """A learner of one rank and one of two, each with a checkpoint of its first state."""
    started: dict[int, tuple[Learner, Path]] = {}
    for ranks in (1, 2):
        group, first = start_learner(cluster, spec, ranks), folders.mktemp("first")
        group.save(first)
        started[ranks] = (group, first)
    yield started
    for group, _ in started.values():
        for worker in group.workers:
            worker.kill()


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "hf" / "model.safetensors")


def trained(folder: Path) -> dict[str, torch.Tensor]:
    """The adapters where there are some: next to the weights that they are added to, a difference
    in them would not be seen."""
    adapter = folder / "adapter" / "adapter_model.safetensors"
    return load_file(adapter) if adapter.exists() else weights(folder)


def after_two_steps(
    group: Learner, first: Path, data: Batch, budget: int, folder: Path
) -> tuple[dict[str, torch.Tensor], int]:
    """What trained, and micro-batches per rank. The second step's ratios are not 1: clips act."""
    group.restore(first)
    parts = cut(data, len(group.workers), budget)
    group.load([parts])
    group.remember_logprobs()
    group.step(0, 0)
    group.step(0, 1)
    group.everywhere("export", folder / "hf")
    group.everywhere("export_adapter", folder / "adapter")
    return trained(folder), len(parts[0])


def worst_cut(
    learners: dict[int, tuple[Learner, Path]], data: Batch, folder: Path
) -> tuple[float, str]:
    """The largest relative difference of any parameter between one rank with one micro-batch and
    every other cut, and which one it was."""
    reference, count = after_two_steps(*learners[1], data, 10**6, folder / "one")
    assert count == 1
    start = trained(learners[1][1])
    moved = max(float((reference[n] - start[n]).abs().max()) for n in reference)
    assert moved > 1e-6, f"two steps moved the weights by {moved:.1e} only"
    found: list[tuple[float, str]] = []
    for ranks, budget in CUTS:
        name = f"{ranks} ranks, {budget} tokens"
        other, count = after_two_steps(*learners[ranks], data, budget, folder / f"{ranks}-{budget}")
        assert budget == 10**6 or count > 1, f"{name}: {count} micro-batches"
        difference = max(
            float((other[n] - reference[n]).norm() / reference[n].norm()) for n in reference
        )
        found.append((difference, name))
    return max(found)


def rest(group: Learner, kind: str) -> None:
    """As between two steps on shared GPUs: what takes part in a step rests in host memory while the
    weights travel and the canary is scored, then the weights, too, or no more than that."""
    if kind == "none":
        return
    for _ in range(2):
        group.everywhere("offload")
    group.score(CANARY)
    for _ in range(2):
        group.everywhere("rest", kind == "weights")


def rested(group: Learner, first: Path, data: list[list[MicroBatch]], folder: Path) -> list[Path]:
    """Checkpoints after the same three steps from `first`: without a rest before each, with one of
    the states, and with one of states and weights."""
    kinds = ("none", "states", "weights")
    for kind in kinds:
        group.restore(first)
        group.load([data])
        for number in range(3):
            rest(group, kind)
            group.everywhere("reload")
            group.step(0, number)
        rest(group, kind)  # a checkpoint may be written while engines sample
        group.save(folder / kind)
        group.everywhere("reload")
    return [folder / kind for kind in kinds]
