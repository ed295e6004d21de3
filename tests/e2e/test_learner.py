"""An optimizer step is the same for every cut into ranks and micro-batches, and after resume."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Qwen3Config

from grpo.batch.cut import cut
from grpo.config.recipe import LearnerConfig
from grpo.fleet.cluster import Cluster
from grpo.fleet.learner import Learner
from grpo.learner.flops import ModelShape
from grpo.learner.memory import LearnerSetting
from grpo.learner.spec import LearnerSpec
from tests.e2e.conftest import learner_spec, start_learner
from tests.e2e.steps import RULES, batch, one_and_two_ranks, rested, weights, worst_cut


def spec(model: Path, surrogate: str, optimizer: str) -> LearnerSpec:
    # A large epsilon keeps Adam from amplifying rounding noise on gradients near zero.
    learner = {"optimizer": optimizer, "eps": 1e-2, "grad_clip": 0.5}
    return learner_spec(model, learner, surrogate=surrogate)


# A surrogate and an optimizer. CISPO takes its ratios token by token, as PPO does, and GSPO over
# whole answers: what a cut could break differs between these two alone.
LEARNERS = [
    ("ppo_clip", "adamw"),
    ("gspo", "sgd"),
    pytest.param(("cispo", "sgd"), marks=pytest.mark.full, id="cispo-sgd"),
]


@pytest.fixture(scope="module", params=LEARNERS, ids="-".join)
def learners(
    request: pytest.FixtureRequest, cluster: Cluster, models: dict[str, Path], tmp_path_factory
) -> Iterator[dict[int, tuple[Learner, Path]]]:
    made = spec(models["tied"], *request.param)
    with one_and_two_ranks(cluster, made, tmp_path_factory) as started:
        yield started


# A rule's weights are computed for the whole step, before it is cut, and the learner does nothing
# but multiply by them: no rule can be cut in another way than the others. So one that weighs each
# group by itself stands for all of them. The rest is behind `make test-full`.
WEIGHING = ("balanced", {"balance": "count"})


@pytest.mark.parametrize(
    ("rule", "options"),
    [pytest.param(*r, marks=() if r == WEIGHING else pytest.mark.full) for r in RULES],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_ranks_and_micro_batches_do_not_change_a_step(learners, rule, options, tmp_path: Path):
    worst, where = worst_cut(learners, batch(rule, options), tmp_path)
    print(f"worst relative difference {worst:.1e}, {where}")
    assert worst <= 1e-5, f"{where}: relative difference {worst:.2e}"


@pytest.mark.parametrize("learners", LEARNERS[:1], indirect=True, ids="-".join)
def test_a_step_after_restore_is_bit_equal_to_the_uninterrupted_one(
    learners,
    cluster: Cluster,
    models: dict[str, Path],
    tmp_path: Path,
    request: pytest.FixtureRequest,
):
    """Two steps, checkpoint, third step; a fresh process restores and takes the third step."""
    group, first = learners[1]
    data = batch("balanced", {})
    group.restore(first)
    group.load([cut(data, 1, 200)])
    group.step(0, 0)
    group.step(0, 1)
    group.save(tmp_path / "saved")
    group.step(0, 2)
    group.save(tmp_path / "uninterrupted")
    fresh = start_learner(
        cluster, spec(models["tied"], *request.node.callspec.params["learners"]), 1
    )
    fresh.restore(tmp_path / "saved")
    fresh.load([cut(data, 1, 200)])
    fresh.step(0, 2)
    fresh.save(tmp_path / "resumed")
    for worker in fresh.workers:
        worker.kill()
    resumed, expected = weights(tmp_path / "resumed"), weights(tmp_path / "uninterrupted")
    assert all(torch.equal(resumed[name], expected[name]) for name in expected)


@pytest.mark.parametrize("learners", LEARNERS[:2], indirect=True, ids="-".join)
@pytest.mark.parametrize("ranks", [1, 2])
def test_states_that_rested_in_host_memory_take_the_same_step(learners, ranks: int, tmp_path: Path):
    """To the bit, with torch's optimizers, whose states DeepSpeed does not move itself; before
    the first step, when there are no moments yet, and after it. The same with the weights."""
    group, first = learners[ranks]
    data = cut(batch("balanced", {}), ranks, 120)
    expected, *found = (weights(kept) for kept in rested(group, first, data, tmp_path))
    start = weights(first)
    for after in found:
        assert all(torch.equal(after[name], expected[name]) for name in expected)
        assert not all(torch.equal(after[name], start[name]) for name in start)


@pytest.mark.parametrize("learners", LEARNERS[:1], indirect=True, ids="-".join)
def test_the_exported_folder_loads_in_transformers_and_scores_alike(learners, tmp_path: Path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    group, _ = learners[1]
    group.save(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    assert AutoTokenizer.from_pretrained(tmp_path / "hf").decode([3, 4]) != ""
    tokens = [3, 7, 4, 8, 5, 9]
    with torch.no_grad():
        logprobs = model(torch.tensor([tokens])).logits[0].log_softmax(-1)
    expected = [float(logprobs[i, t]) for i, t in enumerate(tokens[1:])]
    assert np.allclose(group.score(tokens), expected, atol=1e-5)


def test_deepspeed_has_the_buckets_that_the_prediction_of_memory_counts_on():
    """Its own would hold 2 GB of gradients back and step a whole shard's temporaries at once."""
    from grpo.learner.zero import zero_config

    zero = zero_config(LearnerConfig(), "float32")["zero_optimization"]
    setting = LearnerSetting(
        shape=ModelShape.of(Qwen3Config()), dtype="float32", device="cpu", ranks=1, tokens=1,
        targets=1,
    )  # fmt: skip
    assert zero["reduce_bucket_size"] == setting.reduce_bucket == 50_000_000
    assert zero["sub_group_size"] == setting.sub_group == 100_000_000
