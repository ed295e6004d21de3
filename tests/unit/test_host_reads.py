"""A micro-batch waits for the device nowhere: what the host knows it keeps, what it measures it
leaves on the device until the step is over."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, Qwen3Config

from grpo.batch.cut import cut
from grpo.learner import attention
from grpo.learner.head import LogprobHead
from grpo.learner.objective import Objective, Scores
from grpo.learner.policy import Loaded, Policy, score
from grpo.types import MicroBatch
from tests.unit.made_batches import batch_of, response, scored
from tests.unit.test_objective import HAND, case, objective

READS = ("item", "tolist", "__float__", "__int__", "__bool__", "numpy", "cpu")


@pytest.fixture
def no_reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    def refuse(*_: object) -> None:
        raise AssertionError("a value is read back")

    with monkeypatch.context() as patch:
        yield patch
        for name in READS:
            patch.setattr(Tensor, name, refuse, raising=True)


@pytest.fixture(scope="module")
def policy() -> Policy:
    attention.register(attention.PACKED)
    config = Qwen3Config(
        vocab_size=20,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        intermediate_size=32,
    )
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention.PACKED)
    return Policy(model, 1.0)


@pytest.fixture
def loaded() -> Loaded:
    answers = [response([4, 5, 6]), response([7, 8])]
    batch = batch_of([scored([1, 2, 3], answers, [1, 0])])
    (micros,) = cut(batch, 1, 1000, shared_prefix=True)
    return Loaded.onto(torch.device("cpu"), micros[0])


def test_the_policys_forward_and_backward_read_nothing_back(policy, loaded, no_reads):
    logprobs_T, entropy_T = policy(*loaded.inputs)
    (logprobs_T + entropy_T).sum().backward()


@pytest.fixture
def made() -> tuple[Objective, MicroBatch, Scores]:
    part = objective("ppo_clip", "truncated_token", kl=0.5, entropy=0.1)
    return part, *case(HAND)


def test_the_losses_and_sums_of_a_micro_batch_stay_on_the_device(made, no_reads):
    part, micro, scores = made
    loss, sums = part.loss(micro, scores)
    loss.backward()
    assert all(value.dtype == torch.float64 and value.ndim == 0 for value in sums.values())


def test_scoring_computes_no_entropy_and_gives_the_same_logprobs(policy, loaded, monkeypatch):
    asked: list[bool] = []
    forward = LogprobHead.forward

    def watched(self, hidden_TH, targets_T, temperature, entropy=True):
        asked.append(entropy)
        return forward(self, hidden_TH, targets_T, temperature, entropy)

    monkeypatch.setattr(LogprobHead, "forward", watched)
    with torch.no_grad():
        expected, entropy_T = policy(*loaded.inputs)
        assert torch.equal(score(policy, loaded), expected)
    assert entropy_T is not None and asked == [True, False]
