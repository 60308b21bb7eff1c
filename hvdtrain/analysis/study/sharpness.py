"""Sharpness: how far the loss can rise within a small box around the weights.

    φ = 100 · (max L(w + A z) − L(w)) / (1 + L(w)),  |z_i| ≤ ε (|(A⁺w)_i| + 1)

A is the identity, or a random matrix [n, p] of standard normal numbers, whose columns span a subspace.
Source: Keskar et al. 2017, https://arxiv.org/abs/1609.04836, metric 2.1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from hvdtrain.analysis.study.directions import generator
from hvdtrain.errors import TrainingError

Evaluate = Callable[[np.ndarray], tuple[float, np.ndarray]]
"""Weights [n] float64 → loss and gradient [n]."""
START = 0.01
"""Size of the first step from the weights, in parts of the box: at a minimum the gradient is zero."""
STEP = 100.0
"""Mean slope of the scaled loss at the start. L-BFGS-B first tries a step of this length in a box of
half-width 1: most coordinates of a curved loss reach their bound at once."""
KEPT_BYTES = 2**30
"""Largest random matrix that is kept; a larger one is drawn again for each product."""


@dataclass(frozen=True)
class Sharpness:
    """Of one checkpoint."""

    epsilon: float
    subspace: int | None
    """Its dimensions; None: the full space."""
    loss: float
    highest: float
    """The largest loss that was found in the box."""
    value: float
    evaluations: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class Subspace:
    """The columns of a random matrix A, [n, p], of standard normal numbers by `seed`."""

    def __init__(self, n: int, p: int, seed: int) -> None:
        self.n, self.p, self._seed = n, p, seed
        self._kept = np.stack(list(self._drawn())) if 8 * n * p <= KEPT_BYTES else None

    def __iter__(self) -> Iterator[np.ndarray]:
        """Column after column, [n]."""
        return iter(self._drawn() if self._kept is None else self._kept)

    def times(self, z: np.ndarray) -> np.ndarray:
        """A z, [n]."""
        if self._kept is not None:
            return np.asarray(z @ self._kept)
        total = np.zeros(self.n)
        for factor, column in zip(z, self, strict=True):
            total += factor * column
        return total

    def transposed_times(self, x: np.ndarray) -> np.ndarray:
        """Aᵀ x, [p]."""
        if self._kept is not None:
            return np.asarray(self._kept @ x)
        return np.array([column @ x for column in self])

    def coordinates(self, x: np.ndarray) -> np.ndarray:
        """A⁺ x, [p]: those of the point of the subspace that is nearest to x."""
        if self._kept is not None:
            return np.asarray(np.linalg.lstsq(self._kept.T, x, rcond=None)[0])
        # Conjugate gradients on AᵀA z = Aᵀx: such columns are nearly orthogonal, so few steps do.
        left = self.transposed_times(x)
        found, step, square, limit = np.zeros(self.p), left, left @ left, 1e-24 * (left @ left)
        for _ in range(10 * self.p):
            if square <= limit:
                break
            image = self.transposed_times(self.times(step))
            length = square / (step @ image)
            found, left = found + length * step, left - length * image
            square, before = left @ left, square
            step = left + square / before * step
        return found

    def _drawn(self) -> Iterator[np.ndarray]:
        for number in range(self.p):
            random = generator(self._seed, number)
            yield torch.randn(self.n, generator=random, dtype=torch.float64).numpy()


def sharpness(
    evaluate: Evaluate,
    weights: np.ndarray,
    epsilon: float,
    *,
    subspace: Subspace | None = None,
    iterations: int = 10,
    seed: int = 0,
) -> Sharpness:
    """The sharpness at `weights` [n], by at most `iterations` of L-BFGS-B from near the weights.

    Raises TrainingError if the loss is not finite in the box.
    """
    loss, _ = evaluate(weights)
    place = weights if subspace is None else subspace.coordinates(weights)
    bound = epsilon * (np.abs(place) + 1)

    def in_box(z: np.ndarray) -> tuple[float, np.ndarray]:
        if subspace is None:
            return evaluate(weights + z)
        value, gradient = evaluate(weights + subspace.times(z))
        return value, subspace.transposed_times(gradient)

    highest, evaluations = _highest(in_box, bound, iterations, seed)
    highest = max(highest, loss)
    value = 100 * (highest - loss) / (1 + loss)
    dimensions = None if subspace is None else subspace.p
    return Sharpness(epsilon, dimensions, loss, highest, value, evaluations + 1)


def _highest(
    evaluate: Evaluate, bound: np.ndarray, iterations: int, seed: int
) -> tuple[float, int]:
    """The largest value that L-BFGS-B finds for |z_i| ≤ `bound_i`, and how often it evaluated."""
    from scipy.optimize import minimize

    found: list[float] = []

    def measured(z: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = evaluate(z)
        if not np.isfinite(value):
            raise TrainingError("sharpness: the loss is not finite near the weights")
        found.append(value)
        return value, gradient

    signs = torch.randint(2, bound.shape, generator=generator(seed, -1)).numpy() * 2.0 - 1
    start = START * signs
    first = measured(bound * start)
    slope = float(np.abs(first[1] * bound).mean())
    scale = STEP / slope if slope > 0 else 1.0

    def falling(u: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = first if np.array_equal(u, start) else measured(bound * u)
        return -scale * (value - first[0]), -scale * bound * gradient

    box = [(-1.0, 1.0)] * len(bound)
    limits = {"maxiter": iterations, "ftol": 0.0, "gtol": 0.0}
    minimize(falling, start, jac=True, method="L-BFGS-B", bounds=box, options=limits)
    return max(found), len(found)
