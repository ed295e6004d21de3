"""A new advantage, aggregator, surrogate and verifier: one file each, outside of the package."""

import json
import subprocess
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.e2e.test_run import GRPO, ROOT

PARTS = {
    "my_advantage": '''
"""Ranks within the group, from -1 to 1."""

import torch
from torch import Tensor

from grpo.algo import ADVANTAGES


@ADVANTAGES.register("ranked")
def ranked(rewards_G: Tensor) -> Tensor:
    places_G = rewards_G.double().argsort().argsort().double()
    return 2 * places_G / (len(rewards_G) - 1) - 1
''',
    "my_aggregator": '''
"""Every response weighs the same, and little."""

import torch
from torch import Tensor

from grpo.algo import AGGREGATORS


@AGGREGATORS.register("constant")
def constant(
    lengths_N: Tensor, advantages_N: Tensor, groups_N: Tensor, *, max_tokens: int, size: float = 0.5
) -> Tensor:
    return torch.full((len(lengths_N),), size / max_tokens, dtype=torch.float64)
''',
    "my_surrogate": '''
"""REINFORCE: no ratio, no clip."""

from torch import Tensor

from grpo.algo import SURROGATES


@SURROGATES.register("plain")
def plain(
    logprobs_T: Tensor, old_logprobs_T: Tensor, advantages_N: Tensor, row_T: Tensor
) -> Tensor:
    return advantages_N.to(logprobs_T.dtype)[row_T] * logprobs_T
''',
    "my_verifier": '''
"""Long answers are right."""

from grpo.types import Verdict
from grpo.verify import VERIFIERS


@VERIFIERS.register("longer_than")
def longer_than(response: str, answer: str, *, characters: int = 3) -> Verdict:
    return Verdict(float(len(response) > characters), str(len(response)), "measured")
''',
}


def test_each_part_takes_one_file_and_one_line_of_the_recipe(
    models: dict[str, Path], tmp_path: Path
):
    for name, text in PARTS.items():
        (tmp_path / f"{name}.py").write_text(text)
    (tmp_path / "recipe.yaml").write_text(f"""
name: plugged
plugins: [{", ".join(PARTS)}]
model: {{path: {models["tied"]}, dtype: float32, gradient_checkpointing: false}}
data: {ROOT}/data/arithmetic.yaml
rollout: {{prompts: 4, group_size: 4, max_tokens: 16, temperature: 0.7}}
verifier: {{name: longer_than, options: {{characters: 10}}, workers: 1}}
advantage: ranked
aggregate: {{name: constant, size: 0.25}}
surrogate: plain
flat_groups: {{mode: keep}}
schedule: {{steps: 2}}
logging: {{wandb: "off", samples_every: 0}}
""")
    done = subprocess.run(
        [str(GRPO), "train", "recipe.yaml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    run = tmp_path / "runs" / "plugged"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    assert [line["step"] for line in lines] == [1, 2]
    assert lines[0]["verdict/measured/share"] == 1
    assert lines[0]["shadow/constant/effective_responses"] == 16
    assert lines[0]["learn/grad_norm"] > 0
    # At another temperature than 1, too, both sides score alike, from the start on.
    assert "engines and learner agree on the first prompts: " in done.stdout
    assert max(line["sync/canary_max_abs"] for line in lines) <= 1e-4
    assert max(line["mismatch/mean_abs"] for line in lines) <= 1e-4
    rows = pq.read_table(run / "rollouts" / "step_000001.parquet").to_pylist()
    advantages = sorted(row["advantage"] for row in rows[:4])
    assert advantages == pytest.approx([-1, -1 / 3, 1 / 3, 1])
