"""Directions in the space of weights: random ones, normalised by filter or not, and principal ones.

Vectors are flat float64 [n] on the CPU; `shapes` are those of the parameters, in the same order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hvdtrain.errors import CheckpointError

TINY = 1e-10
"""Added to the norms that are divided by. Source: Li et al. 2018, https://arxiv.org/abs/1712.09913."""


def generator(seed: int, number: int = 0) -> torch.Generator:
    """The random numbers of the `number`-th draw of `seed`."""
    return torch.Generator().manual_seed((seed * 1_000_003 + number) % 2**63)


def random_direction(
    weights: Tensor, shapes: Mapping[str, torch.Size], *, seed: int, number: int, normalise: bool
) -> Tensor:
    """Gaussian, and zero where a parameter has one dimension (biases, norms).

    With `normalise` each filter d_f (first dimension of a parameter: an output channel or unit) becomes
    d_f·‖w_f‖ / (‖d_f‖ + 1e-10); without, the whole has the norm of all weights that it changes.
    Source: Li et al. 2018, https://arxiv.org/abs/1712.09913, section 4.
    """
    drawn = torch.randn(len(weights), generator=generator(seed, number), dtype=torch.float64)
    sizes = [shape.numel() for shape in shapes.values()]
    moved = torch.zeros((), dtype=torch.float64)
    for shape, direction, weight in zip(
        shapes.values(), drawn.split(sizes), weights.cpu().split(sizes), strict=True
    ):
        if len(shape) <= 1:
            direction.zero_()
            continue
        moved += weight.square().sum()
        if normalise:
            filters, of = direction.view(shape[0], -1), weight.view(shape[0], -1)
            norms = of.norm(dim=1, keepdim=True) / (filters.norm(dim=1, keepdim=True) + TINY)
            filters.mul_(norms)
    return drawn if normalise else drawn * (moved.sqrt() / (drawn.norm() + TINY))


@dataclass(frozen=True)
class Plane:
    """The plane through the last of several weights in which the others lie as well as possible."""

    directions: Tensor
    """[2, n], orthogonal, each of norm 1."""
    shares: list[float]
    """Of the squared distances to the last weights that lie along each direction."""
    path: list[tuple[float, float]]
    """The coordinates of all weights; those of the last are (0, 0)."""


def principal_plane(steps: Sequence[Tensor]) -> Plane:
    """The first two principal directions of the differences of `steps`, each [n], to the last one.

    Source: Li et al. 2018, section 7. Raises CheckpointError if the differences span no plane.
    """
    last = steps[-1].cpu()
    rows = (
        torch.stack([step.cpu() - last for step in steps[:-1]])
        if len(steps) > 1
        else last[None] * 0
    )
    values, vectors = torch.linalg.eigh(rows @ rows.T)  # few checkpoints, many weights
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    total = float(values.sum())
    if len(values) < 2 or float(values[1]) <= 1e-12 * total or total == 0:
        raise CheckpointError(
            f"a trajectory of {len(steps)} checkpoints spans no plane: it needs three or more with "
            "different weights: train with checkpoint.keep_every=1"
        )
    directions = (vectors[:, :2].T @ rows) / values[:2].sqrt()[:, None]
    # The sign of a principal direction is arbitrary: the first weights get positive coordinates.
    places = rows @ directions.T
    signs = torch.where(places[0] < 0, -1.0, 1.0).double()
    directions, places = directions * signs[:, None], places * signs
    path = [(float(x), float(y)) for x, y in places.tolist()] + [(0.0, 0.0)]
    return Plane(directions, [float(value) / total for value in values[:2]], path)
