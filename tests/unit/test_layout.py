"""Which layouts of engines and ranks can be placed on so many GPUs, before anything starts."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import combinations, combinations_with_replacement, product
from pathlib import Path
from typing import Any

import pytest

from grpo.config.recipe import Recipe
from grpo.errors import UserError
from grpo.fleet import placement
from grpo.fleet.bundles import Seats, Wanted, most_engines, seat, spread
from grpo.fleet.placement import check_layout, is_colocated, layout_fault, machines_fault, place
from tests.unit.layouts import NODES, PLACED, REFUSED, Row
from tests.unit.planned import QWEN3_06B


def recipe(kind: str, engines: int, parallel: int, ranks: int, staleness: int = 0) -> Recipe:
    keys: dict[str, Any] = {
        "name": "r",
        "model": {"path": "m"},
        "data": {"name": "d", "path": "d.jsonl"},
        "placement": kind,
        "rollout": {"engines": engines, "tensor_parallel": parallel},
        "learner": {"ranks": ranks},
        "schedule": {"steps": 1, "max_staleness": staleness},
    }
    return Recipe.model_validate(keys)


@pytest.fixture(autouse=True)
def no_ray_elsewhere(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.mark.parametrize(
    ("kind", "engines", "parallel", "ranks", "gpus", "shares"),
    [
        ("auto", 1, 1, 1, None, False),  # on CPU
        ("auto", 1, 1, 4, None, False),
        ("auto", 1, 1, 1, 1, True),
        ("auto", 1, 1, 1, 2, False),
        ("auto", 8, 1, 8, 8, True),
        ("auto", 4, 1, 4, 8, False),
        ("auto", 2, 2, 4, 8, False),
        ("disaggregated", 6, 1, 2, 8, False),
        ("disaggregated", 1, 4, 4, 8, False),
        ("colocated", 8, 1, 8, 8, True),
        ("colocated", 2, 1, 2, 8, True),
    ],
)
def test_a_layout_that_fits_is_placed_as_it_says(
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    engines: int,
    parallel: int,
    ranks: int,
    gpus: int | None,
    shares: bool,
):
    asked = recipe(kind, engines, parallel, ranks)
    assert layout_fault(asked, gpus) is None
    monkeypatch.setattr(placement, "gpus_here", lambda: gpus)
    assert is_colocated(asked) == shares


@pytest.mark.parametrize(
    ("kind", "engines", "parallel", "ranks", "gpus", "said"),
    [
        ("auto", 1, 1, 4, 4, "auto on 4 GPUs is colocated and shares each GPU between one engine"),
        ("auto", 4, 2, 4, 8, "tensor_parallel must be 1, and engines as many as learner.ranks, 4"),
        ("auto", 4, 1, 4, 2, "needs a GPU for each of 4 engines and ranks, and there are 2"),
        ("colocated", 1, 1, 2, 8, "rollout.engines is 1"),
        ("colocated", 2, 1, 2, 1, "set rollout.engines and learner.ranks to 1 at most"),
        ("colocated", 1, 1, 2, None, "learner.ranks, 2"),
        ("disaggregated", 6, 1, 4, 8, "placement disaggregated needs 10 GPUs, and there are 8"),
        ("disaggregated", 1, 8, 1, 8, "rollout.tensor_parallel is 8"),
    ],
)
def test_a_layout_that_does_not_fit_is_refused_with_what_would(
    kind: str, engines: int, parallel: int, ranks: int, gpus: int | None, said: str
):
    assert said in str(layout_fault(recipe(kind, engines, parallel, ranks), gpus))


def test_work_that_overlaps_cannot_share():
    fault = layout_fault(recipe("auto", 1, 1, 1, staleness=1), 1)
    assert "need 2 GPUs, but there are 1. Set it to 0" in str(fault)
    assert layout_fault(recipe("auto", 1, 1, 1, staleness=1), 2) is None
    # Before what else would be wrong with sharing.
    fault = layout_fault(recipe("auto", 2, 1, 4, staleness=1), 4)
    assert "need 6 GPUs, but there are 4. Set it to 0" in str(fault)


# --- several machines ---


def asked(row: Row) -> Recipe:
    return recipe(row.placement, row.engines, row.parallel, row.ranks)


@pytest.mark.parametrize("row", PLACED, ids=str)
def test_every_worker_has_its_machine(row: Row, monkeypatch: pytest.MonkeyPatch):
    assert layout_fault(asked(row), NODES) is None
    monkeypatch.setattr(placement, "gpus_of_run", lambda: NODES)
    shared = is_colocated(asked(row))
    seats = seat(Wanted(row.engines, row.parallel, row.ranks, shared), NODES)
    assert seats == Seats(tuple(map(int, row.on_engines)), tuple(map(int, row.on_ranks)))


@pytest.mark.parametrize(("row", "said"), REFUSED, ids=str)
def test_what_two_machines_cannot_hold_is_refused_with_the_reason(row: Row, said: str):
    assert said in str(layout_fault(asked(row), NODES))


def test_an_engine_is_never_cut_though_there_would_be_gpus_enough():
    fault = layout_fault(recipe("disaggregated", 3, 3, 1), (5, 5))
    assert "rollout.engines is 3, and 2 of 3 GPUs each can be placed" in str(fault)
    assert "10 on 2 machines (5 + 5)" in str(fault)
    assert layout_fault(recipe("disaggregated", 3, 3, 1), 10) is None


def test_machines_without_gpus_are_passed_over_and_the_drivers_comes_first():
    two = Wanted(engines=1, parallel=1, ranks=1)
    assert seat(two, (0, 4, 8)) == Seats((1,), (1,))
    assert seat(two, (8, 4)) == Seats((0,), (0,))
    assert seat(Wanted(1, 8, 1), (0, 4, 8)) == Seats((2,), (1,))


@pytest.mark.parametrize(
    ("asked", "nodes", "engines", "ranks"),
    [
        (Wanted(8, 1, 8), (8, 8), {1}, [0] * 8),
        (Wanted(2, 4, 8), (8, 8), {1}, [0] * 8),
        (Wanted(2, 2, 12), (8, 8), {1}, [0] * 8 + [1] * 4),
        (Wanted(16, 1, 16, shared=True), (8, 8), {0, 1}, [0] * 8 + [1] * 8),
        (Wanted(2, 3, 2), (4, 4), {0, 1}, [0, 1]),
    ],
)
def test_the_table_of_the_page_on_several_machines(
    asked: Wanted, nodes: tuple[int, ...], engines: set[int], ranks: list[int]
):
    seats = seat(asked, nodes)
    assert seats is not None
    assert (set(seats.engines), list(seats.ranks)) == (engines, ranks)


def test_sixty_four_machines_of_two_kinds_are_looked_at_in_no_time():
    seats = seat(Wanted(engines=30, parallel=8, ranks=140), [8, 4] * 32)
    # 380 of 384 GPUs: 30 machines of eight for the engines, two of eight and 31 of four are left.
    assert seats is not None and len(set(seats.engines)) == 30 and len(set(seats.ranks)) == 33


def first_of_the_fewest(sizes: Sequence[int], enough: Any) -> tuple[int, ...] | None:
    """By trying all sets of nodes by their sizes, in the order in which the sizes appear."""
    alike = {size: [i for i, other in enumerate(sizes) if other == size] for size in sizes if size}
    for count in range(1, len(sizes) + 1):
        for chosen in combinations_with_replacement(alike, count):
            taken = Counter(chosen)
            if all(n <= len(alike[size]) for size, n in taken.items()) and enough(chosen):
                return tuple(sorted(i for size, n in taken.items() for i in alike[size][:n]))
    return None


def nodes_of_all_and_of_the_learner(wanted: Wanted, nodes: Sequence[int]) -> tuple[Any, Any]:
    """The rule in its plainest form."""
    p, engines, ranks = wanted.parallel, wanted.engines, wanted.ranks

    def hold(chosen: Sequence[int]) -> bool:
        return sum(chosen) >= sum(wanted.bundles) and most_engines(p, chosen) >= engines

    used = first_of_the_fewest(nodes, hold)
    if used is None or not ranks:
        return used, used and ()
    sizes = [nodes[index] for index in used]

    def left_for_ranks(chosen: Sequence[int]) -> bool:
        elsewhere = most_engines(p, sizes) - most_engines(p, chosen)
        return sum(chosen) - max(0, engines - elsewhere) * p >= ranks

    learner = first_of_the_fewest(sizes, left_for_ranks)
    assert learner is not None
    return used, tuple(used[index] for index in learner)


@pytest.mark.parametrize(
    "nodes", [(), (0,), (3,), (4, 4), (2, 0, 3), (1, 2, 3, 4), (8, 4, 8, 4, 2), (5, 7, 5, 1, 6, 7)]
)
def test_of_as_few_nodes_the_same_are_taken_as_by_trying_every_set(nodes: tuple[int, ...]):
    for engines, parallel, ranks in product(range(5), (1, 2, 3, 4), range(14)):
        if engines + ranks:
            wanted = Wanted(engines, parallel, ranks)
            used, learner = nodes_of_all_and_of_the_learner(wanted, nodes)
            seats = seat(wanted, nodes)
            assert (seats is None) == (used is None)
            if seats is not None:
                assert tuple(sorted({*seats.engines, *seats.ranks})) == used
                assert tuple(sorted(set(seats.ranks))) == learner


def test_twelve_kinds_of_machines_are_looked_at_in_no_time():
    """There are 2.7 million ways to draw up to twelve of twelve sizes, and of sixty machines more
    than anyone could wait for."""
    sizes = list(range(1, 13))
    # Six engines of eight want six machines of at least eight, and there are five.
    assert seat(Wanted(engines=6, parallel=8, ranks=5), sizes) is None
    seats = seat(Wanted(engines=5, parallel=8, ranks=38), sizes)
    assert seats is not None and len(seats.ranks) == 38
    # All but one of the 390 GPUs, and all of the 25 engines that there is room for.
    seats = seat(Wanted(engines=25, parallel=8, ranks=189), sizes * 5)
    assert seats is not None and len(set(seats.engines)) == 25
    assert seat(Wanted(engines=25, parallel=8, ranks=191), sizes * 5) is None


def ways(nodes: Sequence[int], parallel: int, engines: int) -> Iterator[list[int]]:
    """What every way to place the engines leaves on each node."""
    for counts in product(*(range(node // parallel + 1) for node in nodes)):
        if sum(counts) == engines:
            yield [node - n * parallel for node, n in zip(nodes, counts, strict=True)]


def fewest_for_ranks(nodes: Sequence[int], parallel: int, engines: int, ranks: int) -> int | None:
    """By trying everything."""
    found = [
        next(n for n in range(len(left) + 1) if sum(sorted(left, reverse=True)[:n]) >= ranks)
        for left in ways(nodes, parallel, engines)
        if sum(left) >= ranks
    ]
    return min(found, default=None)


@pytest.mark.parametrize("nodes", [(1,), (2, 3), (4, 4), (3, 5), (5, 0, 3), (4, 2, 4), (6, 3, 1)])
def test_what_is_found_is_what_trying_everything_finds(nodes: tuple[int, ...]):
    for parallel, engines, ranks in product((1, 2, 3, 4), (1, 2, 3, 4), range(1, 8)):
        seats = seat(Wanted(engines, parallel, ranks), nodes)
        fewest = fewest_for_ranks(nodes, parallel, engines, ranks)
        if seats is None or fewest is None:
            assert seats is None and fewest is None
            continue
        left = list(nodes)
        for node in seats.engines:
            left[node] -= parallel
        for node in seats.ranks:
            left[node] -= 1
        assert min(left) >= 0 and len(seats.engines) == engines and len(seats.ranks) == ranks
        assert list(seats.ranks) == sorted(seats.ranks)
        used = sorted({*seats.engines, *seats.ranks})
        smaller = [one for n in range(len(used)) for one in combinations(nodes, n)]
        assert all(fewest_for_ranks(one, parallel, engines, ranks) is None for one in smaller)
        among = [nodes[index] for index in used]
        assert len(set(seats.ranks)) == fewest_for_ranks(among, parallel, engines, ranks)


@pytest.mark.parametrize(
    ("count", "nodes", "where"),
    [(1, 2, "0"), (2, 2, "01"), (4, 2, "0011"), (3, 2, "001"), (2, 3, "01"), (5, 3, "00112")],
)
def test_on_cpu_workers_are_spread_and_neighbours_stay_together(count: int, nodes: int, where: str):
    assert spread(count, nodes) == tuple(map(int, where))


def test_shared_memory_stays_within_one_machine():
    keys = recipe("auto", 1, 1, 1).model_dump() | {"sync": {"transport": "shm"}}
    shm = Recipe.model_validate(keys)
    assert machines_fault(shm, (0,), None) is None
    assert "sync.transport is shm" in str(machines_fault(shm, (0, 0), None))
    assert machines_fault(recipe("auto", 1, 1, 1), (0, 0), None) is None


def test_a_driver_without_a_gpu_does_not_run_a_cluster_of_gpus_on_its_cpus():
    fault = machines_fault(recipe("auto", 1, 1, 1), (0, 8, 8), None)
    assert "the Ray cluster has GPUs (16 on 3 machines (0 + 8 + 8)) and this machine has none" in (
        str(fault)
    )
    assert machines_fault(recipe("auto", 1, 1, 1), (8, 8), 8) is None


def test_a_cluster_that_counts_no_gpus_is_told_from_one_that_has_too_few():
    """There is no number of ranks "at most 0" that anyone could set."""
    for kind in ("auto", "colocated", "disaggregated"):
        fault = layout_fault(recipe(kind, 1, 1, 1), (0, 0))
        assert "this machine has GPUs, and the Ray cluster counts none" in str(fault)
        assert "without --num-gpus 0" in str(fault)
    assert layout_fault(recipe("auto", 1, 1, 1), None) is None


def test_a_run_does_not_start_with_heads_that_an_engines_gpus_cannot_divide(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    (tmp_path / "config.json").write_text(json.dumps(QWEN3_06B))
    monkeypatch.setattr(placement, "gpus_here", lambda: None)
    asked = recipe("disaggregated", 1, 3, 1)
    with pytest.raises(UserError, match=r"16 attention heads .* set it to one of 1, 2, 4, 8, 16"):
        place(asked, str(tmp_path))
    assert place(recipe("disaggregated", 1, 4, 1), str(tmp_path)).max_model_len == 40_960


def test_the_gpus_of_the_cluster_count_and_not_those_of_this_machine(
    monkeypatch: pytest.MonkeyPatch,
):
    """`auto` shared on one GPU here, though the cluster had eight."""
    monkeypatch.setattr(placement, "gpus_here", lambda: 1)
    assert is_colocated(recipe("auto", 1, 1, 1))
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr("grpo.fleet.nodes.gpus_at", lambda address: (1, 7))
    assert not is_colocated(recipe("auto", 1, 1, 1))
    with pytest.raises(UserError, match=r"needs 9 GPUs, and there are 8 on 2 machines \(1 \+ 7\)"):
        check_layout(recipe("disaggregated", 8, 1, 1))
