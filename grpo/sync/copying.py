"""Copies between tensors in host memory that stay fast while other processes use the cores."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

# Small enough that a thread waiting for a core delays little, large enough that fetching the next
# piece costs nothing compared with copying it.
_PIECE_BYTES = 8 << 20


def copy_all(pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Copies each pair (to, from) of contiguous tensors of equal shape.

    The copies are cut into pieces, and as many threads as torch uses take the next piece whenever
    they are free. `Tensor.copy_` cuts every tensor into equal parts and waits for all of them,
    tensor by tensor: with an engine keeping a core busy, that is several times slower.
    """
    plain: list[tuple[torch.Tensor, torch.Tensor]] = []
    for to, source in pairs:
        if to.dtype == source.dtype and to.is_cpu and source.is_cpu:
            plain.append((to, source))
        else:
            to.copy_(source)
    pieces = [piece for to, source in plain for piece in _pieces(to, source)]
    threads = min(torch.get_num_threads(), len(pieces))
    if threads <= 1:
        for to, source in pieces:
            np.copyto(to, source)
        return
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(np.copyto, *zip(*pieces, strict=True)):  # raises what a thread raised
            pass


def _pieces(to: torch.Tensor, source: torch.Tensor) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    flat_to = to.detach().view(-1).view(torch.uint8).numpy()
    flat_source = source.detach().view(-1).view(torch.uint8).numpy()
    for start in range(0, len(flat_to), _PIECE_BYTES):
        end = start + _PIECE_BYTES
        yield flat_to[start:end], flat_source[start:end]
