"""The whole loss on ZeRO-3 against the same formulas written out with plain transformers."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from grpo.batch.cut import cut
from grpo.fleet.cluster import Cluster
from grpo.fleet.learner import Learner
from grpo.types import Batch
from tests.e2e.conftest import learner_spec
from tests.e2e.steps import after_two_steps, batch, one_and_two_ranks, weights, worst_cut

LR, KL, ENTROPY, HIGH = 1e-2, 0.5, 0.1, 1.1
TERMS = {
    "kl": KL,
    "kl_estimator": "k3",
    "entropy": ENTROPY,
    "aggregate": "seq_mean_token_mean",
}


@pytest.fixture(scope="module")
def learners(
    cluster: Cluster, models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[int, tuple[Learner, Path]]]:
    spec = learner_spec(
        models["tied"],
        {"optimizer": "sgd", "lr": LR, "grad_clip": 0},
        regularization=TERMS,
        correction={"name": "truncated_token", "high": HIGH},
    )
    with one_and_two_ranks(cluster, spec, tmp_path_factory) as started:
        yield started


def sequences(data: Batch) -> Iterator[tuple[Tensor, int, Tensor]]:
    """(token ids, length of the prompt, sampler logprobs) of each response."""
    ids, logprobs = data.token_ids_S, data.sampler_logprobs_T
    for prompt, answer in zip(
        data.prompt_lengths_N.tolist(), data.response_lengths_N.tolist(), strict=True
    ):
        yield ids[: prompt + answer], prompt, logprobs[:answer]
        ids, logprobs = ids[prompt + answer :], logprobs[answer:]


def distributions(model: torch.nn.Module, ids: Tensor, prompt: int) -> Tensor:
    """[answer, V] log-probabilities of what may follow at each token of the answer."""
    return model(ids[None]).logits[0, prompt - 1 : -1].log_softmax(-1)


def of(all_logprobs: Tensor, ids: Tensor, prompt: int) -> Tensor:
    return all_logprobs.gather(1, ids[prompt:, None])[:, 0]


def two_steps_by_hand(model: torch.nn.Module, data: Batch) -> dict[str, Tensor]:
    with torch.no_grad():
        rows = list(sequences(data))
        first = [of(distributions(model, ids, p), ids, p) for ids, p, _ in rows]
    for _ in range(2):
        loss = torch.zeros(())
        for i, (ids, prompt, sampler) in enumerate(rows):
            every = distributions(model, ids, prompt)
            logprobs, old, reference = of(every, ids, prompt), first[i], first[i]
            advantage = float(data.advantages_N[i])
            ratio = (logprobs - old).exp()
            clipped = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.28) * advantage)
            factor = (old - sampler).exp().clamp(max=HIGH)
            kl = (reference - logprobs).exp() - (reference - logprobs) - 1
            entropy = -(every.exp() * every).sum(-1)
            loss = loss - float(data.weights_N[i]) * (factor * clipped).sum()
            regular = float(data.regular_weights_N[i])
            loss = loss + regular * (KL * kl - ENTROPY * entropy).sum()
        model.zero_grad()
        loss.backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= LR * parameter.grad
    return {name: p.detach() for name, p in model.named_parameters()}


def test_two_steps_are_those_of_the_formulas_written_out(
    learners, models: dict[str, Path], tmp_path: Path
):
    """Clip, correction, KL to the first model and entropy at once."""
    data = batch("balanced", {}, regularize=("seq_mean_token_mean", {}))
    found, _ = after_two_steps(*learners[2], data, 60, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(models["tied"], dtype=torch.float32)
    expected = two_steps_by_hand(model, data)
    start = weights(learners[2][1])
    for name, value in found.items():
        moved = (expected[name] - start[name]).norm()
        assert moved > 0, name
        assert (value - expected[name]).norm() <= 1e-3 * moved + 1e-7, name


def test_no_cut_changes_a_step_with_every_term_on(learners, tmp_path: Path):
    worst, where = worst_cut(learners, batch("balanced", {}), tmp_path)
    assert worst <= 1e-5, f"{where}: relative difference {worst:.2e}"


def test_every_term_is_logged(learners):
    group, first = learners[1]
    group.restore(first)
    group.load([cut(batch("balanced", {}), 1, 10**6)])
    group.remember_logprobs()
    metrics = group.step(0, 0)
    assert metrics["learn/kl_reference"] == pytest.approx(0, abs=1e-6), "still the first model"
    assert 0 < metrics["mismatch/correction"] <= HIGH
    assert metrics["mismatch/kl"] >= 0
    assert metrics["learn/loss"] != metrics["learn/pg_loss"], "entropy is part of the loss"
    assert group.step(0, 1)["learn/kl_reference"] > 0


def test_a_mini_batch_is_held_against_the_weights_that_sampled_it_whichever_step_it_is_for(
    learners,
):
    """The first mini-batch's own step keeps those logprobs, the others are scored before it."""
    group, first = learners[1]
    data = cut(batch("balanced", {}), 1, 10**6)
    moved: list[float] = []
    for minibatches, second in (([data], 0), ([data, data], 1)):
        group.restore(first)
        group.load(minibatches)
        group.remember_logprobs()
        assert group.step(0, 0)["learn/kl_old_new"] == pytest.approx(0, abs=1e-9)
        moved.append(group.step(second, 1)["learn/kl_old_new"])
    assert moved[0] > 1e-6
    assert moved[1] == pytest.approx(moved[0], rel=1e-5)
