"""What end-to-end tests share: small models, one Ray, engines and learners of a kind."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from grpo.config.recipe import BuildConfig, Recipe, SyncConfig
from grpo.fleet.cluster import Cluster, gather
from grpo.fleet.engines import RolloutPool
from grpo.fleet.learner import Learner
from grpo.fleet.weights import WeightSync
from grpo.learner.build import build_model, build_tokenizer, save_pretrained
from grpo.learner.spec import LearnerSpec
from grpo.rollout.engine import EngineSpec
from tests.e2e import real

CANARY = [3, 7, 4, 8, 5, 9, 6, 10]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "e2e" in item.path.parts:
            item.add_marker(pytest.mark.e2e)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Random Qwen3s of two layers: "tied" and "untied"."""
    folders: dict[str, Path] = {}
    for name, tied in (("tied", True), ("untied", False)):
        config = BuildConfig(
            alphabet="0123456789+=}\n", layers=2, hidden_size=64, heads=2, kv_heads=1,
            intermediate_size=128, context=256, tie_embeddings=tied,
        )  # fmt: skip
        tokenizer = build_tokenizer(config)
        folders[name] = tmp_path_factory.mktemp(name)
        save_pretrained(build_model(config, tokenizer, seed=1), tokenizer, folders[name])
    return folders


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct."""
    return real.fetched()


@pytest.fixture(scope="session")
def wide(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with more rows in its embedding than there are tokens, and two end tokens."""
    return real.widened(smollm2, tmp_path_factory.mktemp("real") / "wide")


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("logs")) as running:
        yield running


def learner_spec(
    model: Path, learner: Mapping[str, object] | None = None, /, **sections: object
) -> LearnerSpec:
    """One thread, float32, and buckets so small that there are several."""
    settings = {"lr": 1e-2, "warmup_steps": 0, "weight_decay": 0.0, **(learner or {})}
    keys = {
        "name": "test",
        "model": {"path": str(model), "dtype": "float32", "gradient_checkpointing": False},
        "data": {"name": "none", "path": "none.jsonl"},
        "schedule": {"steps": 100},
        "learner": settings,
    }
    recipe = Recipe.model_validate(keys | sections)
    return LearnerSpec(str(model), recipe, "gloo", bucket_bytes=100_000, threads=1)


def start_learner(cluster: Cluster, spec: LearnerSpec, ranks: int) -> Learner:
    return Learner(cluster.learner_ranks(spec, ranks), timeout_s=300)


def start_engines(cluster: Cluster, model: Path, count: int = 1) -> RolloutPool:
    """Without weights, as a run starts them."""
    spec = EngineSpec(str(model), "float32", 0, None, 1, "grpo_gloo", {"load_format": "dummy"})
    pool = RolloutPool(cluster.rollout_workers(spec, count, None), timeout_s=300)
    pool.start()
    return pool


@dataclass(frozen=True)
class Pair:
    """A learner and an engine that have met."""

    learner: Learner
    rollouts: RolloutPool
    sync: WeightSync

    def stop(self) -> None:
        for worker in [*self.learner.workers, *self.rollouts.workers]:
            worker.kill()


def start_pair(cluster: Cluster, model: Path, ranks: int, engines: int = 1) -> Pair:
    learner = start_learner(cluster, learner_spec(model), ranks)
    rollouts = start_engines(cluster, model, engines)
    gather([worker.call("num_weight_bytes") for worker in learner.workers], 300)
    sync = WeightSync(learner, rollouts, SyncConfig(timeout_s=60), "gloo", CANARY)
    sync.open(cluster, tensor_parallel=1)
    return Pair(learner, rollouts, sync)


@pytest.fixture(scope="module", params=["tied", "untied"])
def pair(
    request: pytest.FixtureRequest, cluster: Cluster, models: dict[str, Path]
) -> Iterator[Pair]:
    """One learner rank for the tied model, two for the untied one."""
    started = start_pair(cluster, models[request.param], ranks=1 if request.param == "tied" else 2)
    started.sync.update(0)
    yield started
    started.stop()
