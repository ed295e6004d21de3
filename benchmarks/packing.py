"""The learner's forward and backward, packed, against the same model on padded rows.

    python benchmarks/packing.py [--json FILE]

A Qwen3 of 256 wide, 4 layers and a vocabulary of 4,096, float32. Answers are of log-normal lengths,
as a model gives them. The rival lays each micro-batch of 8 answers into rows padded to its longest,
with transformers' own attention under a mask, in the order in which they were sampled; a second one
sorts all answers by length first. All sides compute logprobs of the answers' tokens alone, through
the same head, so that the ratio is what packing does and nothing else.

Then siblings behind one copy of a long prompt against siblings with a copy each, both packed.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from common import SMALL_QWEN3, Row, Spread, command, in_turns, parser, report
from torch import Tensor
from transformers import AutoModelForCausalLM, Qwen3Config

from grpo.batch.cut import cut
from grpo.learner import attention
from grpo.learner.policy import Loaded, Policy
from grpo.types import Batch

VOCABULARY = SMALL_QWEN3["vocab_size"]
ROWS, BUDGET, ROUNDS = 8, 4096, 2


def make_policy(implementation: str) -> Policy:
    torch.manual_seed(0)
    config = Qwen3Config(**SMALL_QWEN3)
    return Policy(AutoModelForCausalLM.from_config(config, attn_implementation=implementation), 1.0)


def make_batch(groups: int, siblings: int, prompt: int, mean: int, sigma: float) -> Batch:
    """Random tokens; lengths of answers log-normal about `mean`, 2,000 at most."""
    rng = np.random.default_rng(0)
    count = groups * siblings
    answers = np.exp(rng.normal(np.log(mean) - sigma**2 / 2, sigma, count))
    answers_N = np.clip(answers.round().astype(np.int64), 1, 2000)
    prompts = [rng.integers(0, VOCABULARY, prompt) for _ in range(groups)]
    tokens = [
        part
        for row, n in enumerate(answers_N)
        for part in (prompts[row // siblings], rng.integers(0, VOCABULARY, n))
    ]
    ones_N = torch.ones(count, dtype=torch.float64)
    return Batch(
        token_ids_S=torch.from_numpy(np.concatenate(tokens)),
        prompt_lengths_N=torch.full((count,), prompt),
        response_lengths_N=torch.from_numpy(answers_N),
        groups_N=torch.arange(count) // siblings,
        advantages_N=ones_N,
        weights_N=ones_N / count,
        regular_weights_N=ones_N,
        sampler_logprobs_T=torch.zeros(int(answers_N.sum())),
    )


def packed(policy: Policy, batch: Batch, shared_prefix: bool = False) -> Callable[[], Tensor]:
    """A forward and backward of all of it, whose cut is part of what is timed."""

    def run() -> Tensor:
        policy.zero_grad()
        total = torch.zeros(())
        for m in cut(batch, 1, BUDGET, shared_prefix=shared_prefix)[0]:
            logprobs_T, _ = policy(*Loaded.onto(torch.device("cpu"), m).inputs)
            loss = -(m.weights_N[m.row_T] * logprobs_T).sum()
            loss.backward()
            total += loss.detach()
        return total

    return run


def padded(policy: Policy, batch: Batch, in_order: bool) -> Callable[[], Tensor]:
    lengths_N = (batch.prompt_lengths_N + batch.response_lengths_N).tolist()
    sequences = batch.token_ids_S.split(lengths_N)
    order = list(range(len(sequences)))
    if not in_order:
        order.sort(key=lambda row: -lengths_N[row])

    def run() -> Tensor:
        policy.zero_grad()
        total = torch.zeros(())
        for start in range(0, len(order), ROWS):
            rows = order[start : start + ROWS]
            ids = torch.nn.utils.rnn.pad_sequence([sequences[row] for row in rows], True)
            real = torch.arange(ids.shape[1]) < torch.tensor([[lengths_N[row]] for row in rows])
            answer = real & (torch.arange(ids.shape[1]) >= batch.prompt_lengths_N[rows, None])
            hidden = policy.model.model(input_ids=ids, attention_mask=real.long(), use_cache=False)
            before = hidden.last_hidden_state[:, :-1][answer[:, 1:]]
            logprobs_T, _ = policy.model.lm_head(before, ids[answer], 1.0)
            weights_T = torch.repeat_interleave(
                batch.weights_N[rows].float(), batch.response_lengths_N[rows]
            )
            loss = -(weights_T * logprobs_T).sum()
            loss.backward()
            total += loss.detach()
        return total

    return run


def waste(lengths: Sequence[int], order: Sequence[int]) -> float:
    """Share of padding among the tokens of the rival's rows."""
    parts: Iterator[list[int]] = (
        [lengths[row] for row in order[start : start + ROWS]]
        for start in range(0, len(order), ROWS)
    )
    return 1 - sum(lengths) / sum(len(part) * max(part) for part in parts)


