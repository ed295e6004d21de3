"""Adapters train as plain transformers and peft train them; engines serve the merged weights."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from grpo.batch.cut import cut
from grpo.config.recipe import SyncConfig
from grpo.fleet.cluster import Cluster
from grpo.fleet.learner import Learner
from grpo.fleet.weights import WeightSync
from grpo.learner.spec import LearnerSpec
from grpo.rollout.sampling import Sampling, group_seed
from grpo.types import Batch, Prompt, Row
from tests.e2e.conftest import CANARY, learner_spec, start_engines, start_learner
from tests.e2e.steps import batch, one_and_two_ranks, rested, trained, weights, worst_cut

EPS, CLIP, KL = 1e-2, 0.05, 0.3
LORA = {"rank": 4, "alpha": 12, "targets": ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"]}
LAYERS = 2 * len(LORA["targets"])


@dataclass(frozen=True)
class Kind:
    """A model, and what differs from the other kind beside it."""

    name: str
    optimizer: str
    lr: float
    checkpointing: bool
    kl: float

    def spec(self, models: dict[str, Path]) -> LearnerSpec:
        path = models[self.name]
        return learner_spec(
            path,
            {
                "optimizer": self.optimizer,
                "lr": self.lr,
                "eps": EPS,
                "grad_clip": CLIP,
                "lora": LORA,
            },
            model={
                "path": str(path),
                "dtype": "float32",
                "gradient_checkpointing": self.checkpointing,
            },
            regularization={"kl": self.kl},
        )


# The gradient of A is as small as B, which is zero at first: plain descent takes long steps.
KINDS = [Kind("tied", "adamw", 1e-2, True, 0.0), Kind("untied", "sgd", 3.0, False, KL)]


@dataclass(frozen=True)
class Started:
    kind: Kind
    base: Path
    ranks: dict[int, tuple[Learner, Path]]


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: f"{kind.name}-{kind.optimizer}")
def started(
    request: pytest.FixtureRequest, cluster: Cluster, models: dict[str, Path], tmp_path_factory
) -> Iterator[Started]:
    kind = request.param
    with one_and_two_ranks(cluster, kind.spec(models), tmp_path_factory) as ranks:
        yield Started(kind, models[kind.name], ranks)


def with_adapter(base: Path, folder: Path, trainable: bool = False) -> PeftModel:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return PeftModel.from_pretrained(model, folder / "adapter", is_trainable=trainable)


def loss_of(model: PeftModel, data: Batch, row: int, ids: Tensor, prompt: int, kl: float) -> Tensor:
    """Of one answer. Where the weights are those that sampled, the objective's gradient is that of
    advantage times logprob; k3 is exp(-x) - 1 + x with x = log(policy / reference)."""

    def logprobs() -> Tensor:
        every = model(ids[None]).logits[0, prompt - 1 : -1].log_softmax(-1)
        return every.gather(1, ids[prompt:, None])[:, 0]

    chosen = logprobs()
    loss = -float(data.weights_N[row] * data.advantages_N[row]) * chosen.sum()
    if kl:
        with torch.no_grad(), model.disable_adapter():
            reference = logprobs()
        x = chosen - reference
        loss = loss + kl * float(data.regular_weights_N[row]) * (torch.exp(-x) - 1 + x).sum()
    return loss


def plain_steps(kind: Kind, base: Path, first: Path, data: Batch, steps: int) -> dict[str, Tensor]:
    """Nothing of ours: peft's model, one sequence at a time, torch's clipping and optimizer."""
    model = with_adapter(base, first, trainable=True)
    trains = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = (
        torch.optim.AdamW(trains, lr=kind.lr, eps=EPS, weight_decay=0.0)
        if kind.optimizer == "adamw"
        else torch.optim.SGD(trains, lr=kind.lr)
    )
    for _ in range(steps):
        at = 0
        for row, (prompt, answer) in enumerate(
            zip(data.prompt_lengths_N.tolist(), data.response_lengths_N.tolist(), strict=True)
        ):
            ids = data.token_ids_S[at : at + prompt + answer]
            at += prompt + answer
            loss_of(model, data, row, ids, prompt, kind.kl).backward()
        norm = torch.nn.utils.clip_grad_norm_(trains, CLIP)
        assert norm > CLIP, "clipping is to act"
        optimizer.step()
        optimizer.zero_grad()
    return {
        name.replace(".default", ""): parameter.detach()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def test_adapters_begin_alike_on_every_rank_and_change_nothing(started: Started):
    one, two = (trained(first) for _, first in started.ranks.values())
    assert len(one) == 2 * LAYERS and one.keys() == two.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, two[name])
        assert bool(tensor.any()) == ("lora_A" in name), name
    base = load_file(started.base / "model.safetensors")
    for _, first in started.ranks.values():
        merged = weights(first)
        assert merged.keys() == base.keys()
        assert all(torch.equal(merged[name], base[name]) for name in base)


@pytest.mark.parametrize("ranks", [1, 2])
def test_two_steps_are_those_of_transformers_and_peft(started: Started, ranks: int, tmp_path: Path):
    """B is zero before the first, so that A moves in the second alone."""
    group, first = started.ranks[ranks]
    data = batch("balanced", {})
    expected = plain_steps(started.kind, started.base, first, data, 2)
    group.restore(first)
    for number in range(2):
        group.load([cut(data, ranks, 70)])
        group.step(0, number)
    group.save(tmp_path)
    found, before = trained(tmp_path), trained(first)
    assert found.keys() == expected.keys()
    worst = 0.0
    for name, tensor in expected.items():
        moved = float((tensor - before[name]).norm())
        assert moved > 1e-5, f"{name} moved by {moved:.1e} only"
        worst = max(worst, float((found[name] - tensor).norm() / tensor.norm()))
    print(f"worst relative difference {worst:.1e}")
    assert worst <= 1e-5


def test_ranks_and_micro_batches_do_not_change_a_step(started: Started, tmp_path: Path):
    worst, where = worst_cut(started.ranks, batch("balanced", {}), tmp_path)
    print(f"worst relative difference {worst:.1e}, {where}")
    assert worst <= 1e-5, f"{where}: relative difference {worst:.2e}"


@pytest.mark.parametrize("ranks", [1, 2])
def test_adapters_whose_states_rested_take_the_same_step(
    started: Started, ranks: int, tmp_path: Path
):
    group, first = started.ranks[ranks]
    data = cut(batch("balanced", {}), ranks, 120)
    expected, *found = (trained(kept) for kept in rested(group, first, data, tmp_path))
    start = trained(first)
    for after in found:
        assert all(torch.equal(after[name], expected[name]) for name in expected)
        assert not any(torch.equal(after[name], start[name]) for name in start)


@pytest.mark.parametrize("started", KINDS[:1], indirect=True, ids=["tied-adamw"])
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_step_after_restore_is_bit_equal_to_the_uninterrupted_one(
    started: Started, ranks: int, cluster: Cluster, models: dict[str, Path], tmp_path: Path
):
    """In fresh processes, which read the base from the model's folder: it is in no checkpoint."""
    group, first = started.ranks[ranks]
    data = [cut(batch("balanced", {}), ranks, 200)]
    group.restore(first)
    group.load(data)
    group.step(0, 0)
    group.step(0, 1)
    group.save(tmp_path / "saved")
    group.step(0, 2)
    group.save(tmp_path / "uninterrupted")
    fresh = start_learner(cluster, started.kind.spec(models), ranks)
    fresh.restore(tmp_path / "saved")
    fresh.load(data)
    fresh.step(0, 2)
    fresh.save(tmp_path / "resumed")
    for worker in fresh.workers:
        worker.kill()
    for read in (trained, weights):
        resumed, expected = read(tmp_path / "resumed"), read(tmp_path / "uninterrupted")
        assert all(torch.equal(resumed[name], expected[name]) for name in expected)
    files = [path.stat().st_size for path in (tmp_path / "saved" / "zero").iterdir()]
    base = (started.base / "model.safetensors").stat().st_size
    assert 0 < sum(files) < base, "the frozen base is in the checkpoint"


