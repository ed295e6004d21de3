"""An optimizer step is the same for every cut into ranks and micro-batches, and after resume."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from grpo.algo import ADVANTAGES, AGGREGATORS
from grpo.batch import cut, make_batch, with_advantages
from grpo.cluster import Cluster
from grpo.learner.group import LearnerGroup
from grpo.types import Batch, Group, Prompt, Response, ScoredGroup, Verdict, VersionSpan
from tests.e2e.conftest import learner_spec, start_learner

RULES = [
    ("token_mean", {}),
    ("seq_mean_token_mean", {}),
    ("seq_mean_token_sum_norm", {}),
    ("balanced", {"balance": "count"}),
    ("balanced", {"balance": "adv_mass"}),
    ("delta_l", {"alpha": 0.75}),
]


def batch(rule: str, options: dict[str, object]) -> Batch:
    """Four groups of six responses of 1 to 30 tokens, rewards 0 and 1."""
    rng = np.random.default_rng(0)
    groups = []
    for serial in range(4):
        prompt = Prompt(serial, str(serial), "", "", tuple(rng.integers(3, 17, size=7).tolist()))
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
    return make_batch(scored, AGGREGATORS.bind(rule, options), max_tokens=30)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "hf" / "model.safetensors")


@pytest.fixture(scope="module", params=["sgd", "adamw"])
def learners(
    request: pytest.FixtureRequest, cluster: Cluster, models: dict[str, Path], tmp_path_factory
) -> Iterator[dict[int, tuple[LearnerGroup, Path]]]:
    """One rank and two ranks, each with a checkpoint of its first state."""
    # A large epsilon keeps Adam from amplifying rounding noise on gradients near zero.
    extra = {"optimizer": request.param, "eps": 1e-2, "grad_clip": 0.5}
    started: dict[int, tuple[LearnerGroup, Path]] = {}
    for ranks in (1, 2):
        group = start_learner(cluster, learner_spec(models["tied"], **extra), ranks)
        first = tmp_path_factory.mktemp(f"first-{request.param}-{ranks}")
        group.save(first)
        started[ranks] = (group, first)
    yield started
    for group, _ in started.values():
        for worker in group.workers:
            worker.kill()


def after_two_steps(
    group: LearnerGroup, first: Path, data: Batch, budget: int, folder: Path
) -> tuple[dict[str, torch.Tensor], int]:
    ranks = len(group.workers)
    group.restore(first)
    parts = cut(data, ranks, budget)
    group.load([parts])
    group.step(0, 0)
    group.step(0, 1)
    group.save(folder)
    return weights(folder), len(parts[0])


@pytest.mark.parametrize(("rule", "options"), RULES, ids=lambda v: v if isinstance(v, str) else "")
def test_ranks_and_micro_batches_do_not_change_a_step(learners, rule, options, tmp_path: Path):
    data = batch(rule, options)
    reference, count = after_two_steps(*learners[1], data, 10**6, tmp_path / "one")
    assert count == 1
    start = weights(learners[1][1])
    moved = max(float((reference[n] - start[n]).abs().max()) for n in reference)
    assert moved > 1e-5, "two steps move the weights"
    for ranks, budget in ((1, 88), (2, 10**6), (2, 60)):
        name = f"{ranks}-{budget}"
        other, count = after_two_steps(*learners[ranks], data, budget, tmp_path / name)
        if budget < 10**6:
            assert count >= 7 // ranks, f"{count} micro-batches for each of {ranks} ranks"
        worst = max(
            float((other[n] - reference[n]).norm() / reference[n].norm()) for n in reference
        )
        assert worst <= 1e-5, f"{name}: relative difference {worst:.2e}"


def test_a_step_after_restore_is_bit_equal_to_the_uninterrupted_one(
    learners, cluster: Cluster, models: dict[str, Path], tmp_path: Path, request
):
    """Two steps, checkpoint, third step; a fresh process restores and takes the third step."""
    group, first = learners[1]
    data = batch("balanced", {})
    group.restore(first)
    group.load([cut(data, 1, 200)])
    group.step(0, 0)
    group.step(0, 1)
    group.save(tmp_path / "saved")
    group.step(0, 2)
    group.save(tmp_path / "uninterrupted")
    extra = {"optimizer": request.node.callspec.params["learners"], "eps": 1e-2, "grad_clip": 0.5}
    fresh = start_learner(cluster, learner_spec(models["tied"], **extra), 1)
    fresh.restore(tmp_path / "saved")
    fresh.load([cut(data, 1, 200)])
    fresh.step(0, 2)
    fresh.save(tmp_path / "resumed")
    for worker in fresh.workers:
        worker.kill()
    resumed, expected = weights(tmp_path / "resumed"), weights(tmp_path / "uninterrupted")
    assert all(torch.equal(resumed[name], expected[name]) for name in expected)


def test_the_exported_folder_loads_in_transformers_and_scores_alike(learners, tmp_path: Path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    group, _ = learners[1]
    group.save(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    assert AutoTokenizer.from_pretrained(tmp_path / "hf").decode([3, 4]) != ""
    tokens = [3, 7, 4, 8, 5, 9]
    with torch.no_grad():
        logprobs = model(torch.tensor([tokens])).logits[0].log_softmax(-1)
    expected = [float(logprobs[i, t]) for i, t in enumerate(tokens[1:])]
    assert np.allclose(group.score(tokens), expected, atol=1e-5)
