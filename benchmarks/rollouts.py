r"""How close `grpo train` comes to vLLM alone: sampled tokens per second, in one run, in turns.

    .venv/bin/python benchmarks/rollouts.py [--json FILE]
    .venv/bin/python benchmarks/rollouts.py --model .real/smollm2-135m --data data/stories.yaml \
        --prompts 12 --max-tokens 16

Both sides serve the same weights, by default the demo's, with the same engine arguments,
prompts, seeds and lengths. The bare side is `AsyncLLM.generate` on one event loop with nothing
around it; ours is the trainer's own path: Ray, RolloutPool, groups as records with logprobs,
detokenised.
"""

import argparse
import asyncio
import dataclasses
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import ray
from common import Row, Spread, command, demo_model, parser, report

from grpo.config.load import load_data
from grpo.data import PromptStream, load_rows
from grpo.fleet.cluster import Cluster
from grpo.fleet.engines import RolloutPool
from grpo.learner.model_files import load_tokenizer
from grpo.rollout.engine import EngineSpec, engine_arguments, engine_environment
from grpo.rollout.sampling import Sampling, group_seed
from grpo.rollout.stops import stop_tokens
from grpo.sync.transport import BACKENDS
from grpo.types import Prompt

SIBLINGS, ROUNDS = 16, 4


class Bare:
    """An AsyncLLM in an actor, asked for all answers of a round in one call."""

    def __init__(self, spec: EngineSpec, max_tokens: int, stop_token_ids: list[int]):
        self._spec = spec
        self._max_tokens = max_tokens
        self._stop_token_ids = stop_token_ids

    async def start(self) -> None:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        self._engine = AsyncLLM.from_engine_args(AsyncEngineArgs(**engine_arguments(self._spec)))

    async def round(self, prompts: list[Prompt], step: int) -> tuple[int, float]:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        async def one(prompt: Prompt, i: int) -> int:
            params = SamplingParams(
                max_tokens=self._max_tokens,
                temperature=1.0,
                seed=group_seed(0, step, prompt.serial) + i,
                logprobs=0,
                flat_logprobs=True,
                detokenize=False,
                stop_token_ids=self._stop_token_ids,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            tokens: Any = {"prompt_token_ids": list(prompt.token_ids)}
            length = 0
            async for output in self._engine.generate(
                tokens, params, f"{step}-{prompt.serial}-{i}"
            ):
                length = len(output.outputs[0].token_ids)
            return length

        started = time.monotonic()
        lengths = await asyncio.gather(*(one(p, i) for p in prompts for i in range(SIBLINGS)))
        return sum(lengths), time.monotonic() - started


def ours(pool: RolloutPool, prompts: list[Prompt], step: int, max_tokens: int) -> tuple[int, float]:
    started = time.monotonic()
    groups = list(
        pool.sample(
            prompts, SIBLINGS, Sampling(max_tokens), lambda p: group_seed(0, step, p.serial)
        )
    )
    seconds = time.monotonic() - started
    return sum(len(r.token_ids) for g in groups for r in g.responses), seconds


def main(arguments: argparse.Namespace) -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    model = str(arguments.model.resolve() if arguments.model else demo_model())
    spec = EngineSpec(model, "float32", 0, None, 1, BACKENDS["gloo"], {})
    extra = {"block_size": arguments.block_size} if arguments.block_size else {}
    of_ours = dataclasses.replace(spec, extra=extra)
    data, tokenizer = load_data(arguments.data), load_tokenizer(model)
    stream = PromptStream(load_rows(data), data, tokenizer, seed=0, longest_prompt=256)
    rounds = [stream.take(arguments.prompts) for _ in range(ROUNDS + 1)]
    stops = stop_tokens(model, tokenizer.eos_token_id)
    rates: dict[str, list[float]] = {"grpo": [], "vllm": []}
    with Cluster(Path(tempfile.mkdtemp())) as cluster:
        pool = RolloutPool(cluster.rollout_workers(of_ours, 1, None), 600)
        options = {"runtime_env": {"env_vars": engine_environment()}, "num_cpus": 0}
        bare = ray.remote(Bare).options(**options).remote(spec, arguments.max_tokens, stops)
        bare_started = bare.start.remote()
        pool.start()
        ray.get(bare_started)
        sides = {
            "grpo": lambda prompts, step: ours(pool, prompts, step, arguments.max_tokens),
            "vllm": lambda prompts, step: ray.get(bare.round.remote(prompts, step)),
        }
        for step, prompts in enumerate(rounds):
            order = list(sides) if step % 2 == 0 else list(sides)[::-1]
            found = {name: sides[name](prompts, step) for name in order}
            tokens = {name: count for name, (count, _) in found.items()}
            assert len(set(tokens.values())) == 1, f"both sides sample the same answers: {tokens}"
            if step:  # the first round of a fresh engine is slow on either side
                for name, (count, seconds) in found.items():
                    rates[name].append(count / seconds)
    ratio = Spread.of([a / b for a, b in zip(rates["grpo"], rates["vllm"], strict=True)])
    medians = {name: round(statistics.median(values)) for name, values in rates.items()}
    row = Row(
        "rollouts in the trainer over AsyncLLM.generate, tokens/s",
        f"{medians['grpo']:,}",
        f"{medians['vllm']:,}",
        ratio,
        ">= 0.95",
    )
    results = {"tokens_per_s": medians, "rates": rates, "ratio": ratio.median}
    report("rollouts", command(), results, [row], arguments.json)


if __name__ == "__main__":
    options = parser(__doc__)
    options.add_argument("--model", type=Path, help="a model folder")
    options.add_argument("--data", default="data/arithmetic.yaml", help="a declaration of data/")
    options.add_argument("--prompts", type=int, default=16, help="of a round, 16 answers to each")
    options.add_argument("--max-tokens", type=int, default=96)
    options.add_argument(
        "--block-size", type=int, help="of our engine's cache; the bare one's stays"
    )
    main(options.parse_args())
