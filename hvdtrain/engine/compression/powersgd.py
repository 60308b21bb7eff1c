"""PowerSGD: a gradient as a product of two thin matrices, and what it leaves out sent in later steps.

Source: Vogels, Karimireddy and Jaggi 2019, https://arxiv.org/abs/1905.13727, algorithms 1 and 2. With M_w
[n, m] the gradient of rank w and its error, and Q [m, r] of the step before:

    P = Σ_w M_w Q        one sum over ranks, n·r numbers
    P̂ = orthonormal columns with the span of P's
    Q_w = M_wᵀ P̂,  Q = Σ_w Q_w        another sum, m·r numbers
    gradient = P̂ Qᵀ
    error of rank w = M_w − P̂ Q_wᵀ

Gradients are divided by the number of ranks before (`Reducer.loss_scale`), so sums stand for the paper's
means, and the errors of all ranks add up to what the mean gradient lacks. The paper's algorithm 2 takes the
error from the rank's own Q_w, as here; its authors' code and torch take it from the mean Q. All ranks' errors have
the same sum either way, and nothing else of them reaches the gradient. But what a rank's gradients differ from
the mean by would then add up in its error without limit.

A gradient is a matrix in the order of its memory: a row for each output of the layer. Tensors with one
dimension, and those that would not become at most half as large, are summed as they are, together with P.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import nn

from hvdtrain.comm.ranks import Comm, Handle
from hvdtrain.engine.compression.exchange import abandon, size_bytes
from hvdtrain.engine.compression.low_rank import is_compressed, matrix_shape


class Matrix:
    """What is kept of one compressed gradient from step to step."""

    def __init__(self, p: nn.Parameter, rank: int) -> None:
        self.rows, self.columns = p.shape[0], p[0].numel()
        flat = torch.zeros(p.numel(), dtype=p.dtype, device=p.device)
        self.error = flat.as_strided(p.size(), p.stride())
        """What this rank's gradients had that was not sent yet, in the shape of the parameter."""
        self.error_rows = flat.view(self.rows, self.columns)
        flat = torch.zeros(rank * self.columns, dtype=p.dtype, device=p.device)
        self.factor = flat.as_strided((rank, *p.shape[1:]), p.stride())
        """Qᵀ of the last step, where the next one starts; equal on all ranks."""
        self.factor_rows = flat.view(rank, self.columns)


class PowerSGD:
    """The state of the compression of all gradients, on one rank. Errors take the memory of the gradients
    once more."""

    def __init__(self, params: Iterable[nn.Parameter], rank: int, seed: int) -> None:
        self.rank, self._seed = rank, seed
        self.matrices = {p: Matrix(p, rank) for p in params if self.compresses(p)}
        self.reset()

    def compresses(self, p: nn.Parameter) -> bool:
        """Whether `p` is compressed: by its shape alone, so equally on all ranks."""
        shape = matrix_shape([*p.shape])
        return shape is not None and p.stride(0) == shape[1] and is_compressed(*shape, self.rank)

    @torch.no_grad()
    def reset(self) -> None:
        """No errors, and first factors drawn from the seed: equal on all ranks."""
        generator = torch.Generator().manual_seed(self._seed)
        for matrix in self.matrices.values():
            matrix.error.zero_()
            matrix.factor.copy_(torch.randn(matrix.factor.shape, generator=generator))

    def named(self, model: nn.Module) -> dict[str, Matrix]:
        """The matrices by the names of their parameters in `model`, in its order."""
        found = {name: self.matrices.get(p) for name, p in model.named_parameters()}
        return {name: matrix for name, matrix in found.items() if matrix is not None}


class _Part:
    """One compressed gradient of a group, with its places in the buffers that are sent."""

    def __init__(self, p: nn.Parameter, place: torch.Tensor, kept: Matrix) -> None:
        self.p, self.kept = p, kept
        shape, strides = (kept.rows, kept.columns), (kept.columns, 1)
        self.gradient = place.as_strided(shape, strides, place.storage_offset())
        self.left = self.right = self.own = torch.empty(0)
        """P, then P̂ [rows, r]; Qᵀ [r, columns] of all ranks and of this one."""


