"""Two Ray nodes with four GPUs each, neither of which is real: places are kept where the table
says, workers go there, and rank 0 is met where it runs. What the workers do is not asked here."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster as FakeNodes
from ray.util.placement_group import placement_group_table

from grpo.errors import RunError, UserError
from grpo.fleet import nodes
from grpo.fleet.cluster import Cluster, gather
from grpo.fleet.placement import machines
from grpo.rollout.engine import EngineSpec
from tests.e2e import placed_worker
from tests.unit.layouts import NODES, PLACED, Row

PATIENCE_S = 100
NODE: dict[str, Any] = {"num_cpus": 4, "num_gpus": 4, "object_store_memory": 80_000_000}
SPEC: Any = EngineSpec("none", "float32", 0, 8, 1, "gloo", {})


@pytest.fixture(scope="module")
def fake(request: pytest.FixtureRequest) -> Iterator[FakeNodes]:
    # A process speaks to one Ray only: that of the other tests comes back afterwards.
    other = request.getfixturevalue("cluster") if ray.is_initialized() else None
    if other is not None:
        other.__exit__()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")  # the fake nodes know no token
        started = FakeNodes(
            initialize_head=True, head_node_args=NODE | {"include_dashboard": False}
        )
        started.add_node(**NODE)
        patch.setenv("RAY_ADDRESS", str(started.address))
        nodes.forget_machines()
        yield started
        started.shutdown()
    if other is not None:
        other.__enter__()


@pytest.fixture
def gpus(fake: FakeNodes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grpo.fleet.cluster.on_gpu", lambda: True)
    monkeypatch.setattr("grpo.fleet.cluster._make_rollout_worker", placed_worker.make_engine)
    monkeypatch.setattr("grpo.fleet.cluster._make_learner_rank", placed_worker.make_rank)
    monkeypatch.setattr("grpo.fleet.cluster._Host", placed_worker.Host)


@dataclass(frozen=True)
class Found:
    """The node of each worker, 0 is the driver's; their GPUs, as (node, number)."""

    engines: str
    ranks: str
    gpus: list[tuple[str, str]]
    meets: set[tuple[str, int]]
    first: tuple[str, int]


def placed(row: Row, logs: Path) -> Found:
    with Cluster(logs, row.placement == "colocated") as cluster:
        cluster.reserve(row.engines, row.parallel, row.ranks)
        engines = cluster.rollout_workers(_spec(row.parallel), row.engines, None)
        ranks = cluster.learner_ranks(SPEC, row.ranks)
        here = ray.get_runtime_context().get_node_id()
        found = gather([worker.call("where") for worker in engines + ranks], PATIENCE_S)
        for worker, (node, _, _) in zip(engines + ranks, found, strict=True):
            assert worker.node is not None and worker.node.id == node
        meets = gather([rank.call("meets_at") for rank in ranks], PATIENCE_S)
    on = ["0" if node == here else "1" for node, _, _ in found]
    first = found[len(engines)]
    return Found(
        engines="".join(on[: row.engines]),
        ranks="".join(on[row.engines :]),
        gpus=[(node, gpu) for node, _, visible in found for gpu in visible.split(",")],
        meets=set(meets),
        first=(first[0], int(first[1])),
    )


def _spec(parallel: int) -> EngineSpec:
    return EngineSpec("none", "float32", 0, 8, parallel, "gloo", {})


@pytest.mark.parametrize("row", PLACED, ids=str)
def test_places_are_kept_on_the_nodes_of_the_table(gpus: None, row: Row, tmp_path: Path):
    """As Ray itself says where they are."""
    shared = row.placement == "colocated" or row.engines + row.ranks > sum(NODES)
    with Cluster(tmp_path, shared) as cluster:
        cluster.reserve(row.engines, row.parallel, row.ranks)
        here = ray.get_runtime_context().get_node_id()
        found = placement_group_table(cluster._group)
    nodes_of = found["bundles_to_node_id"]
    on = "".join("0" if nodes_of[i] == here else "1" for i in range(len(nodes_of)))
    assert on == (row.on_ranks if shared else row.on_engines + row.on_ranks)
    if not shared:
        sizes = [int(found["bundles"][i]["GPU"]) for i in range(len(nodes_of))]
        assert sizes == [row.parallel] * row.engines + [1] * row.ranks


# One whose learner is on both nodes, with an engine of three GPUs, and one of pairs.
WITH_WORKERS = [row for row in PLACED if str(row) in ("disaggregated-1x3-5", "colocated-3x1-3")]


