"""PowerSGD written anew from the paper, in float64, and reducers that get given gradients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from hvdtrain.comm.ranks import Comm
from hvdtrain.engine.reducer import Reducer


def gram_schmidt(matrix: Tensor) -> Tensor:
    """Orthonormal columns, one after the other, each made orthogonal twice."""
    columns: list[Tensor] = []
    for given in matrix.T:
        column = given
        for other in columns * 2:
            column = column - (other @ column) * other
        columns.append(column / column.norm())
    return torch.stack(columns, dim=1)


def paper(
    steps: Sequence[Sequence[Tensor]], q: Tensor, *, mean_error: bool = False
) -> Iterator[tuple[Tensor, list[Tensor], Tensor]]:
    """Gradient, errors of all ranks and Q [m, r] after each step, from the gradients [n, m] of the ranks.

    Algorithms 1 and 2 of https://arxiv.org/abs/1905.13727; `mean_error`: with the error of the authors' code,
    against the mean approximation in place of the rank's own.
    """
    errors = [torch.zeros_like(gradient) for gradient in steps[0]]
    for gradients in steps:
        deltas = [g + e for g, e in zip(gradients, errors, strict=True)]
        p = sum(delta @ q for delta in deltas) / len(deltas)
        p_hat = gram_schmidt(p)
        own = [delta.T @ p_hat for delta in deltas]
        q = sum(own) / len(own)
        errors = [
            delta - p_hat @ (q if mean_error else q_w).T
            for delta, q_w in zip(deltas, own, strict=True)
        ]
        yield p_hat @ q.T, errors, q


def step(
    reducer: Reducer, params: Sequence[nn.Parameter], gradients: Sequence[Tensor | None]
) -> None:
    """One step in which each parameter gets the gradient given, of this rank; None: it gets none."""
    pairs = [(p, g) for p, g in zip(params, gradients, strict=True) if g is not None]
    reducer.start_step()
    loss = torch.stack([(p * g).sum() for p, g in pairs if p.requires_grad]).sum()
    reducer.start_backward()
    (loss * reducer.loss_scale).backward()
    reducer.end_backward()
    reducer.finish()


def made(
    comm: Comm,
    shapes: Sequence[Sequence[int]],
    dtype: torch.dtype = torch.float64,
    **options: float,
) -> tuple[list[nn.Parameter], Reducer]:
    """Parameters of zeros, and a reducer of theirs with PowerSGD."""
    params = [nn.Parameter(torch.zeros(*shape, dtype=dtype)) for shape in shapes]
    return params, Reducer(params, comm, compression="powersgd", **options)