class LowRankSum:
    """The exchange of one group: two sums, the second of which depends on the first."""

    by_all_to_all = False

    def __init__(
        self,
        comm: Comm,
        name: str,
        places: Mapping[nn.Parameter, torch.Tensor],
        memory: PowerSGD,
    ) -> None:
        """`places`: the view of each gradient into the group's flat buffer."""
        self._comm, self._name = comm, name
        kept = memory.matrices
        self._parts = [_Part(p, place, kept[p]) for p, place in places.items() if p in kept]
        self._whole = [
            place.as_strided((place.numel(),), (1,), place.storage_offset())
            for p, place in places.items()
            if p not in kept
        ]
        like = next(iter(places.values()))
        rank = memory.rank
        lefts = [part.kept.rows * rank for part in self._parts]
        rights = [part.kept.columns * rank for part in self._parts]
        sizes = [*lefts, *(place.numel() for place in self._whole)]
        self._first = like.new_zeros(sum(sizes))
        self._second = like.new_zeros(sum(rights))
        self._own = torch.zeros_like(self._second)
        slots = self._first.split(sizes)
        self._slots = [*slots[len(lefts) :]]
        views = slots[: len(lefts)], self._second.split(rights), self._own.split(rights)
        for part, left, right, own in zip(self._parts, *views, strict=True):
            part.left = left.view(-1, rank)
            part.right, part.own = right.view(rank, -1), own.view(rank, -1)
        self._handles: list[Handle | None] = [None, None]
        self._begun = False
        self._sum = self._first.new_zeros(())
        """Of all numbers of the first sum."""
        self.reads = not like.is_cuda
        """Whether numbers are looked at; on a GPU that would wait for it."""
        self.step_calls = 2 if self._parts else 1
        self.step_bytes = size_bytes(self._first) + size_bytes(self._second)

    @property
    def in_flight(self) -> bool:
        """Whether one of its sums is on the way."""
        return self._begun

    def offers(self) -> dict[str, torch.Tensor]:
        """The first sum; without it nobody starts the second."""
        return {f"{self._name}.p": self._first}

    @torch.no_grad()
    def begin(self) -> None:
        """Add the error to the gradient, and start the sum of P."""
        self._begun = True
        for part in self._parts:
            if part.p.requires_grad:
                part.gradient.add_(part.kept.error_rows)
                torch.mm(part.gradient, part.kept.factor_rows.T, out=part.left)
            else:
                part.left.zero_()
        if self._whole:
            torch._foreach_copy_(self._slots, self._whole)
        self._handles[0] = self._comm.sum_async_(self._first, f"{self._name}.p")

    @torch.no_grad()
    def follow(self) -> None:
        """Wait for P, and start the sum of Q."""
        handle, self._handles[0] = self._handles[0], None
        if handle is None:
            return
        handle.wait()
        self._sum = self._first.sum()
        if not self._parts:
            return
        orthonormalize([part.left for part in self._trained()])
        self._second.zero_()
        for part in self._trained():
            torch.mm(part.left.T, part.gradient, out=part.right)
        self._own.copy_(self._second)
        self._handles[1] = self._comm.sum_async_(self._second, f"{self._name}.q")

    def wait(self) -> None:
        """Wait for Q."""
        self.follow()
        handle, self._handles[1] = self._handles[1], None
        if handle is not None:
            handle.wait()
        self._begun = False

    @torch.no_grad()
    def settle(self) -> None:
        """The gradient is the product; keep the error and Q, unless a number of any rank is not finite."""
        finite = (self._sum + self._second.sum()).isfinite()
        for part in self._trained():
            factors, kept = (part.left, part.own), part.kept
            if not self.reads:
                error = torch.addmm(part.gradient, *factors, alpha=-1)
                torch.where(finite, error, kept.error_rows, out=kept.error_rows)
                torch.where(finite, part.right, kept.factor_rows, out=kept.factor_rows)
            elif finite:
                torch.addmm(part.gradient, *factors, alpha=-1, out=kept.error_rows)
                kept.factor_rows.copy_(part.right)
            torch.mm(part.left, part.right, out=part.gradient)
        if self._whole:
            torch._foreach_copy_(self._whole, self._slots)

    def abandon(self) -> None:
        """Wait for the sums."""
        handles, self._handles, self._begun = self._handles, [None, None], False
        for handle in handles:
            abandon(handle)

    def _trained(self) -> list[_Part]:
        """Those that are not frozen now, the same on all ranks. A frozen one keeps its error and Q."""
        return [part for part in self._parts if part.p.requires_grad]


def orthonormalize(matrices: list[torch.Tensor]) -> None:
    """Replace the columns of each matrix [n, r], n ≥ r, by an orthonormal basis of the same space.

    Columns that depend on others are completed by any that are orthogonal to them. So a gradient of zeros is
    no end: its Q becomes zero, and the next P̂ is the first r unit vectors.
    """
    by_height: dict[int, list[torch.Tensor]] = {}
    for matrix in matrices:
        by_height.setdefault(len(matrix), []).append(matrix)
    for same in by_height.values():
        bases = torch.linalg.qr(torch.stack(same)).Q
        torch._foreach_copy_(same, list(bases))