def against_padding(ours: Policy, rival: Policy, rounds: int) -> tuple[list[Row], dict[str, Any]]:
    batch = make_batch(groups=4, siblings=8, prompt=60, mean=300, sigma=0.8)
    lengths: list[int] = (batch.prompt_lengths_N + batch.response_lengths_N).tolist()
    ranked = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    rows, results = [], {}
    for name, in_order, aim in [("as sampled", True, ">= 1.8"), ("sorted by length", False, "")]:
        padding = waste(lengths, range(len(lengths)) if in_order else ranked)
        what = f"{len(lengths)} answers of {min(lengths)} to {max(lengths)} tokens; rival padded"
        row, result = compare(
            packed(ours, batch),
            padded(rival, batch, in_order),
            rounds,
            f"{what} {name}, {padding:.0%} padding",
            aim,
        )
        rows.append(row)
        results[f"padded {name}"] = result | {"padding": padding}
    return rows, results


def with_shared_prompts(ours: Policy, rounds: int) -> tuple[list[Row], dict[str, Any]]:
    rows, results = [], {}
    for prompt, mean in ((1000, 200), (200, 200)):
        batch = make_batch(groups=2, siblings=8, prompt=prompt, mean=mean, sigma=0.5)
        what = f"prompts of {prompt} tokens shared by 8 answers of about {mean}; rival not shared"
        row, result = compare(
            packed(ours, batch, shared_prefix=True), packed(ours, batch), rounds, what
        )
        rows.append(row)
        results[f"shared prompt of {prompt}"] = result
    return rows, results


def compare(
    ours: Callable[[], Tensor], rival: Callable[[], Tensor], rounds: int, what: str, aim: str = ""
) -> tuple[Row, dict[str, Any]]:
    left, right = float(ours()), float(rival())
    assert abs(left - right) <= 1e-4 * abs(right), f"different work: losses {left} and {right}"
    turns = in_turns(ours, rival, rounds, warm_up=0)  # that was the warm-up
    seconds = (Spread.of(turns.ours_s).median, Spread.of(turns.rival_s).median)
    row = Row(what, f"{seconds[0]:.2f} s", f"{seconds[1]:.2f} s", turns.speedup, aim)
    return row, {"speedup": turns.speedup.median, "ours_s": seconds[0], "rival_s": seconds[1]}


def main() -> None:
    options = parser(__doc__).parse_args()
    attention.register(attention.PACKED)
    ours, rival = make_policy(attention.PACKED), make_policy("sdpa")
    padding_rows, padding_results = against_padding(ours, rival, ROUNDS)
    prompt_rows, prompt_results = with_shared_prompts(ours, ROUNDS)
    report(
        "packing",
        command(),
        padding_results | prompt_results,
        padding_rows + prompt_rows,
        options.json,
    )


if __name__ == "__main__":
    main()
