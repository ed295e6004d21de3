"""Which machine each engine and each learner rank goes to: arithmetic alone, nothing is started.

A node is a machine of a Ray cluster, given as the number of its GPUs.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from math import inf


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
    # Ranks take single GPUs, so that whatever the engines leave will do for them.
    whole = 0 if wanted.shared else wanted.engines
    used = _fewest(nodes, sum(wanted.bundles), lambda size: size // wanted.parallel, whole)
    if used is None:
        return None
    if wanted.shared:
        pairs = tuple(islice(_one_by_one(used, nodes), wanted.ranks))
        return Seats(pairs, pairs)
    learner = _learner_nodes(wanted, used, nodes) if wanted.ranks else ()
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


def _learner_nodes(wanted: Wanted, used: Sequence[int], nodes: Sequence[int]) -> tuple[int, ...]:
    """Enough GPUs for the ranks, also where every engine that finds no room elsewhere is on one of
    these nodes: ranks then have what no engine could use anyway, and the room that is to spare."""
    sizes, parallel = [nodes[node] for node in used], wanted.parallel
    spare = most_engines(parallel, sizes) - wanted.engines
    leftover = wanted.ranks - spare * parallel
    chosen = _fewest(sizes, wanted.ranks, lambda size: size % parallel, leftover)
    assert chosen is not None, "all of the nodes hold everything"
    return tuple(used[index] for index in chosen)


def _fewest(
    sizes: Sequence[int], gpus: int, part: Callable[[int], int], parts: int
) -> tuple[int, ...] | None:
    """Indices of the fewest nodes that have so many GPUs and whose `part` comes to `parts` as well;
    of equally many as many as can be of the size that comes first, and so on, the earlier of equal
    ones. Nodes of a size are alike, so that the work does not explode with the number of either."""
    if gpus > sum(sizes) or parts > sum(map(part, sizes)):
        return None
    alike = {size: [i for i, other in enumerate(sizes) if other == size] for size in sizes if size}
    kinds = [(size, part(size), len(indices)) for size, indices in alike.items()]

    @cache
    def most(kind: int, left: int, gpus: int) -> float:
        """Parts that `left` nodes of this kind and those behind it have at most, with such GPUs."""
        if kind == len(kinds):
            return 0 if not left and not gpus else -inf
        size, each, there = kinds[kind]
        return max(
            n * each + most(kind + 1, left - n, max(0, gpus - n * size))
            for n in range(min(left, there) + 1)
        )

    left = next((n for n in range(1, len(sizes) + 1) if most(0, n, max(0, gpus)) >= parts), 0)
    chosen: list[int] = []
    for kind, (size, each, there) in enumerate(kinds):
        n = next(
            n
            for n in range(min(left, there), -1, -1)
            if n * each + most(kind + 1, left - n, max(0, gpus - n * size)) >= parts
        )
        left, gpus, parts = left - n, gpus - n * size, parts - n * each
        chosen += alike[size][:n]
    return tuple(sorted(chosen)) or None


def _one_by_one(order: Sequence[int], gpus: Sequence[int] | dict[int, int]) -> Iterator[int]:
    """Each node as often as it has GPUs."""
    return (node for node in order for _ in range(gpus[node]))
