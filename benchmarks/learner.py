"""A learner's step against its matrix products alone, by torch.mm.

    python benchmarks/learner.py MODEL [--budget N] [--groups N] [--prompt N] [--answer N]

MODEL is a folder, such as .real/smollm2-135m, which benchmarks/real_model.py makes. A real
LearnerRank under ZeRO-3 (gloo, one rank) takes optimizer steps in float32 on random tokens, in the
sizes of recipes/smollm2_135m_stories.yaml: 11 groups of 16 answers of 6 tokens behind a shared
prompt of 105. In turns with it, the products that such a step cannot do without are computed by
torch.mm on random matrices of the same shapes: every linear layer forward and twice backward, and
the head, whose logits are computed twice, tile by tile. The ratio is how near the step comes to the
speed of these products, with everything else that it does (attention, norms, ZeRO, AdamW) counted
as time and not as work.
"""

import argparse
import os
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from common import Row, command, in_turns, made_up_batch, made_up_recipe, parser, report

ROUNDS, SIBLINGS = 5, 16
Product = tuple[int, int, int]  # rows, inner, columns


def make_rank(model: Path, arguments: argparse.Namespace) -> tuple[Any, list[Any]]:
    """A learner and the micro-batches of its step."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    from grpo.batch.cut import cut
    from grpo.fleet.cluster import hold_port
    from grpo.learner.rank import LearnerRank
    from grpo.learner.spec import LearnerSpec

    recipe = made_up_recipe(
        model,
        dtype="float32",
        gradient_checkpointing=False,
        micro_batch_tokens=arguments.budget,
    )
    held = hold_port()
    spec = LearnerSpec(str(model), recipe, "gloo", bucket_bytes=256 << 20, threads=os.cpu_count())
    rank = LearnerRank(spec, 0, 1, "127.0.0.1", held.getsockname()[1])
    sizes = (arguments.groups, SIBLINGS, arguments.prompt, arguments.answer)
    (share,) = cut(made_up_batch(1000, *sizes), 1, arguments.budget, shared_prefix=True)
    rank.load([share])
    return rank, share


def products(shape: Any, micros: Sequence[Any]) -> Iterator[tuple[Product, int]]:
    """Of a step, each with how often it is computed."""
    from grpo.learner.head_kernels import TILES

    for micro in micros:
        tokens, targets = len(micro.input_ids_S), len(micro.targets_T)
        for inputs, outputs in shape.linears.values():
            yield (tokens, inputs, outputs), shape.layers
            yield (tokens, outputs, inputs), shape.layers
            yield (outputs, tokens, inputs), shape.layers
        rows, columns = TILES["cpu"].cuts(targets, shape.vocab)
        for height in (part.stop - part.start for part in rows):
            for width in (part.stop - part.start for part in columns):
                yield (height, shape.hidden, width), 2  # again in backward
                yield (height, width, shape.hidden), 1
                yield (width, height, shape.hidden), 1


def main(arguments: argparse.Namespace) -> None:
    import torch
    from transformers import AutoConfig

    from grpo.learner.flops import ModelShape

    rank, share = make_rank(arguments.model, arguments)
    shape = ModelShape.of(AutoConfig.from_pretrained(arguments.model))
    wanted = list(products(shape, share))
    matrices = {
        product: (torch.randn(product[0], product[1]), torch.randn(product[2], product[1]).T)
        for product, _ in wanted
    }
    flops = sum(2.0 * rows * inner * columns * times for (rows, inner, columns), times in wanted)
    taken = 0

    def step() -> None:
        nonlocal taken
        rank.step(0, taken)
        taken += 1

    def alone() -> None:
        for product, times in wanted:
            left, right = matrices[product]
            for _ in range(times):
                torch.mm(left, right)

    turns = in_turns(step, alone, ROUNDS)
    ours, rival = statistics.median(turns.ours_s), statistics.median(turns.rival_s)
    tokens = [len(micro.input_ids_S) for micro in share]
    row = Row(
        f"a learner's step of {len(tokens)} micro-batches, {sum(tokens):,} tokens, over its matrix "
        "products by torch.mm, GFLOP/s",
        f"{flops / ours / 1e9:.0f}",
        f"{flops / rival / 1e9:.0f}",
        turns.speedup,
        ">= 0.6",
    )
    results = {"flops": flops, "step_s": turns.ours_s, "mm_s": turns.rival_s, "tokens": tokens}
    report("learner", command(), results, [row], arguments.json)
    os._exit(0)  # gloo's threads may outlive a normal exit


if __name__ == "__main__":
    options = parser(__doc__)
    options.add_argument("model", type=Path)
    options.add_argument("--budget", type=int, default=1024, help="learner.micro_batch_tokens")
    options.add_argument("--groups", type=int, default=11)
    options.add_argument("--prompt", type=int, default=105)
    options.add_argument("--answer", type=int, default=6)
    main(options.parse_args())
