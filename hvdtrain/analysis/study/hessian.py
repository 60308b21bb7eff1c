"""The Hessian by its products with vectors: largest eigenvalues, trace and spectral density.

Vectors are float64 [n]; `product(v)` is H v. Nothing of size n × n is made.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hvdtrain.analysis.study.directions import generator

Product = Callable[[Tensor], Tensor]
ZERO = 1e-10
"""A vector of less than this part of the largest eigenvalue is rounding error."""


@dataclass(frozen=True)
class Eigenvalues:
    """The ends of a spectrum."""

    largest: list[float]
    """In falling order."""
    smallest: float
    residuals: list[float]
    """‖H v − λ v‖ of each of the largest, at most: how far the next true eigenvalue can be."""
    products: int


@dataclass(frozen=True)
class Spectrum:
    """Nodes and weights [probes, steps] whose sums Σ w·f(θ) estimate tr f(H) / n, by each probe."""

    nodes: np.ndarray
    weights: np.ndarray
    trace: float
    trace_error: float
    """Standard error of the trace; 0 if all unit vectors were probes, NaN with one probe."""


class Lanczos:
    """Lanczos' iteration with full reorthogonalisation, one product a step.

    Source: Golub and Van Loan, Matrix Computations, 4th edition, section 10.3.
    """

    def __init__(self, product: Product, start: Tensor, most: int) -> None:
        self._product = product
        self.basis = start.new_empty(min(most, len(start)), len(start))
        self.alphas: list[float] = []
        self.betas: list[float] = []
        self._next: Tensor | None = start / start.norm()

    @property
    def exhausted(self) -> bool:
        """No further step is possible: the space that contains the start is found."""
        return self._next is None or len(self.alphas) == len(self.basis)

    def step(self) -> None:
        """One more vector."""
        assert self._next is not None
        done = len(self.alphas)
        self.basis[done] = self._next
        left = self._product(self._next).to(self._next)
        self.alphas.append(float(torch.dot(left, self._next)))
        left = self._orthogonal(left)
        beta = float(left.norm())
        self.betas.append(beta)
        scale = max(map(abs, (*self.alphas, *self.betas)))
        self._next = left / beta if beta > ZERO * scale else None

    def go_on(self, vector: Tensor) -> None:
        """After the end of a space, begin with `vector` in what is left."""
        self.betas[-1] = 0.0
        rest = self._orthogonal(vector / vector.norm())
        self._next = rest / rest.norm()

    def ritz(self) -> tuple[np.ndarray, np.ndarray]:
        """Eigenvalues [k], rising, and eigenvectors [k, k] in columns, of the tridiagonal matrix."""
        matrix = np.diag(self.alphas)
        for place, beta in enumerate(self.betas[:-1]):
            matrix[place, place + 1] = matrix[place + 1, place] = beta
        values, vectors = np.linalg.eigh(matrix)
        return values, vectors

    def _orthogonal(self, vector: Tensor) -> Tensor:
        known = self.basis[: len(self.alphas)]
        for _ in range(2):  # twice is enough (Kahan, in Parlett's The Symmetric Eigenvalue Problem)
            vector = vector - known.T @ (known @ vector)
        return vector


def largest_eigenvalues(
    product: Product,
    n: int,
    count: int,
    *,
    seed: int = 0,
    most: int = 100,
    tolerance: float = 1e-5,
    device: torch.device | None = None,
) -> Eigenvalues:
    """The `count` largest eigenvalues, and the smallest, by at most `most` products.

    Ends when the residuals are below `tolerance` times the largest absolute eigenvalue. An eigenvalue
    that occurs more than once may be found once.
    """
    count = min(count, n)
    draws = (_gaussian(n, seed, number, device) for number in range(1, n + 2))
    lanczos = Lanczos(product, next(draws), max(most, count))
    while True:
        for _ in range(1 + len(lanczos.alphas) // 10):  # to look at the matrix takes time, too
            if not lanczos.exhausted:
                lanczos.step()
        values, vectors = lanczos.ritz()
        residuals = lanczos.betas[-1] * np.abs(vectors[-1])
        worst = max(residuals[-count:].max(), residuals[0])
        close = lanczos.exhausted or worst <= tolerance * np.abs(values).max()
        if len(values) == len(lanczos.basis) or (len(values) >= count and close):
            break
        if lanczos.exhausted:
            lanczos.go_on(next(draws))
    largest = values[::-1][:count]
    return Eigenvalues(
        largest.tolist(), float(values[0]), residuals[::-1][:count].tolist(), len(values)
    )


def spectrum(
    product: Product,
    n: int,
    *,
    probes: int,
    steps: int,
    seed: int = 0,
    device: torch.device | None = None,
) -> Spectrum:
    """Stochastic Lanczos quadrature by random vectors of ±1, and Hutchinson's trace from the same.

    With n probes or more these are the n unit vectors, and the trace is exact.
    Sources: Hutchinson 1990, https://doi.org/10.1080/03610919008812866; Ubaru, Chen and Saad 2017,
    https://doi.org/10.1137/16M1104974; Ghorbani et al. 2019, https://arxiv.org/abs/1901.10159.
    """
    exact = probes >= n
    steps = min(steps, n)
    probes = n if exact else probes
    nodes, weights = np.zeros((probes, steps)), np.zeros((probes, steps))
    traces = np.zeros(probes)
    for probe in range(probes):
        start = _unit(n, probe, device) if exact else _signs(n, seed, probe, device)
        lanczos = Lanczos(product, start, steps)
        while not lanczos.exhausted:
            lanczos.step()
        values, vectors = lanczos.ritz()
        # A probe whose space has fewer dimensions has weight 0 at the rest.
        nodes[probe] = np.pad(values, (0, steps - len(values)), mode="edge")
        weights[probe, : len(values)] = vectors[0] ** 2
        traces[probe] = n * lanczos.alphas[0]
    spread = 0.0 if exact else math.nan
    if not exact and probes > 1:
        spread = float(traces.std(ddof=1) / math.sqrt(probes))
    return Spectrum(nodes, weights, float(traces.mean()), spread)


def density(found: Spectrum, at: np.ndarray, width: float) -> np.ndarray:
    """The share of eigenvalues per unit at each of `at` [m], smoothed by Gaussians of deviation `width`."""
    distances = (at[:, None] - found.nodes.reshape(1, -1)) / width
    bells = np.exp(-0.5 * distances**2) / (width * math.sqrt(2 * math.pi))
    shares = found.weights.reshape(-1) / len(found.weights)
    return np.asarray(bells @ shares)


def _gaussian(n: int, seed: int, number: int, device: torch.device | None) -> Tensor:
    drawn = torch.randn(n, generator=generator(seed, -number), dtype=torch.float64)
    return drawn.to(device)


def _signs(n: int, seed: int, number: int, device: torch.device | None) -> Tensor:
    drawn = torch.randint(2, (n,), generator=generator(seed, number))
    return drawn.to(device).double() * 2 - 1


def _unit(n: int, place: int, device: torch.device | None) -> Tensor:
    vector = torch.zeros(n, dtype=torch.float64, device=device)
    vector[place] = 1
    return vector