@pytest.mark.parametrize("row", WITH_WORKERS, ids=str)
def test_workers_go_to_their_places_and_ranks_meet_in_the_process_of_rank_0(
    gpus: None, row: Row, tmp_path: Path
):
    found = placed(row, tmp_path)
    assert (found.engines, found.ranks) == (row.on_engines, row.on_ranks)
    assert found.meets == {found.first}
    uses = 2 if row.placement == "colocated" else 1
    assert set(Counter(found.gpus).values()) == {uses}


def test_the_gpus_of_every_node_are_asked_for(fake: FakeNodes):
    assert machines() == NODES
    assert not ray.is_initialized()


def test_what_cannot_be_placed_is_refused_and_not_waited_for(gpus: None, tmp_path: Path):
    with Cluster(tmp_path) as cluster, pytest.raises(UserError) as raised:
        cluster.reserve(1, 5, 1)
    assert "pieces of 5 + 1, each within one machine, and Ray has 8 on 2 machines (4 + 4)" in str(
        raised.value
    )


def test_gpus_that_something_else_holds_are_named_after_a_while(
    gpus: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(nodes, "RESERVE_S", 2.0)
    with Cluster(tmp_path) as cluster:
        cluster.reserve(1, 4, 2)
        held = cluster._group
        cluster._group = None  # as if it were another run's
        with pytest.raises(RunError) as raised:
            cluster.reserve(2, 2, 2)
        nodes.give_back(held)
        cluster.reserve(2, 2, 2)
    assert "could not be had within 2 s: it needs 2 + 2 on " in str(raised.value)
    assert "; 1 + 1 on " in str(raised.value)
    assert "`ray status`" in str(raised.value)


def test_a_rank_that_cannot_be_made_says_so_to_the_next_call(gpus: None, tmp_path: Path):
    broken: Any = EngineSpec("broken", "float32", 0, 8, 1, "gloo", {})
    with Cluster(tmp_path) as cluster, pytest.raises(RunError) as raised:
        cluster.reserve(0, 1, 1)
        (rank,) = cluster.learner_ranks(broken, 1)
        gather([rank.call("num_weight_bytes")], PATIENCE_S)
    assert "learner-0 failed in num_weight_bytes: ValueError: rank 0 cannot be made" in str(
        raised.value
    )
    assert "ValueError: rank 0 cannot be made" in (tmp_path / "learner-0.log").read_text()


def test_the_other_node_gets_the_drivers_environment_and_reads_the_log_of_its_dead_worker(
    gpus: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "eth7")
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setattr(nodes, "last_lines", placed_worker.last_lines_and_reader)
    with Cluster(tmp_path) as cluster:
        cluster.reserve(1, 4, 1)
        (engine,) = cluster.rollout_workers(_spec(4), 1, None)
        (seen,) = gather([engine.call("environment")], PATIENCE_S)
        with pytest.raises(RunError) as raised:
            gather([engine.call("say_and_die", "the last word")], PATIENCE_S)
        other = cluster._nodes[1].id
    assert seen["NCCL_SOCKET_IFNAME"] == "eth7" and "HF_TOKEN" not in seen
    assert seen["GRPO_WORKING_DIRECTORY"] == os.getcwd()
    assert len(seen["CUDA_VISIBLE_DEVICES"].split(",")) == 4
    assert f"the last word\nread by {other}" in str(raised.value)


def test_a_log_on_a_node_that_is_gone_is_said_to_be_there(gpus: None, tmp_path: Path):
    log = tmp_path / "learner-1.log"
    gone = nodes.Node("f" * 56, "10.0.0.9", 4)
    with Cluster(tmp_path):
        assert nodes.tail(log, 15, gone) == "(the machine 10.0.0.9 has left the cluster)"
        log.write_text("one\ntwo\n")
        assert nodes.tail(log, 1, gone) == "two\n(the machine 10.0.0.9 has left the cluster)"


def test_a_folder_that_a_node_does_not_see_is_named_with_the_mend(
    gpus: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(nodes, "_APPEAR_S", 0.5)
    config = tmp_path / "model" / "config.json"
    with Cluster(tmp_path / "logs") as cluster:
        cluster.reserve(1, 4, 1)
        address = cluster._nodes[1].address
        with pytest.raises(UserError) as raised:
            cluster.check_shared({config: "copy it"})
        assert str(raised.value) == (
            f"the machine {address} does not see {config} as this one does: copy it"
        )
        config.parent.mkdir()
        config.touch()
        cluster.check_shared({config: "copy it"})
        # The other node looks at a disk of its own.
        monkeypatch.setattr(nodes, "_missing", placed_worker.missing_elsewhere)
        with pytest.raises(UserError, match=r"does not see .*/logs as this one does: put the run"):
            cluster.check_shared({})
    assert [path.name for path in (tmp_path / "logs").iterdir()] == []
