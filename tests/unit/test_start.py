"""Engines and learner come up side by side, and on shared GPUs in turns: the calls, in order."""

from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import Qwen3ForCausalLM

from grpo.config.recipe import Recipe, SyncConfig
from grpo.errors import UserError
from grpo.fleet.placement import Placement, place, share_for
from grpo.fleet.start import engine_spec, needed_everywhere, start_workers
from grpo.fleet.weights import WeightSync
from grpo.learner.memory import GIB, LearnerSetting, setting_of, share_beside
from grpo.learner.model_files import buffers_to_load
from tests.unit.small_models import small_model

RECIPE = Recipe.model_validate(
    {
        "name": "r",
        "model": {"path": "m"},
        "data": {"name": "d", "path": "d.jsonl"},
        "rollout": {"engines": 2},
        "learner": {"ranks": 2},
        "schedule": {"steps": 1},
    }
)


class Worker:
    """Answers at once and writes down what it was asked."""

    log = Path("log")

    def __init__(self, name: str, calls: list[str]):
        self.name, self.usual = name, dict[str, float]()
        self._calls = calls

    def call(self, method: str, *args: Any) -> Any:
        self._calls.append(" ".join([self.name, method, *map(str, args)]))
        future: Future[Any] = Future()
        future.set_result([-1.0] if method == "score" else None)
        made: dict[str, Any] = {"worker": self, "method": method, "future": future}
        return type("Call", (), made | {"result": lambda _: future.result()})()


class Cluster:
    def __init__(self) -> None:
        self.calls: list[str] = []

    def reserve(self, engines: int, parallel: int, ranks: int) -> None:
        self.calls.append(f"{engines} x {parallel} GPUs and {ranks} are kept")

    def check_shared(self, others: Any) -> None:
        self.calls.append("folders are looked at")

    def rollout_workers(self, spec: Any, count: int, threads: int | None) -> list[Worker]:
        self.calls.append("engines are made")
        return [Worker(f"engine{i}", self.calls) for i in range(count)]

    def learner_ranks(self, spec: Any, count: int) -> list[Worker]:
        self.calls.append("ranks are made")
        return [Worker(f"rank{i}", self.calls) for i in range(count)]

    def meeting_point(self, worker: Worker) -> tuple[str, int]:
        self.calls.append(f"{worker.name} says where")
        return "10.0.0.2", 4711

    def push_to(self, workers: Any, timeout_s: float) -> None: ...


def started(colocated: bool, rest_weights: bool = False) -> tuple[Any, Any, list[str]]:
    cluster: Any = Cluster()
    transport = "ipc" if colocated else "nccl"
    placement = Placement(colocated, transport, None, None, 99)
    rollouts, learner = start_workers(cluster, RECIPE, "m", placement)
    shares = {"colocated": colocated, "rest_weights": rest_weights}
    sync = WeightSync(learner, rollouts, SyncConfig(), transport, [1, 2], **shares)
    made = list(cluster.calls)
    cluster.calls.clear()
    sync.open(cluster, 1)
    cluster.calls.clear()
    return sync, made, cluster.calls


def test_an_engine_takes_what_a_resting_learner_leaves_unless_the_recipe_says_otherwise():
    shared = Placement(True, "ipc", None, None, 99, engine_share=0.77)
    empty = {"load_format": "dummy"}  # the first update brings the weights
    assert engine_spec(RECIPE, "m", shared).extra == empty | {"gpu_memory_utilization": 0.77}
    own = RECIPE.model_copy(deep=True)
    own.rollout.engine["gpu_memory_utilization"] = 0.5
    assert engine_spec(own, "m", shared).extra == empty | {"gpu_memory_utilization": 0.5}
    assert engine_spec(RECIPE, "m", replace(shared, engine_share=None)).extra == empty
    assert (
        engine_spec(RECIPE, "m", Placement(False, "nccl", None, None, 9, None, False)).extra == {}
    )


@pytest.mark.parametrize(
    ("parameters", "gib", "share"),
    [
        # 1.7 billion in bfloat16 are 3.17 GiB; 2 GiB for both processes
        (1_700_000_000, 80, 0.92),
        (1_700_000_000, 24, 0.78),  # 1 - 5.17 / 24 = 0.785
        (7_000_000_000, 24, 0.37),  # 1 - 15.04 / 24 = 0.373
        (7_000_000_000, 12, 0.0),
    ],
)
def test_the_share_is_what_weights_and_processes_leave(parameters: int, gib: int, share: float):
    shape: Any = SimpleNamespace(parameters=parameters)
    setting = LearnerSetting(shape, "bfloat16", "cuda", ranks=1, tokens=1, targets=1)
    assert share_beside(setting, gib * GIB) == share


def test_a_gpu_on_which_two_copies_of_the_weights_do_not_fit_is_refused_before_anything_starts():
    shape: Any = SimpleNamespace(parameters=7_000_000_000)
    one = RECIPE.model_copy(update={"learner": RECIPE.learner.model_copy(update={"ranks": 1})})
    assert share_for(one, shape, 80 * GIB) == 0.81  # 1 - 15.04 / 80
    with pytest.raises(UserError, match=r"24 GiB is too small .* the learner 8\.9 GiB are left"):
        share_for(one, shape, 24 * GIB)


# Nothing is loaded before the machines have room and see the same folders.
BEFORE = ["2 x 1 GPUs and 2 are kept", "folders are looked at"]


def each(who: str, what: str) -> list[str]:
    return [f"{who}{i} {what}" for i in range(2)]


