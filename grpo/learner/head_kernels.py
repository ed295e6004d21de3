"""Logprobs of chosen tokens and entropies from hidden states and a head's weight, never [T, V].

Logits exist one tile at a time: R rows (some of the T tokens) by C columns (some of the V
vocabulary entries). Forward folds the tiles of a token into a running log-sum-exp, backward makes
each tile again. With z = h W^T / temperature, p = softmax(z), H the entropy:

    log p_y = z_y - logsumexp(z)         d log p_y / dz = 1_y - p
    H = - sum p log p                    d H / dz       = - p (log p + H)
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class Tile(NamedTuple):
    """At most `logits` logits at once, of at most `columns` vocabulary entries."""

    logits: int
    columns: int

    def cuts(self, tokens: int, vocabulary: int) -> tuple[list[slice], list[slice]]:
        """The tiles' rows and columns. A vocabulary below `columns` gets more rows instead."""
        width = min(vocabulary, self.columns)
        return _slices(tokens, max(1, self.logits // width)), _slices(vocabulary, width)


def _slices(whole: int, part: int) -> list[slice]:
    return [slice(start, min(start + part, whole)) for start in range(0, whole, part)]


# On a CPU 1024 x 4096 logits of float32 are 16 MiB: matrix products are at full speed already, and
# what is done to every logit between them finds it in the cache. A GPU wants products that outlast
# their launch; its 256 MiB were chosen by that rule and have not been run.
TILES = {"cpu": Tile(1 << 22, 4096), "cuda": Tile(1 << 26, 16384)}


class _Operands:
    """The two factors of the logits, tile by tile, in one buffer.

    Statistics and sums are float32 (float64 where the inputs are). A CPU multiplies in that
    precision; CUDA multiplies the inputs as they are into float32 results, which has not been run.
    """

    def __init__(self, hidden_TH: Tensor, weight_VH: Tensor, targets_T: Tensor, temperature: float):
        self.dtype = torch.promote_types(hidden_TH.dtype, torch.float32)
        self._widen = not hidden_TH.is_cuda
        self._hidden_TH = hidden_TH.to(self.dtype) if self._widen else hidden_TH
        self._weight_VH = weight_VH
        self._targets_T = targets_T
        self._temperature = temperature
        tile = TILES["cuda" if hidden_TH.is_cuda else "cpu"]
        self._rows, self._columns = tile.cuts(len(hidden_TH), len(weight_VH))
        self._buffers: dict[str, Tensor] = {}

    def columns(self) -> Iterator[tuple[slice, Tensor]]:
        """The [C, H] weights of each slice of the vocabulary."""
        for columns in self._columns:
            weight_CH = self._weight_VH[columns]
            yield columns, weight_CH.to(self.dtype) if self._widen else weight_CH

    def rows(self) -> Iterator[tuple[slice, Tensor]]:
        """The [R, H] hidden states of each slice of the tokens."""
        for rows in self._rows:
            yield rows, self._hidden_TH[rows]

    def logits(self, hidden_RH: Tensor, weight_CH: Tensor) -> Tensor:
        """[R, C], to be overwritten; the next call does."""
        tile_RC = self.buffer("logits", len(hidden_RH), len(weight_CH))
        if tile_RC.dtype == weight_CH.dtype:
            torch.mm(hidden_RH, weight_CH.T, out=tile_RC)
        else:
            torch.mm(hidden_RH, weight_CH.T, out_dtype=self.dtype, out=tile_RC)
        return tile_RC if self._temperature == 1 else tile_RC.div_(self._temperature)

    def buffer(self, name: str, rows: int, columns: int) -> Tensor:
        """A contiguous [rows, columns], the same memory at every call; the first is the largest."""
        if name not in self._buffers:
            size = rows * columns
            self._buffers[name] = self._hidden_TH.new_empty(size, dtype=self.dtype)
        return self._buffers[name][: rows * columns].view(rows, columns)

    def sum_of(self, part_CH: Tensor) -> Tensor:
        """Where a part of a gradient, still zero, is summed: itself, or a buffer of zeros where it
        has less precision than sums have."""
        if part_CH.dtype == self.dtype:
            return part_CH
        return self.buffer("sum", *part_CH.shape).zero_()

    def add_product(self, sum_: Tensor, left: Tensor, right: Tensor) -> None:
        """sum_ += left @ right, without rounding the product to the factors' precision."""
        if sum_.dtype == right.dtype:
            sum_.addmm_(left, right)
        else:
            torch.addmm(sum_, left, right, out_dtype=sum_.dtype, out=sum_)

    def chosen(self, rows: slice, columns: slice) -> tuple[Tensor, Tensor]:
        """Where each row's target lies in the tile [R, 1], and whether it does [R]. Both without
        asking the device how many do."""
        width = columns.stop - columns.start
        local_R = self._targets_T[rows] - columns.start
        inside_R = (local_R >= 0) & (local_R < width)
        return local_R.clamp(0, width - 1)[:, None], inside_R


class _Statistics:
    """A running log-sum-exp of every token and, for entropies, the sum of (z - top) e^(z - top)."""

    def __init__(self, tokens: int, like: Tensor, dtype: torch.dtype):
        self._top_T = like.new_full((tokens,), torch.finfo(dtype).min, dtype=dtype)
        self._sum_T = like.new_zeros(tokens, dtype=dtype)
        self._moment_T = like.new_zeros(tokens, dtype=dtype)
        # A target outside the vocabulary stays NaN.
        self._logit_T = like.new_full((tokens,), torch.nan, dtype=dtype)

    def fold(
        self, rows: slice, tile_RC: Tensor, where: tuple[Tensor, Tensor], spare: Tensor | None
    ):
        """Adds a tile, which is overwritten; with `spare` [R, C] also what entropies need."""
        index_R1, inside_R = where
        logit_R = tile_RC.gather(1, index_R1)[:, 0]
        self._logit_T[rows] = torch.where(inside_R, logit_R, self._logit_T[rows])
        top_R = torch.maximum(self._top_T[rows], tile_RC.amax(1))
        shift_R = self._top_T[rows] - top_R
        keep_R = shift_R.exp()
        tile_RC.sub_(top_R[:, None])
        if spare is None:
            sum_R = tile_RC.exp_().sum(1)
        else:
            sum_R = torch.exp(tile_RC, out=spare).sum(1)
            moved_R = (self._moment_T[rows] + shift_R * self._sum_T[rows]) * keep_R
            self._moment_T[rows] = moved_R + tile_RC.mul_(spare).sum(1)
        self._sum_T[rows] = self._sum_T[rows] * keep_R + sum_R
        self._top_T[rows] = top_R

    def logsumexp(self) -> Tensor:
        return self._top_T + self._sum_T.log()

    def logprobs(self) -> Tensor:
        return self._logit_T - self.logsumexp()

    def entropies(self) -> Tensor:
        """log sum - moment / sum: two terms that are never negative, so nothing cancels."""
        return self._sum_T.log() - self._moment_T / self._sum_T


class _TiledLogprob(torch.autograd.Function):
    """Our kernel. Kept for backward: the inputs and two numbers a token."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_TH: Tensor,
        weight_VH: Tensor,
        targets_T: Tensor,
        temperature: float,
        entropy: bool,
    ) -> tuple[Tensor, Tensor | None]:
        operands = _Operands(hidden_TH, weight_VH, targets_T, temperature)
        statistics = _Statistics(len(hidden_TH), hidden_TH, operands.dtype)
        for columns, weight_CH in operands.columns():
            for rows, hidden_RH in operands.rows():
                tile_RC = operands.logits(hidden_RH, weight_CH)
                spare = operands.buffer("spare", *tile_RC.shape) if entropy else None
                statistics.fold(rows, tile_RC, operands.chosen(rows, columns), spare)
        entropy_T = statistics.entropies() if entropy else None
        ctx.save_for_backward(hidden_TH, weight_VH, targets_T, statistics.logsumexp(), entropy_T)
        ctx.temperature = temperature
        ctx.set_materialize_grads(False)  # an entropy that no loss uses costs backward nothing
        return statistics.logprobs(), entropy_T

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad_T: Tensor | None, grad_entropy_T: Tensor | None
    ) -> tuple[Any, ...]:
        hidden_TH, weight_VH, targets_T, lse_T, entropy_T = ctx.saved_tensors
        if grad_T is None:
            grad_T = torch.zeros_like(lse_T)
        slopes = _Slopes(grad_T, grad_entropy_T, entropy_T, ctx.temperature)
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        operands = _Operands(hidden_TH, weight_VH, targets_T, ctx.temperature)
        # Columns outside, so that no more than [C, H] of a bfloat16 gradient is held in float32.
        grad_hidden_TH = hidden_TH.new_zeros(hidden_TH.shape, dtype=operands.dtype)
        grad_weight_VH = weight_VH.new_zeros(weight_VH.shape) if needs_weight else None
        for columns, weight_CH in operands.columns():
            sum_CH = None if grad_weight_VH is None else operands.sum_of(grad_weight_VH[columns])
            for rows, hidden_RH in operands.rows():
                log_RC = operands.logits(hidden_RH, weight_CH).sub_(lse_T[rows, None])
                where = operands.chosen(rows, columns)
                tile_RC = slopes.logits(rows, log_RC, where, operands).to(weight_CH.dtype)
                if needs_hidden:
                    operands.add_product(grad_hidden_TH[rows], tile_RC, weight_CH)
                if sum_CH is not None:
                    operands.add_product(sum_CH, tile_RC.T, hidden_RH)
            if grad_weight_VH is not None and grad_weight_VH.dtype != operands.dtype:
                grad_weight_VH[columns] = sum_CH
        grad_hidden = grad_hidden_TH.to(hidden_TH.dtype) if needs_hidden else None
        return grad_hidden, grad_weight_VH, None, None, None


class _Slopes:
    """The gradient in each logit, from the gradients in each logprob and entropy."""

    def __init__(
        self,
        grad_T: Tensor,
        grad_entropy_T: Tensor | None,
        entropy_T: Tensor | None,
        temperature: float,
    ):
        self._grad_T = grad_T / temperature
        self._grad_entropy_T = None
        if grad_entropy_T is not None and entropy_T is not None:
            self._grad_entropy_T = grad_entropy_T / temperature
            self._both_T = self._grad_entropy_T * entropy_T + self._grad_T

    def logits(
        self, rows: slice, log_RC: Tensor, where: tuple[Tensor, Tensor], operands: _Operands
    ) -> Tensor:
        """d loss / d (h W^T) [R, C] from log p, in its place."""
        grad_R = self._grad_T[rows]
        if self._grad_entropy_T is None:
            tile_RC = log_RC.exp_().mul_(-grad_R[:, None])
        else:
            probs_RC = torch.exp(log_RC, out=operands.buffer("spare", *log_RC.shape))
            log_RC.mul_(self._grad_entropy_T[rows, None]).add_(self._both_T[rows, None])
            tile_RC = log_RC.mul_(probs_RC).neg_()
        index_R1, inside_R = where
        return tile_RC.scatter_add_(1, index_R1, torch.where(inside_R, grad_R, 0)[:, None])


def tiled(
    hidden_TH: Tensor, weight_VH: Tensor, targets_T: Tensor, temperature: float, entropy: bool
) -> tuple[Tensor, Tensor | None]:
    """[T] logprobs of the targets, and [T] entropies if they are asked for. Plain torch: any
    device, float64 to bfloat16."""
    # Our own packing makes the targets. On CUDA the check would have to wait for the device.
    inside = targets_T.is_cuda or bool(((targets_T >= 0) & (targets_T < len(weight_VH))).all())
    assert inside, f"a target lies outside the vocabulary of {len(weight_VH)}"
    return _TiledLogprob.apply(hidden_TH, weight_VH, targets_T, temperature, entropy)  # type: ignore
