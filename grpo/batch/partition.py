"""Numbers in parts of nearly equal sum, and in as few parts of bounded sum as may be.

Largest differencing: N. Karmarkar and R. M. Karp, The Differencing Method of Set Partitioning
(1982), for any number of parts.
"""

import bisect
import heapq
import itertools
from collections.abc import Sequence

# The sum of a part and the indices of what lies in it.
Part = tuple[float, list[int]]


def differencing(costs: Sequence[float], parts: int) -> list[list[int]]:
    """The indices of `costs` (all > 0) in exactly `parts` lists whose sums are nearly equal; some
    are empty only where there are fewer numbers than parts.

    Every number begins as a partition of its own whose other parts are empty. The two partitions
    that are least even are joined, the largest part of one with the smallest of the other and so
    on, until one is left.
    """
    assert parts >= 1, f"{parts} parts"
    numbers = itertools.count()  # decides between equals, so that the result is always the same
    heap = [(-cost, next(numbers), [(cost, [i])]) for i, cost in enumerate(costs)]
    heapq.heapify(heap)
    while len(heap) > 1:
        joined = _join(heapq.heappop(heap)[2], heapq.heappop(heap)[2], parts)
        smallest = joined[-1][0] if len(joined) == parts else 0.0
        heapq.heappush(heap, (smallest - joined[0][0], next(numbers), joined))
    filled = [indices for _, indices in heap[0][2]] if heap else []
    return filled + [[] for _ in range(parts - len(filled))]


def _join(left: list[Part], right: list[Part], parts: int) -> list[Part]:
    """Two partitions, each without its empty parts and largest first, as one of the same kind."""
    untouched = parts - len(right)  # parts of the left that meet an empty one of the right
    meeting = zip(left[untouched:], reversed(right[parts - len(left) :]), strict=True)
    joined = [
        *left[:untouched],
        *((x + y, [*many, *more]) for (x, many), (y, more) in meeting),
        *right[: parts - len(left)],
    ]
    return sorted(joined, key=lambda part: -part[0])


def best_fit(sizes: Sequence[int], capacity: int) -> list[list[int]]:
    """The indices of `sizes` in few lists of at most `capacity`: each number, largest first, goes
    where it leaves the least room. A number above the capacity stays alone."""
    parts: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # (room left, part), least first
    for i in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        at = bisect.bisect_left(rooms, (sizes[i], -1))
        if at < len(rooms):
            room, part = rooms.pop(at)
            parts[part].append(i)
        else:
            room, part = capacity, len(parts)
            parts.append([i])
        bisect.insort(rooms, (room - sizes[i], part))
    return parts


def split_to(parts: list[list[int]], sizes: Sequence[int], count: int) -> list[list[int]]:
    """Halves the largest part that holds several numbers until there are `count` parts, or until
    none does."""
    parts = list(parts)
    while len(parts) < count:
        sums = [sum(sizes[i] for i in part) if len(part) > 1 else 0 for part in parts]
        if not any(sums):
            break
        largest = sums.index(max(sums))
        part = parts[largest]
        parts[largest : largest + 1] = [part[::2], part[1::2]]
    return parts
