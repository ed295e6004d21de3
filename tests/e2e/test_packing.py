"""The gradient of a ZeRO-3 step is plain transformers', however its sequences are packed."""

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
from tests.e2e.steps import batch, one_and_two_ranks, weights

# So large that the weights after a step are the gradient, to the last digits of float32.
LR = 1e4
# The model, and how many layers apart gradient checkpoints are; the unit tests have the rest.
KINDS = [("tied", 2), ("untied", None)]


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: f"{kind[0]}-{kind[1]}")
def learners(
    request: pytest.FixtureRequest, cluster: Cluster, models: dict[str, Path], tmp_path_factory
) -> Iterator[tuple[Path, dict[int, tuple[Learner, Path]]]]:
    name, every = request.param
    model = {
        "path": str(models[name]),
        "dtype": "float32",
        "gradient_checkpointing": every is not None,
        "checkpoint_every": every or 1,
    }
    learner = {"optimizer": "sgd", "lr": LR, "grad_clip": 0}
    spec = learner_spec(models[name], learner, model=model)
    with one_and_two_ranks(cluster, spec, tmp_path_factory) as started:
        yield models[name], started


def plain_gradients(folder: Path, data: Batch) -> dict[str, Tensor]:
    """One sequence at a time; where the weights are those that sampled, the objective's gradient
    is that of advantage times logprob."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    at = 0
    for row, (prompt, answer) in enumerate(
        zip(data.prompt_lengths_N.tolist(), data.response_lengths_N.tolist(), strict=True)
    ):
        ids = data.token_ids_S[at : at + prompt + answer]
        at += prompt + answer
        logprobs = model(ids[None]).logits[0, prompt - 1 : -1].log_softmax(-1)
        chosen = logprobs.gather(1, ids[prompt:, None])
        (-float(data.weights_N[row] * data.advantages_N[row]) * chosen.sum()).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def step_gradients(
    learner: tuple[Learner, Path], data: Batch, shared_prefix: bool, folder: Path
) -> dict[str, Tensor]:
    group, first = learner
    group.restore(first)
    group.load([cut(data, len(group.workers), 70, shared_prefix=shared_prefix)])
    group.step(0, 0)
    group.everywhere("export", folder / "hf")
    before, after = weights(first), weights(folder)
    return {name: (before[name].double() - after[name].double()) / LR for name in before}


@pytest.mark.parametrize("shared_prefix", [False, True], ids=["whole", "shared"])
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_packed_step_has_the_gradient_of_plain_transformers(
    learners, ranks: int, shared_prefix: bool, tmp_path: Path
):
    folder, started = learners
    data = batch("balanced", {})
    expected = plain_gradients(folder, data)
    found = step_gradients(started[ranks], data, shared_prefix, tmp_path)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        difference = float((found[name] - gradient).norm() / gradient.norm())
        assert difference < 1e-5, f"{name}: relative difference {difference:.1e}"
