"""What the check of a weight update can tell apart: rounding, and a tensor that did not arrive.

    .venv/bin/python benchmarks/canary.py MODEL --data FILE.jsonl [--dtype bfloat16]

A real engine and the learner's policy score the same windows of tokens (prompts in the model's chat
template) under the same weights: what they differ by is rounding. Then one tensor after another of
the policy is replaced by what an engine holds that was started without weights (vLLM's dummy
values, uniform within 1e-3), and compared with the whole policy, both in float32, which shows what
the loss alone does. For each statistic of a window, the worst of rounding stands beside the least
that a lost tensor causes.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from common import Row, Spread, command, parser, report

STATISTICS = ("mean", "p90", "largest")


def windows(model: str, data: Path, tokens: int, count: int) -> list[list[int]]:
    """`count` runs of tokens, as a check takes them: prompts one after the other."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    found: list[int] = []
    for line in data.read_text().splitlines():
        turns = [{"role": "user", "content": json.loads(line)["problem"]}]
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        found += tokenizer(text, add_special_tokens=False).input_ids
        if len(found) >= tokens * count:
            break
    return [found[n * tokens : (n + 1) * tokens] for n in range(count)]


def engine_scores(model: str, dtype: str, asked: list[list[int]]) -> list[list[float]]:
    from grpo.fleet.cluster import Cluster
    from grpo.fleet.engines import RolloutPool
    from grpo.rollout.engine import EngineSpec

    with tempfile.TemporaryDirectory() as logs, Cluster(Path(logs)) as cluster:
        spec = EngineSpec(model, dtype, 0, 1024, 1, "grpo_gloo", {})
        pool = RolloutPool(cluster.rollout_workers(spec, 1, None), timeout_s=600)
        pool.start()
        return [pool.score(tokens)[0] for tokens in asked]


class Scorer:
    """The learner's policy, outside of ZeRO, which does not change what it computes."""

    def __init__(self, model: str, dtype: str):
        from grpo.learner.policy import load_policy
        from grpo.sync.buckets import torch_dtype

        self.policy = load_policy(model, torch_dtype(dtype), 1.0, gradient_checkpointing=False)

    @torch.no_grad()
    def __call__(self, tokens: list[int]) -> torch.Tensor:
        from grpo.learner.attention import segments

        ids, positions = torch.tensor(tokens), torch.arange(len(tokens))
        where = segments(torch.tensor([0, len(tokens)], dtype=torch.int32), positions)
        logprobs, _ = self.policy(ids, positions, where, positions[:-1], ids[1:], entropy=False)
        return logprobs.float()


def statistics(apart: torch.Tensor) -> dict[str, float]:
    return {
        "mean": apart.mean().item(),
        "p90": apart.quantile(0.9).item(),
        "largest": apart.max().item(),
    }


def lost_tensors(scorer: Scorer, asked: list[list[int]]) -> dict[str, dict[str, float]]:
    """For each tensor, the least of every statistic over the windows."""
    whole = [scorer(tokens) for tokens in asked]
    found: dict[str, dict[str, float]] = {}
    for name, parameter in scorer.policy.model.named_parameters():
        kept = parameter.data.clone()
        parameter.data.uniform_(-1e-3, 1e-3)
        each = [statistics((scorer(t) - w).abs()) for t, w in zip(asked, whole, strict=True)]
        parameter.data.copy_(kept)
        found[name] = {key: min(one[key] for one in each) for key in STATISTICS}
    return found


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("model")
    arguments.add_argument("--data", type=Path, required=True, help="rows with a problem")
    arguments.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    arguments.add_argument("--tokens", type=int, default=128, help="of a window")
    arguments.add_argument("--windows", type=int, default=24, help="compared for rounding")
    arguments.add_argument("--faulty", type=int, default=1, help="compared for each lost tensor")
    options = arguments.parse_args()
    torch.manual_seed(0)
    asked = windows(options.model, options.data, options.tokens, options.windows)
    engine = [torch.tensor(s) for s in engine_scores(options.model, options.dtype, asked)]
    scorer = Scorer(options.model, options.dtype)
    rounding = [statistics((scorer(t) - e).abs()) for t, e in zip(asked, engine, strict=True)]
    print(f"rounding: {rounding}", flush=True)
    lost = lost_tensors(Scorer(options.model, "float32"), asked[: options.faulty])
    rows = []
    for key in STATISTICS:
        noise = Spread.of([one[key] for one in rounding])
        least = min(lost, key=lambda name: lost[name][key])
        rows.append(
            Row(
                f"{key} of {options.tokens} tokens, nats",
                f"rounding {noise}",
                f"{least} lost: {lost[least][key]:.3g}",
                Spread(lost[least][key] / max(one[key] for one in rounding)),
            )
        )
    results = {"rounding": rounding, "lost": lost}
    report("canary", command(), results, rows, options.json)
    for name, one in sorted(lost.items(), key=lambda item: item[1]["mean"])[:12]:
        print(f"{name}: " + ", ".join(f"{key} {one[key]:.3g}" for key in STATISTICS))


if __name__ == "__main__":
    main()