@pytest.mark.parametrize("ranks", [1, 2])
def test_both_exports_load_and_score_as_the_learner_does(
    started: Started, ranks: int, tmp_path: Path
):
    group, first = started.ranks[ranks]
    group.restore(first)
    group.load([cut(batch("balanced", {}), ranks, 120)])
    group.step(0, 0)
    group.step(0, 1)
    group.save(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path / "hf").decode([3, 4]) != ""
    tokens = torch.tensor([CANARY])
    with torch.no_grad():
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")(tokens).logits
        adapted = with_adapter(started.base, tmp_path)(tokens).logits
        base = AutoModelForCausalLM.from_pretrained(started.base)(tokens).logits
    assert (merged - adapted).abs().max() < 1e-5
    assert (merged - base).abs().max() > 1e-3, "else the base would have passed for the policy"
    logprobs = merged[0].log_softmax(-1)
    expected = [float(logprobs[i, t]) for i, t in enumerate(CANARY[1:])]
    assert np.allclose(group.score(CANARY), expected, atol=1e-5)
    plain, tensors = load_file(started.base / "model.safetensors"), trained(tmp_path)
    for name, weight in weights(tmp_path).items():
        layer = f"base_model.model.{name.removesuffix('.weight')}"
        if (down := tensors.get(f"{layer}.lora_A.weight")) is not None:
            up = tensors[f"{layer}.lora_B.weight"]
            exact = plain[name].double() + 12 / 4 * up.double() @ down.double()
            assert torch.equal(weight, exact.float()) or (weight - exact).abs().max() < 1e-7
        else:
            assert torch.equal(weight, plain[name])


@pytest.mark.parametrize("started", KINDS[:1], indirect=True, ids=["tied-adamw"])
def test_an_engine_serves_the_merged_weights_by_either_transport(
    started: Started, cluster: Cluster
):
    """Two ranks, each of which writes its own shards in shared memory."""
    group, first = started.ranks[2]
    rollouts = start_engines(cluster, started.base)
    try:
        for number, transport in enumerate(("gloo", "shm")):
            group.restore(first)
            sync = WeightSync(group, rollouts, SyncConfig(timeout_s=60), transport, CANARY)
            sync.open(cluster, tensor_parallel=1)
            before = np.array(group.score(CANARY))
            group.load([cut(batch("balanced", {}), 2, 120)])
            for step in range(number + 1):
                group.step(0, step)
            sync.update(number + 1)
            apart = sync.check_canary("float32").largest
            assert np.abs(before - np.array(group.score(CANARY))).max() > 1e-3
            prompt = Prompt(0, Row("0", "", ""), (3, 4, 5, 6))
            (sampled,) = rollouts.sample([prompt], 4, Sampling(24), lambda p: group_seed(0, 1, 0))
            for response in sampled.responses:
                scores = group.score([*prompt.token_ids, *response.token_ids.tolist()])[3:]
                off = np.abs(np.array(scores) - response.sampler_logprobs).max()
                apart = max(apart, float(off))
            print(f"{transport}: {apart:.1e} nats")
            assert apart <= 1e-4
    finally:
        for worker in rollouts.workers:
            worker.kill()
