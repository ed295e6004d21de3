"""How close `grpo train` comes to vLLM alone: sampled tokens per second, in one run, in turns.

    .venv/bin/python benchmarks/rollouts.py MODEL_FOLDER

Both sides serve the same weights with the same engine arguments, prompts, seeds and lengths. The
bare side is `AsyncLLM.generate` on one event loop with nothing around it; ours is the trainer's own
path: Ray, RolloutPool, groups as records with logprobs, detokenised.
"""

import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import ray

from grpo.cluster import Cluster
from grpo.data import PromptStream, load_rows
from grpo.learner.prepare import load_tokenizer
from grpo.loading import load_data
from grpo.rollout.engine import EngineSpec, engine_arguments, engine_environment
from grpo.rollout.pool import RolloutPool
from grpo.rollout.sampling import Sampling, group_seed
from grpo.types import Prompt

PROMPTS, SIBLINGS, MAX_TOKENS, ROUNDS = 16, 16, 96, 6


class Bare:
    """An AsyncLLM in an actor, asked for all answers of a round in one call."""

    def __init__(self, spec: EngineSpec):
        self._spec = spec

    async def start(self) -> None:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        self._engine = AsyncLLM.from_engine_args(AsyncEngineArgs(**engine_arguments(self._spec)))

    async def round(self, prompts: list[Prompt], step: int) -> tuple[int, float]:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        async def one(prompt: Prompt, i: int) -> int:
            params = SamplingParams(
                max_tokens=MAX_TOKENS,
                temperature=1.0,
                seed=group_seed(0, step, prompt.serial) + i,
                logprobs=0,
                flat_logprobs=True,
                detokenize=False,
                stop_token_ids=[1],
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


def main(model: str) -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    spec = EngineSpec(model, "float32", 0, None, 1, "grpo_gloo", {})
    data = load_data("data/arithmetic.yaml")
    stream = PromptStream(load_rows(data), data, load_tokenizer(model), seed=0, longest_prompt=256)
    rounds = [stream.take(PROMPTS) for _ in range(ROUNDS + 1)]
    rates: dict[str, list[float]] = {"grpo": [], "vllm": []}
    with Cluster(Path(tempfile.mkdtemp())) as cluster:
        pool = RolloutPool(cluster.rollout_workers(spec, 1, None), 600)
        pool.start()
        options = {"runtime_env": {"env_vars": engine_environment()}, "num_cpus": 0}
        bare = ray.remote(Bare).options(**options).remote(spec)
        ray.get(bare.start.remote())
        for step, prompts in enumerate(rounds):
            tokens, seconds = ray.get(bare.round.remote(prompts, step))
            started = time.monotonic()
            groups = list(
                pool.sample(
                    prompts,
                    SIBLINGS,
                    Sampling(MAX_TOKENS),
                    lambda p, step=step: group_seed(0, step, p.serial),
                )
            )
            ours_s = time.monotonic() - started
            ours = sum(len(r.token_ids) for g in groups for r in g.responses)
            assert ours == tokens, f"both sides sample the same answers: {ours} and {tokens} tokens"
            if step:  # the first round of a fresh engine is slow on either side
                rates["vllm"].append(tokens / seconds)
                rates["grpo"].append(ours / ours_s)
    ratios = [a / b for a, b in zip(rates["grpo"], rates["vllm"], strict=True)]
    print(
        json.dumps(
            {
                "grpo_tokens_per_s": round(statistics.median(rates["grpo"])),
                "vllm_tokens_per_s": round(statistics.median(rates["vllm"])),
                "ratio_median": round(statistics.median(ratios), 3),
                "ratios": [round(r, 3) for r in ratios],
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1])
