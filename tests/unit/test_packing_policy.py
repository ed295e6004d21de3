"""The policy on packed micro-batches against the same model on one sequence at a time."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.modeling_layers import GradientCheckpointingLayer

from grpo.batch.cut import cut
from grpo.config.recipe import BuildConfig
from grpo.learner.build import build_model, build_tokenizer, save_pretrained
from grpo.learner.policy import Loaded, Policy, load_policy
from grpo.types import Batch
from tests.unit.made_batches import batch_of, response, scored

TEMPERATURE, ENTROPY = 0.7, 0.1


@pytest.fixture(scope="module", params=["tied", "untied"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = BuildConfig(
        alphabet="0123456789+=}\n", layers=3, hidden_size=64, heads=4, kv_heads=2,
        intermediate_size=96, context=128, tie_embeddings=request.param == "tied",
    )  # fmt: skip
    tokenizer, folder = build_tokenizer(config), tmp_path_factory.mktemp(request.param)
    save_pretrained(build_model(config, tokenizer, seed=1), tokenizer, folder)
    return folder


@pytest.fixture(scope="module")
def batch() -> Batch:
    """Groups with a prompt longer and one shorter than their answers, and a single answer."""
    generator = torch.Generator().manual_seed(0)

    def tokens(count: int) -> list[int]:
        return torch.randint(3, 17, (count,), generator=generator).tolist()

    groups = [
        scored(tokens(30), [response(tokens(n)) for n in (4, 25, 1)], [1, 0, 0]),
        scored(tokens(6), [response(tokens(n)) for n in (40, 9)], [0, 1]),
        scored(tokens(11), [response(tokens(12)), response(tokens(13))], [1, 0]),
    ]
    return batch_of(groups)


def packed(policy: Policy, batch: Batch, budget: int, shared_prefix: bool) -> list[Tensor]:
    """Loss and gradients."""
    (micros,) = cut(batch, 1, budget, shared_prefix=shared_prefix)
    policy.zero_grad()
    total = torch.zeros(())
    for m in micros:
        logprobs_T, entropy_T = policy(*Loaded.onto(torch.device("cpu"), m).inputs)
        loss = -(m.weights_N[m.row_T] * (logprobs_T + ENTROPY * entropy_T)).sum()
        loss.backward()
        total += loss.detach()
    return [total, *gradients(policy.model)]


def one_by_one(model: Any, batch: Batch) -> list[Tensor]:
    """The same loss and gradients with nothing of ours but the weights of the responses."""
    model.zero_grad()
    total, at = torch.zeros(()), 0
    for row, (prompt, answer) in enumerate(
        zip(batch.prompt_lengths_N.tolist(), batch.response_lengths_N.tolist(), strict=True)
    ):
        ids = batch.token_ids_S[at : at + prompt + answer]
        at += prompt + answer
        logits = model(ids[None]).logits[0, prompt - 1 : -1].float() / TEMPERATURE
        every = logits.log_softmax(-1)
        logprobs = every.gather(1, ids[prompt:, None])[:, 0]
        entropy = -(every.exp() * every).sum(-1)
        loss = -float(batch.weights_N[row]) * (logprobs + ENTROPY * entropy).sum()
        loss.backward()
        total += loss.detach()
    return [total, *gradients(model)]


def gradients(model: Any) -> list[Tensor]:
    found = [parameter.grad.clone() for parameter in model.parameters()]
    assert all(gradient.abs().max() > 0 for gradient in found)
    return found


def worst(left: list[Tensor], right: list[Tensor]) -> float:
    pairs = zip(left, right, strict=True)
    return max(float((x - y).norm() / y.norm()) for x, y in pairs)


@pytest.fixture(scope="module")
def expected(model: Path, batch: Batch) -> list[Tensor]:
    return one_by_one(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), batch)


@pytest.mark.parametrize("checkpoint_every", [0, 1, 2])
def test_loss_and_gradients_are_those_of_one_sequence_at_a_time(
    model: Path, batch: Batch, expected: list[Tensor], checkpoint_every: int
):
    policy = load_policy(
        str(model), torch.float32, TEMPERATURE, checkpoint_every > 0, max(1, checkpoint_every)
    )
    for shared_prefix in (False, True):
        for budget in (10**6, 90):
            assert worst(packed(policy, batch, budget, shared_prefix), expected) < 1e-5


def test_in_bfloat16_packing_is_as_exact_as_bfloat16(
    model: Path, batch: Batch, expected: list[Tensor]
):
    """Against float32: packed, with shared prompts or not, is off by what plain bfloat16 is."""
    plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    off = worst(one_by_one(plain, batch), expected)
    policy = load_policy(str(model), torch.bfloat16, TEMPERATURE, False)
    for shared_prefix in (False, True):
        assert worst(packed(policy, batch, 90, shared_prefix), expected) < 1.5 * off


def test_every_nth_layer_is_computed_again(model: Path):
    for every, expected in [(1, [True, True, True]), (2, [True, False, True])]:
        policy = load_policy(str(model), torch.float32, 1.0, True, every)
        layers = [m for m in policy.modules() if isinstance(m, GradientCheckpointingLayer)]
        assert [layer.gradient_checkpointing for layer in layers] == expected


def test_a_shared_prompt_goes_through_the_model_once(model: Path, batch: Batch):
    """Tokens that the embedding sees: three prompts instead of seven."""
    seen: list[int] = []
    policy = load_policy(str(model), torch.float32, TEMPERATURE, False)
    policy.model.model.embed_tokens.register_forward_hook(
        lambda module, inputs, output: seen.append(output.shape[1])
    )
    for shared_prefix in (False, True):
        packed(policy, batch, 10**6, shared_prefix)
    answers = 4 + 25 + 1 + 40 + 9 + 12 + 13
    assert seen == [3 * 30 + 2 * 6 + 2 * 11 + answers, 30 + 6 + 11 + answers]
