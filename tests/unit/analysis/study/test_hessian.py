"""Eigenvalues, trace and density of matrices that are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from hvdtrain.analysis.study.hessian import Spectrum, density, largest_eigenvalues, spectrum


def symmetric(values: np.ndarray, seed: int = 0) -> torch.Tensor:
    """A matrix with these eigenvalues and random eigenvectors."""
    random = torch.randn(len(values), len(values), generator=torch.Generator().manual_seed(seed))
    vectors = torch.linalg.qr(random.double()).Q
    return vectors @ torch.diag(torch.tensor(values)) @ vectors.T


@pytest.mark.parametrize("n", [10, 1000])
def test_the_ends_of_a_spectrum(n: int) -> None:
    values = np.concatenate([np.linspace(-0.5, 1, n - 5), [2.0, 2.5, 3.0, 4.0, 7.0]])
    matrix = symmetric(values)
    found = largest_eigenvalues(matrix.__matmul__, n, 5, tolerance=1e-6, most=300)
    assert found.largest == pytest.approx([7, 4, 3, 2.5, 2], rel=1e-4)
    assert found.smallest == pytest.approx(-0.5, rel=1e-4)
    assert found.products < 200
    for value, residual in zip(found.largest, found.residuals, strict=True):
        assert np.abs(values - value).min() <= residual + 1e-12


def test_a_limit_of_products_holds_and_its_residuals_tell() -> None:
    values = np.linspace(-1, 1, 500)
    calls = []
    matrix = symmetric(values)
    found = largest_eigenvalues(lambda v: calls.append(1) or matrix @ v, 500, 3, most=8)  # type: ignore[func-returns-value]
    assert found.products == len(calls) == 8
    assert max(found.residuals) > 0.01
    for value, residual in zip(found.largest, found.residuals, strict=True):
        assert np.abs(values - value).min() <= residual


def test_equal_eigenvalues_end_a_space_and_the_next_begins() -> None:
    found = largest_eigenvalues(lambda v: 2 * v, 20, 3)
    assert found.largest == pytest.approx([2, 2, 2])
    assert largest_eigenvalues(torch.zeros_like, 4, 9).largest == [0, 0, 0, 0]


@pytest.mark.parametrize("n", [10, 1000])
def test_trace_and_density_of_a_diagonal_are_exact(n: int) -> None:
    """±1 have the same weight on each eigenvector, and ten different eigenvalues need ten steps."""
    distinct = np.linspace(-1, 3, 10)
    diagonal = torch.tensor(np.repeat(distinct, n // 10))
    found = spectrum(lambda v: diagonal * v, n, probes=3, steps=30)
    assert found.trace == pytest.approx(n, rel=1e-4)  # the mean of the eigenvalues is 1
    assert found.trace_error == pytest.approx(0 if n > 3 else math.nan, abs=1e-8)
    at = np.linspace(-2, 4, 50)
    bells = np.exp(-0.5 * ((at[:, None] - distinct) / 0.1) ** 2) / (0.1 * math.sqrt(2 * math.pi))
    assert density(found, at, 0.1) == pytest.approx(bells.mean(axis=1), abs=1e-4)


def test_moments_and_errors_of_a_dense_matrix() -> None:
    n = 1000
    values = np.linspace(-1, 5, n)
    matrix = symmetric(values)
    found = spectrum(matrix.__matmul__, n, probes=8, steps=12, seed=4)
    assert 0 < found.trace_error < 100
    assert found.trace == pytest.approx(values.sum(), abs=4 * found.trace_error)
    signs = [
        torch.randint(2, (n,), generator=torch.Generator().manual_seed(4 * 1_000_003 + k)) * 2.0 - 1
        for k in range(8)
    ]
    for power in (1, 2, 5):  # quadrature of 12 nodes is exact for polynomials up to degree 23
        moments = (found.nodes**power * found.weights).sum(axis=1)
        true = [
            float(v.double() @ torch.linalg.matrix_power(matrix, power) @ v.double()) / n
            for v in signs
        ]
        assert moments == pytest.approx(np.array(true), rel=1e-4)


def test_unit_vectors_give_the_exact_trace_and_density() -> None:
    values = np.array([-2.0, 0.5, 0.75, 1.0, 9.0])
    found = spectrum(symmetric(values).__matmul__, 5, probes=100, steps=100)
    assert found.trace == pytest.approx(values.sum(), rel=1e-9)
    assert found.trace_error == 0
    at = np.linspace(-3, 10, 40)
    exact = Spectrum(values[None], np.full((1, 5), 0.2), 0, 0)
    assert density(found, at, 0.3) == pytest.approx(density(exact, at, 0.3), abs=1e-9)


def test_one_probe_has_no_error() -> None:
    diagonal = torch.arange(1.0, 9.0, dtype=torch.float64)
    assert math.isnan(spectrum(lambda v: diagonal * v, 8, probes=1, steps=8).trace_error)
