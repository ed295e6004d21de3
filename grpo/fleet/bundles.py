"""Which machine each engine and each learner rank goes to: arithmetic alone, nothing is started.

A node is a machine of a Ray cluster, given as the number of its GPUs.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement, islice


@dataclass(frozen=True, slots=True)
class Wanted:
    """A layout. parallel: GPUs of one engine, which stays within a node
    shared: engine i and rank i share one GPU
    """

    engines: int
    parallel: int
    ranks: int
    shared: bool = False

    @property
    def bundles(self) -> list[int]:
        """GPUs that are taken in one piece: a pair's, or those of each engine and then each rank's.
        The large ones come first."""
        if self.shared:
            return [1] * self.ranks
        return [self.parallel] * self.engines + [1] * self.ranks


@dataclass(frozen=True, slots=True)
class Seats:
    """The node of each engine and of each rank, as its index."""

    engines: tuple[int, ...]
    ranks: tuple[int, ...]

    def bundles(self, shared: bool) -> tuple[int, ...]:
        """The node of each of `Wanted.bundles`."""
        return self.ranks if shared else self.engines + self.ranks


def seat(wanted: Wanted, nodes: Sequence[int]) -> Seats | None:
    """Uses as few nodes as can hold everything, of those as few as can hold the learner, earlier
    ones first. Neighbouring ranks share a node, rank 0 is on the first one. None: there is no way.
    """
    used = _fewest(nodes, lambda sizes: _hold(wanted, sizes))
    if used is None:
        return None
    if wanted.shared:
        pairs = tuple(islice(_one_by_one(used, nodes), wanted.ranks))
        return Seats(pairs, pairs)
    learner = _learner_nodes(wanted, used, nodes)
    free = {node: nodes[node] for node in used}
    engines: list[int] = []
    for node in [*(node for node in used if node not in learner), *reversed(learner)]:
        here = min(free[node] // wanted.parallel, wanted.engines - len(engines))
        free[node] -= here * wanted.parallel
        engines += [node] * here
    ranks = islice(_one_by_one(learner, free), wanted.ranks)
    return Seats(tuple(sorted(engines)), tuple(ranks))


def most_engines(parallel: int, nodes: Sequence[int]) -> int:
    """Engines of so many GPUs each, where nothing else runs."""
    return sum(node // parallel for node in nodes)


def spread(count: int, nodes: int) -> tuple[int, ...]:
    """Nodes for workers that need no GPU: as many nodes as there are workers for, neighbours
    together, the first worker on the first node."""
    used = min(count, nodes)
    return tuple(index * used // count for index in range(count))


def in_words(nodes: Sequence[int]) -> str:
    """The GPUs there are: "8", or "8 on 2 machines (4 + 4)"."""
    if len(nodes) == 1:
        return str(nodes[0])
    return f"{sum(nodes)} on {len(nodes)} machines ({' + '.join(map(str, nodes))})"


def _hold(wanted: Wanted, sizes: Sequence[int]) -> bool:
    """Ranks take single GPUs, so that whatever the engines leave will do for them."""
    if sum(wanted.bundles) > sum(sizes):
        return False
    return wanted.shared or most_engines(wanted.parallel, sizes) >= wanted.engines


def _learner_nodes(wanted: Wanted, used: Sequence[int], nodes: Sequence[int]) -> tuple[int, ...]:
    sizes = [nodes[node] for node in used]
    everywhere = most_engines(wanted.parallel, sizes)

    def enough(chosen: Sequence[int]) -> bool:
        elsewhere = everywhere - most_engines(wanted.parallel, chosen)
        here = max(0, wanted.engines - elsewhere)
        return sum(chosen) - here * wanted.parallel >= wanted.ranks

    chosen = _fewest(sizes, enough) if wanted.ranks else ()
    assert chosen is not None, "all of the nodes hold everything"
    return tuple(used[index] for index in chosen)


def _fewest(
    sizes: Sequence[int], enough: Callable[[Sequence[int]], bool]
) -> tuple[int, ...] | None:
    """Indices of the fewest nodes that are enough, the earlier of equal ones. Nodes with as many
    GPUs are alike, so that the number of ways does not explode with that of nodes."""
    alike = {size: [i for i, other in enumerate(sizes) if other == size] for size in sizes if size}
    for count in range(1, len(sizes) + 1):
        for chosen in combinations_with_replacement(alike, count):
            taken = Counter(chosen)
            if all(n <= len(alike[size]) for size, n in taken.items()) and enough(chosen):
                return tuple(sorted(i for size, n in taken.items() for i in alike[size][:n]))
    return None


def _one_by_one(order: Sequence[int], gpus: Sequence[int] | dict[int, int]) -> Iterator[int]:
    """Each node as often as it has GPUs."""
    return (node for node in order for _ in range(gpus[node]))
