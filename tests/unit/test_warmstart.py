"""The warm start's gradient is that of the plain mean over solution tokens."""

import math

import pytest
import torch
import torch.nn.functional as F
from transformers import Qwen3Config, Qwen3ForCausalLM

from grpo.learner.warmstart import backward

# Of prompt and solution, in no order; 9 rows do not divide into 4 pieces.
LENGTHS = [(3, 9), (2, 1), (5, 20), (1, 4), (4, 4), (2, 12), (6, 2), (3, 30), (1, 1)]


def model() -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "head_dim": 8, "vocab_size": 13}
    layers = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    return Qwen3ForCausalLM(Qwen3Config(**sizes, **layers, pad_token_id=0))


def examples(count: int) -> list[tuple[list[int], list[int]]]:
    generator = torch.Generator().manual_seed(1)
    return [
        tuple(torch.randint(1, 13, (size,), generator=generator).tolist() for size in pair)
        for pair in LENGTHS[:count]
    ]


@pytest.mark.parametrize("count", [1, 3, 4, 9])
def test_loss_and_gradient_are_those_of_each_example_alone(count: int):
    """Sum over examples one at a time, without any padding, over the number of solution tokens."""
    plain, ours = model(), model()
    rows = examples(count)
    tokens = sum(len(solution) for _, solution in rows)
    total = torch.zeros(())
    for prompt, solution in rows:
        logits = plain(input_ids=torch.tensor([prompt + solution])).logits[0]
        predicting = logits[len(prompt) - 1 : -1]
        total = total + F.cross_entropy(predicting, torch.tensor(solution), reduction="sum")
    (total / tokens).backward()

    assert backward(ours, rows) == pytest.approx(total.item() / tokens, rel=1e-6)
    for expected, found in zip(plain.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-5, atol=1e-7)


def test_a_model_that_knows_nothing_loses_the_log_of_its_vocabulary_on_every_token():
    """Logits all 0: ln 13 = 2.5649 nats a token, whatever the lengths."""
    ours = model()
    torch.nn.init.zeros_(ours.lm_head.weight)
    assert backward(ours, examples(9)) == pytest.approx(math.log(13), rel=1e-6)