def test_on_gpus_of_their_own_ranks_and_engines_are_asked_in_one_go():
    _, made, _ = started(colocated=False)
    assert made == [
        *BEFORE,
        "engines are made",
        "ranks are made",
        *each("rank", "num_weight_bytes"),
        *each("engine", "start"),
    ]


def test_on_shared_gpus_the_engines_are_asleep_when_the_learner_comes():
    _, made, _ = started(colocated=True)
    assert made == [
        *BEFORE,
        "engines are made",
        *each("engine", "start"),
        *each("engine", "sleep"),
        "ranks are made",
        *each("rank", "num_weight_bytes"),
    ]


@pytest.mark.parametrize("rest_weights", [False, True])
def test_the_first_update_on_shared_gpus_makes_room_before_it_wakes_the_engines(rest_weights: bool):
    """And the learner scores the canary before the engines' cache takes what is free."""
    sync, _, calls = started(True, rest_weights)
    sync.update(0)
    assert calls == [
        *each("rank", "offload"),
        *each("engine", "wake weights"),
        *each("engine", "start_update"),
        *each("rank", "send"),
        *each("engine", "finish_update 0"),
        *each("rank", "score [1, 2]"),
        *each("rank", f"rest {rest_weights}"),
        *each("engine", "wake kv_cache"),
        *each("engine", "resume"),
    ]
    calls.clear()
    sync.check_canary("float32")
    assert calls == each("engine", "score [1, 2]"), "the learner has scored"
    calls.clear()
    sync.release_gpus()
    assert calls == [*each("engine", "sleep"), *each("rank", "reload")]


@pytest.mark.parametrize("colocated", [False, True])
def test_a_step_begins_and_ends_with_engines_that_are_awake(colocated: bool):
    sync, _, calls = started(colocated)
    for version in range(3):
        sync.update(version)
        assert calls[-2:] == each("engine", "resume")
        sync.release_gpus()


def test_both_sides_of_an_update_meet_on_the_machine_of_the_learners_rank_0():
    cluster: Any = Cluster()
    rollouts, learner = start_workers(cluster, RECIPE, "m", Placement(False, "gloo", 1, 1, 99))
    sync = WeightSync(learner, rollouts, SyncConfig(), "gloo", [1, 2])
    cluster.calls.clear()
    sync.open(cluster, 1)
    first, *opened = cluster.calls[:5]
    assert first == "rank0 says where"
    assert all("10.0.0.2" in call and "4711" in call for call in opened)


def test_a_plugin_in_the_working_directory_must_be_on_every_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("GRPO_WORKING_DIRECTORY", str(tmp_path))
    assert list(needed_everywhere("/m", ["mine.rewards"])) == [Path("/m/config.json")]
    (tmp_path / "mine").mkdir()
    needed = needed_everywhere("/m", ["mine.rewards", "installed_elsewhere"])
    assert list(needed) == [Path("/m/config.json"), tmp_path / "mine"]
    assert "the plugin mine.rewards" in needed[tmp_path / "mine"]


def test_weights_that_make_room_where_nothing_is_shared_are_refused():
    keys: dict[str, Any] = RECIPE.model_dump() | {"placement": "disaggregated"}
    keys["learner"]["offload_weights"] = True
    with pytest.raises(ValueError, match="they share none: leave it out, or set placement"):
        Recipe.model_validate(keys)
    assert Recipe.model_validate(keys | {"placement": "auto"}).learner.offload_weights


def changed(section: str, **keys: Any) -> Recipe:
    whole = RECIPE.model_dump()
    return Recipe.model_validate(whole | {section: whole[section] | keys})


def test_an_engine_that_needs_more_than_an_update_brings_starts_with_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model = str(small_model(tmp_path))
    recipe = changed("rollout", max_tokens=8)
    assert place(recipe, model).starts_empty
    drafts = {"speculative_config": {"method": "ngram", "num_speculative_tokens": 2}}
    assert not place(changed("rollout", max_tokens=8, engine=drafts), model).starts_empty
    init = Qwen3ForCausalLM.__init__

    def with_a_buffer(self: Any, config: Any) -> None:
        init(self, config)
        self.register_buffer("bias", torch.zeros(2))
        self.register_buffer("made", torch.zeros(2), persistent=False)

    monkeypatch.setattr(Qwen3ForCausalLM, "__init__", with_a_buffer)
    assert buffers_to_load(model) == ["bias"]
    assert not place(recipe, model).starts_empty


def test_the_reference_of_a_kl_penalty_stays_on_the_card_unless_adapters_train():
    """7 GiB of weights, once more as the reference, and 2 GiB for both processes: of 80 GiB 64 are
    left, 71 where the learner's own rest in host memory. 1 - 16 / 80 and 1 - 9 / 80."""
    shape: Any = SimpleNamespace(parameters=7 * GIB // 2)
    both = LearnerSetting(shape, "bfloat16", "cuda", 1, tokens=1, targets=1, reference=True)
    assert share_beside(both, 80 * GIB) == 0.8
    assert share_beside(replace(both, offload_weights=True), 80 * GIB) == 0.88
    assert setting_of(changed("regularization", kl=0.1), shape, "cuda").reference
    assert not setting_of(RECIPE, shape, "cuda").reference
    adapted = changed("regularization", kl=0.1).model_dump()
    adapted["learner"]["lora"] = {"rank": 8}
    assert not setting_of(Recipe.model_validate(adapted), shape, "cuda").reference
