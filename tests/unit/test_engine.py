"""What an engine on a CPU is started with, and how engines and learner share the cores."""

import os
from pathlib import Path

import pytest

from grpo.config.load import load_recipe
from grpo.fleet.placement import engine_threads, learner_threads
from grpo.rollout.engine import EngineSpec, engine_arguments, engine_environment

TINY = Path("recipes/tiny_cpu.yaml")


@pytest.fixture(autouse=True)
def eight_cores_and_no_gpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    for module in ("grpo.rollout.engine", "grpo.fleet.placement"):
        monkeypatch.setattr(f"{module}.on_gpu", lambda: False)


@pytest.mark.parametrize(
    ("overrides", "of_an_engine", "of_a_rank"),
    [
        ([], 8, 8),
        (["rollout.engines=2", "learner.ranks=2"], 4, 4),
        (["schedule.max_staleness=1"], 4, 4),
        (["schedule.max_staleness=1", "rollout.engines=2", "learner.ranks=4"], 2, 1),
        (["rollout.engines=16"], 1, 8),
        (["rollout.tensor_parallel=2"], None, 8),
        (["rollout.tensor_parallel=2", "schedule.max_staleness=1"], 4, 4),
    ],
)
def test_all_eight_cores_are_shared_out_and_each_side_has_half_where_both_work_at_once(
    overrides: list[str], of_an_engine: int | None, of_a_rank: int
):
    recipe = load_recipe(TINY, overrides)
    assert engine_threads(recipe) == of_an_engine
    assert learner_threads(recipe) == of_a_rank


def spec(tensor_parallel: int) -> EngineSpec:
    return EngineSpec("model", "float32", 0, None, tensor_parallel, "gloo", {"max_num_seqs": 7})


def test_an_engine_of_one_worker_has_no_process_for_it_beside_the_engines_core():
    assert engine_arguments(spec(1))["distributed_executor_backend"] == "uni"
    environment = engine_environment(threads=3)
    assert environment["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    assert environment["OMP_NUM_THREADS"] == "3"
    assert engine_environment()["OMP_NUM_THREADS"] == "8"


def test_an_engine_of_two_workers_has_a_process_for_each():
    assert engine_arguments(spec(2))["distributed_executor_backend"] == "mp"
    environment = engine_environment(tensor_parallel=2)
    assert "VLLM_ENABLE_V1_MULTIPROCESSING" not in environment
    assert environment["VLLM_CPU_OMP_THREADS_BIND"] == "auto"


@pytest.mark.parametrize(("threads", "of_a_worker"), [(4, "2"), (5, "2"), (1, "1")])
def test_an_engines_threads_are_shared_out_among_its_workers(threads: int, of_a_worker: str):
    environment = engine_environment(threads, tensor_parallel=2)
    assert environment["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    assert environment["OMP_NUM_THREADS"] == of_a_worker


def test_what_the_recipe_says_of_the_engine_goes_before_our_own_choice():
    assert engine_arguments(spec(1))["max_num_seqs"] == 7


def test_on_gpus_too_an_engine_starts_its_own_workers_and_no_ray_actors(
    monkeypatch: pytest.MonkeyPatch,
):
    """Within a placement group vLLM would choose Ray, for GPUs that the engine's process holds."""
    monkeypatch.setattr("grpo.rollout.engine.on_gpu", lambda: True)
    backends = [engine_arguments(spec(n))["distributed_executor_backend"] for n in (1, 2)]
    assert backends == ["uni", "mp"]
