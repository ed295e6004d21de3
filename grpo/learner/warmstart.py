"""Supervised training of a small new model on worked solutions, stopped early on purpose."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from transformers import PreTrainedTokenizerFast

from grpo.config.model import WarmStart
from grpo.errors import RunError

Example = tuple[list[int], list[int]]  # prompt ids, solution ids with the end token
_IGNORE = -100
_PIECES = 4  # of a batch, each padded to its own longest


def _pad(examples: Sequence[Example], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded inputs and labels [B, L]; the prompt and the padding carry no loss."""
    length = max(len(prompt) + len(solution) for prompt, solution in examples)
    inputs = torch.full((len(examples), length), pad)
    labels = torch.full((len(examples), length), _IGNORE)
    for row, (prompt, solution) in enumerate(examples):
        end = len(prompt) + len(solution)
        inputs[row, :end] = torch.tensor(prompt + solution)
        labels[row, len(prompt) : end] = torch.tensor(solution)
    return inputs, labels


def backward(model: Any, examples: Sequence[Example]) -> float:
    """Adds the gradient of the mean loss over all solution tokens; returns that loss.

    Examples of like length go through the model together: less padding, the same sums.
    """
    pad = model.config.pad_token_id
    by_length = sorted(examples, key=lambda example: len(example[0]) + len(example[1]))
    tokens = sum(len(solution) for _, solution in examples)
    size = math.ceil(len(examples) / _PIECES)
    total = 0.0
    for start in range(0, len(examples), size):
        inputs, labels = _pad(by_length[start : start + size], pad)
        logits = model(input_ids=inputs).logits[:, :-1].flatten(0, 1)
        wanted = labels[:, 1:].flatten()
        loss = F.cross_entropy(logits, wanted, ignore_index=_IGNORE, reduction="sum") / tokens
        loss.backward()
        total += loss.item()
    return total


@torch.no_grad()
def sample(
    model: Any,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
) -> list[str]:
    """One answer to each prompt at temperature 1."""
    length = max(map(len, prompts))
    pad = tokenizer.pad_token_id
    inputs = torch.tensor([[pad] * (length - len(p)) + list(p) for p in prompts])
    mask = torch.tensor([[0] * (length - len(p)) + [1] * len(p) for p in prompts])
    model.eval()
    output = model.generate(
        inputs=inputs,
        attention_mask=mask,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        max_new_tokens=max_tokens,
        pad_token_id=pad,
        eos_token_id=tokenizer.eos_token_id,
    )
    model.train()
    return tokenizer.batch_decode(output[:, length:], skip_special_tokens=True)


def warm_start(
    model: Any,
    examples: Sequence[Example],
    accuracy: Callable[[], float],
    config: WarmStart,
    seed: int,
    report: Callable[[int, float, float], None],
) -> float:
    """Trains until `accuracy()` reaches config.until_accuracy; returns it.

    `report(step, loss, accuracy)` is called at every check. Raises RunError where max_steps pass
    without getting there.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=0.01)
    reached = 0.0
    for step in range(1, config.max_steps + 1):
        rows = torch.randint(len(examples), (config.batch_size,), generator=generator)
        optimizer.zero_grad()
        loss = backward(model, [examples[int(row)] for row in rows])
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % config.check_every == 0:
            reached = accuracy()
            report(step, loss, reached)
            if reached >= config.until_accuracy:
                return reached
    raise RunError(
        f"the warm start reached an accuracy of {reached:.2f} in {config.max_steps} steps, "
        f"{config.until_accuracy} was asked for: raise model.build.warm_start.max_steps or lr"
    )
