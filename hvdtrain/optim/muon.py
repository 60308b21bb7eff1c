"""Muon: SGD with momentum, whose steps for matrices are made orthogonal."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch

from hvdtrain.optim.grouped import Grouped, factor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the iteration x ← a·x + (b·xxᵀ + c·(xxᵀ)²)x, which takes singular values to about 0.7-1.2.
Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/."""
EPS = 1e-7
"""Added to the norm of the matrix. Source: the same."""
TINY = 1e-30


class Ranks(Protocol):
    """Those among which the matrices are shared out: a `hvdtrain.comm.ranks.Comm`."""

    rank: int
    size: int

    def gather(self, row: torch.Tensor, name: str) -> torch.Tensor:
        """The `row` [n] of every rank: [size, n] on every rank."""


def orthogonal(matrix: torch.Tensor, steps: int, dtype: torch.dtype) -> torch.Tensor:
    """`matrix` [rows, columns] with all singular values near 1, computed in `dtype`.

    From the singular values s of the matrix, divided by its norm, it makes f(f(…f(s))), `steps` times,
    with f(s) = a·s + b·s³ + c·s⁵. Source: see COEFFICIENTS.
    """
    a, b, c = COEFFICIENTS
    x = matrix.to(dtype)
    tall = len(x) > x.shape[1]
    x = x.mT if tall else x
    x = x / (x.norm() + EPS)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon(Grouped):
    """Momentum m on gradient g, and a step u of orthogonal matrices (groups whose `matrix` is true).

        v ← m·v + g,  u = orthogonal(g + m·v)  (without Nesterov: of v)
        w ← (1 − lr·decay)·w − lr·√max(1, rows/columns)·u

    A convolution's kernels are the rows of a matrix [filters, inputs·height·width], whose factor √… is
    1. With `normalize`, w ← w·√rows/‖w‖ takes the place of the decay. All other parameters are updated
    by SGD as in `hvdtrain.optim.eager`, with the momentum `other_momentum` of their own.

    Works on one-dimensional parameters, each one tensor of the model; `shapes`: of the matrices, by the
    address of their memory, in which they lie row after row. Overwrites the gradients.
    `dtype`: in which steps are made orthogonal; None: their own. `ranks`: each of them does it for some
    matrices and gets the others', to the bit what it would have computed; then all must update at the
    same time, and all parameters at once. None: this rank does it for all.
    The package's v is 1 − m times this one, which changes nothing, since a step has no length of its own.
    Source: muon.py of https://github.com/KellerJordan/Muon (scale, decay), airbench94_muon.py of
    https://github.com/KellerJordan/cifar10-airbench (kernels, norm, SGD for the rest).
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        *,
        momentum: float,
        other_momentum: float,
        nesterov: bool,
        steps: int,
        normalize: bool,
        shapes: Mapping[int, torch.Size],
        dtype: torch.dtype | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        for group in groups:
            if not group["matrix"]:
                group["own_momentum"] = other_momentum
        super().__init__(groups, {"lr": 0.0, "momentum": momentum})
        self.ranks = ranks if ranks is not None and ranks.size > 1 else None
        self._nesterov, self._steps, self._normalize = nesterov, steps, normalize
        self._shapes, self._dtype = shapes, dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        matrices: list[tuple[dict[str, Any], list[torch.Tensor]]] = []
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params and group["matrix"]:
                matrices.append((group, params))
            elif params:
                self.update(group, params)
        steps = self._orthogonal([step for pair in matrices for step in self._steps_of(*pair)])
        for group, params in matrices:
            self._move(group, params, [steps.pop(0) for _ in params])

    def update(self, group: dict[str, Any], params: list[torch.Tensor]) -> None:
        """One update of `params` by SGD."""
        grads = [p.grad for p in params if p.grad is not None]
        if group["weight_decay"]:
            torch._foreach_add_(grads, params, alpha=factor(group["weight_decay"]))
        steps = self._with_momentum(params, grads, group["own_momentum"])
        torch._foreach_add_(params, steps, alpha=factor(-group["lr"]))

    def _with_momentum(
        self, params: list[torch.Tensor], grads: list[torch.Tensor], momentum: float
    ) -> list[torch.Tensor]:
        velocities = [self.state[p]["momentum_buffer"] for p in params]
        torch._foreach_mul_(velocities, momentum)
        torch._foreach_add_(velocities, grads)
        if not self._nesterov:
            return velocities
        torch._foreach_add_(grads, velocities, alpha=momentum)
        return grads

    def _steps_of(self, group: dict[str, Any], params: list[torch.Tensor]) -> list[torch.Tensor]:
        """Of each parameter the matrix that is to be made orthogonal."""
        grads = [p.grad for p in params if p.grad is not None]
        steps = self._with_momentum(params, grads, group["momentum"])
        return [
            step.view(self._shapes[p.data_ptr()][0], -1)
            for p, step in zip(params, steps, strict=True)
        ]

    def _orthogonal(self, matrices: list[torch.Tensor]) -> list[torch.Tensor]:
        """All of them made orthogonal, flat; computed here, or by the ranks that share the work."""
        if self.ranks is None or not matrices:
            return [self._one(matrix) for matrix in matrices]
        owners = owners_of(matrices, self.ranks.size)
        places, used = [], [0] * self.ranks.size
        for matrix, owner in zip(matrices, owners, strict=True):
            places.append((owner, slice(used[owner], used[owner] + matrix.numel())))
            used[owner] += matrix.numel()
        row = torch.zeros(max(used), dtype=self._type(matrices[0]), device=matrices[0].device)
        for matrix, (owner, place) in zip(matrices, places, strict=True):
            if owner == self.ranks.rank:
                row[place] = self._one(matrix)
        # As bytes: the exchange knows no bf16.
        rows = self.ranks.gather(row.view(torch.uint8), "muon").view(row.dtype)
        return [rows[place] for place in places]

    def _one(self, matrix: torch.Tensor) -> torch.Tensor:
        return orthogonal(matrix, self._steps, self._type(matrix)).reshape(-1)

    def _type(self, matrix: torch.Tensor) -> torch.dtype:
        return matrix.dtype if self._dtype is None else self._dtype

    def _move(
        self, group: dict[str, Any], params: list[torch.Tensor], steps: list[torch.Tensor]
    ) -> None:
        rate = group["lr"]
        if self._normalize:
            norms = torch._foreach_norm(params)
            torch._foreach_clamp_min_(norms, TINY)  # weights of zero stay
            torch._foreach_div_(params, norms)
            torch._foreach_mul_(params, [self._shapes[p.data_ptr()][0] ** 0.5 for p in params])
        elif group["weight_decay"]:
            torch._foreach_mul_(params, 1 - rate * group["weight_decay"])
        for p, step in zip(params, steps, strict=True):
            p.add_(step, alpha=factor(-rate * self._scale(p)))

    def _scale(self, p: torch.Tensor) -> float:
        """√max(1, rows/columns) of a matrix; 1 for a convolution's kernels."""
        shape = self._shapes[p.data_ptr()]
        return 1.0 if len(shape) > 2 else float(max(1.0, shape[0] / shape[1]) ** 0.5)


def owners_of(matrices: list[torch.Tensor], ranks: int) -> list[int]:
    """The rank that makes each matrix orthogonal: the costliest first, each to the least loaded rank."""
    costs = [m.numel() * min(m.shape) for m in matrices]
    loads, owners = [0] * ranks, [0] * len(matrices)
    for number in sorted(range(len(matrices)), key=lambda i: -costs[i]):
        owners[number] = loads.index(min(loads))
        loads[owners[number]] += costs[number]
    return owners


@contextlib.contextmanager
def alone(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """A context in which a rank's updates need no other rank, with the same result."""
    if not isinstance(optimizer, Muon):
        yield
        return
    ranks, optimizer.ranks = optimizer.ranks, None
    try:
        yield
    finally:
        optimizer.ranks = ranks
