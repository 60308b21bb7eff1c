"""Sharpness of functions whose largest value in a box is known."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from hvdtrain.analysis.study import sharpness as module
from hvdtrain.analysis.study.sharpness import Evaluate, Subspace, sharpness
from hvdtrain.errors import TrainingError

FLOOR = 0.3


def quadratic(curvatures: np.ndarray, center: np.ndarray) -> Evaluate:
    """FLOOR + ½ Σ λ (w − center)²."""

    def evaluate(w: np.ndarray) -> tuple[float, np.ndarray]:
        away = w - center
        return FLOOR + 0.5 * float(curvatures @ away**2), curvatures * away

    return evaluate


def by_definition(highest: float, loss: float) -> float:
    return 100 * (highest - loss) / (1 + loss)


@pytest.mark.parametrize("n", [10, 1000])
@pytest.mark.parametrize("epsilon", [1e-3, 5e-4])
@pytest.mark.parametrize("spectrum", [np.linspace, np.geomspace])
def test_of_a_quadratic_at_its_minimum_and_beside_it(n: int, epsilon: float, spectrum) -> None:
    curvatures, weights = spectrum(1e-3, 10, n), np.random.default_rng(n).normal(size=n)
    bound = epsilon * (np.abs(weights) + 1)
    for away in (0.0, 1e-3, 0.5):
        found = sharpness(quadratic(curvatures, weights - away), weights, epsilon)
        # A convex function has its largest value in a corner; here each coordinate has its own.
        loss = FLOOR + 0.5 * curvatures.sum() * away**2
        highest = FLOOR + 0.5 * float(curvatures @ (away + bound) ** 2)
        assert found.value == pytest.approx(by_definition(highest, loss), rel=1e-4)
        assert found.loss == pytest.approx(loss)
        assert found.subspace is None


def test_in_a_subspace_of_few_dimensions_against_every_corner() -> None:
    n, p, epsilon = 1000, 6, 1e-3
    curvatures, weights = np.linspace(0.1, 2, n), np.random.default_rng(0).normal(size=n)
    evaluate, subspace = quadratic(curvatures, weights - 0.05), Subspace(n, p, seed=3)
    matrix = np.stack(list(subspace)).T
    bound = epsilon * (np.abs(np.linalg.pinv(matrix) @ weights) + 1)
    corners = (matrix @ (bound * signs) for signs in itertools.product((-1, 1), repeat=p))
    highest = max(evaluate(weights + corner)[0] for corner in corners)
    found = sharpness(evaluate, weights, epsilon, subspace=subspace)
    assert found.value == pytest.approx(by_definition(highest, evaluate(weights)[0]), rel=1e-4)
    assert found.subspace == p


@pytest.mark.parametrize("kept_bytes", [module.KEPT_BYTES, 0])
def test_of_a_plane_in_a_hundred_dimensions(
    kept_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "KEPT_BYTES", kept_bytes)
    n, epsilon = 1000, 5e-4
    random = np.random.default_rng(1)
    weights, slope = random.normal(size=n), random.normal(size=n)
    base = FLOOR - float(slope @ weights)
    subspace = Subspace(n, 100, seed=5)
    bound = epsilon * (np.abs(subspace.coordinates(weights)) + 1)
    rise = float(bound @ np.abs(subspace.transposed_times(slope)))
    found = sharpness(
        lambda w: (base + float(slope @ w), slope), weights, epsilon, subspace=subspace
    )
    assert found.value == pytest.approx(by_definition(FLOOR + rise, FLOOR), rel=1e-4)


def test_a_matrix_that_is_drawn_again_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Subspace(400, 30, seed=2)
    monkeypatch.setattr(module, "KEPT_BYTES", 0)
    drawn = Subspace(400, 30, seed=2)
    x = np.random.default_rng(0).normal(size=400)
    assert drawn.times(x[:30]) == pytest.approx(kept.times(x[:30]), rel=1e-9)
    assert drawn.transposed_times(x) == pytest.approx(kept.transposed_times(x), rel=1e-9)
    assert drawn.coordinates(x) == pytest.approx(kept.coordinates(x), rel=1e-9)
    assert not drawn.coordinates(0 * x).any()


def test_the_subspace_depends_on_its_seed_alone() -> None:
    first, again, other = (Subspace(50, 4, seed) for seed in (1, 1, 2))
    z = np.array([1.0, -2.0, 0.5, 3.0])
    assert np.array_equal(first.times(z), again.times(z))
    assert not np.allclose(first.times(z), other.times(z))


def test_a_flat_loss_has_none() -> None:
    found = sharpness(lambda w: (FLOOR, np.zeros_like(w)), np.ones(10), 1e-3)
    assert found.value == 0


def test_a_loss_that_is_not_finite_is_refused() -> None:
    with pytest.raises(TrainingError, match="not finite near the weights"):
        sharpness(lambda w: (float(np.where(w.sum() == 3, 1, np.inf)), w), np.ones(3), 1e-3)
