"""Everything that can go wrong with the first weights is named before anything is sampled."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from grpo.batch.cut import cut
from grpo.config.recipe import SyncConfig
from grpo.errors import RunError
from grpo.fleet import cluster as cluster_module
from grpo.fleet.cluster import Cluster, gather
from grpo.fleet.weights import WeightSync
from tests.e2e import faulty
from tests.e2e.conftest import CANARY, Pair, start_pair
from tests.e2e.steps import batch


@pytest.fixture(scope="module")
def sharp(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tied model with weights five times as large: each of its tensors matters, as in a model
    that was trained."""
    folder = tmp_path_factory.mktemp("sharp")
    for file in models["tied"].iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.mul_(5)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pair(cluster: Cluster, sharp: Path) -> Iterator[Pair]:
    """A rank and two engines that do as they are told, the engines without weights yet."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluster_module, "_make_learner_rank", faulty.make_rank)
        patch.setattr(cluster_module, "_make_rollout_worker", faulty.make_engine)
        started = start_pair(cluster, sharp, ranks=1, engines=2)
    yield started
    started.stop()


def plant(pair: Pair, fault: str, name: str = "") -> None:
    pair.learner.everywhere("plant", fault, name)


def start_over(pair: Pair) -> None:
    """As engines are before their first update."""
    plant(pair, "dummy")
    pair.sync.update(0)
    plant(pair, "none")


def test_engines_start_without_weights_and_one_update_brings_all_of_them(pair: Pair):
    with pytest.raises(RunError, match="rollout-0 and the learner score the same 7 tokens"):
        pair.sync.check_canary("float32")
    pair.sync.update(0)
    assert pair.sync.check_canary("float32").largest <= 1e-4


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("fault", "name"),
    [
        ("dummy", "embed_tokens.weight"),
        ("dummy", "layers.1.self_attn.v_proj.weight"),
        ("dummy", "layers.0.mlp.down_proj.weight"),
        ("dummy", "layers.1.input_layernorm.weight"),
        ("backwards", "layers.0.self_attn.o_proj.weight"),
    ],
)
def test_one_tensor_that_is_wrong_is_seen_at_the_start(
    pair: Pair, fault: str, name: str, dtype: str
):
    start_over(pair)
    plant(pair, fault, name)
    pair.sync.update(0)
    with pytest.raises(RunError, match=r"nats apart .* furthest apart is token") as raised:
        pair.sync.check_canary(dtype)
    assert "To go on, try another sync.transport" in str(raised.value)
    plant(pair, "none")
    pair.sync.update(0)
    assert pair.sync.check_canary("float32").largest <= 1e-4


def test_nan_in_what_an_engine_got_is_called_nan_and_the_engine_is_named(pair: Pair):
    plant(pair, "nan", "layers.0.mlp.up_proj.weight")
    pair.sync.update(0)
    with pytest.raises(RunError, match=r"rollout-0 scores nan at token 1 .* the learner does not"):
        pair.sync.check_canary("float32")
    plant(pair, "none")
    pair.sync.update(0)


def test_of_two_engines_the_one_whose_head_is_stale_is_named(pair: Pair):
    """Where a tied head is a packed copy, as on some CPUs, every update must pack it again."""
    start_over(pair)
    gather([pair.rollouts.workers[1].call("forget_the_head")], 60)
    pair.sync.update(0)
    with pytest.raises(RunError, match="rollout-1 and the learner score the same 7 tokens"):
        pair.sync.check_canary("float32")


def test_no_parameter_keeps_the_memory_of_weights_that_rest(pair: Pair):
    """DeepSpeed keeps gathered what the next pass needs first, once it knows a pass."""
    data = cut(batch("token_mean", {}), 1, 10**6)
    pair.learner.load([data])
    pair.learner.step(0, 0)
    pair.learner.score(CANARY)
    assert pair.learner.everywhere("kept_after_rest", CANARY) == [0]


def test_a_tensor_that_is_never_sent_is_seen_at_the_start(pair: Pair, cluster: Cluster):
    start_over(pair)
    pair.learner.everywhere("leave_out", "layers.1.mlp.gate_proj.weight")
    config = SyncConfig(timeout_s=60)
    sync = WeightSync(pair.learner, pair.rollouts, config, "gloo", CANARY)
    sync.open(cluster, tensor_parallel=1)
    sync.update(0)
    # The engine's memory for it is as it was found there: numbers, or none.
    named = r"rollout-[01] (and the learner .* furthest apart is token|scores (nan|-?inf))"
    with pytest.raises(RunError, match=named):
        sync.check_canary("float32")
