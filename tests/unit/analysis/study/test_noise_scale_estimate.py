"""The estimator of the noise scale where Σ and G are known."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from hvdtrain.analysis.study.noise.estimate import Estimate, Sums, _fieller, estimate


def sums_of(gradients: np.ndarray, sizes: list[int]) -> Sums:
    """Of batches of these sizes, one after the other; `gradients` [images, n]."""
    ends = np.cumsum(sizes)
    rows = np.array([gradients[e - s : e].sum(0) for e, s in zip(ends, sizes, strict=True)])
    return Sums(np.array(sizes, dtype=float), (rows**2).sum(1), rows @ rows.sum(0))


def found(gradients: np.ndarray, sizes: list[int]) -> Estimate:
    result = estimate(sums_of(gradients, sizes))
    assert result is not None
    return result


def test_over_all_draws_the_mean_is_exact() -> None:
    """Every draw of 4 images with replacement from 3, in batches of 2 and of 1, 1, 2."""
    population = np.random.default_rng(0).normal(size=(3, 5)) + 0.7
    mean = population.mean(0)
    trace, square = ((population - mean) ** 2).sum(1).mean(), (mean**2).sum()
    for sizes in ([2, 2], [1, 1, 2]):
        moments = [
            sums_of(population[list(draw)], sizes).moments()
            for draw in itertools.product(range(3), repeat=4)
        ]
        assert np.mean(moments, axis=0) == pytest.approx([trace, square], rel=1e-12)


def test_over_all_shuffles_of_a_dataset_the_mean_is_exact() -> None:
    """Without replacement: Σ with 1 / (n - 1), and |G|² of what the dataset is a sample of."""
    images = np.random.default_rng(1).normal(size=(6, 4)) + 1.0
    trace = float(images.var(axis=0, ddof=1).sum())
    square = float((images.mean(0) ** 2).sum()) - trace / 6
    moments = [
        sums_of(images[list(order)], [2, 2, 2]).moments()
        for order in itertools.permutations(range(6))
    ]
    assert np.mean(moments, axis=0) == pytest.approx([trace, square], rel=1e-12)


def test_batches_of_one_image_have_the_usual_variance() -> None:
    images = np.random.default_rng(2).normal(size=(12, 3)) + 2.0
    result = found(images, [1] * 12)
    assert result.trace == pytest.approx(images.var(axis=0, ddof=1).sum(), rel=1e-12)
    assert result.square == pytest.approx((images.mean(0) ** 2).sum() - result.trace / 12)
    assert result.scale == pytest.approx(result.trace / result.square)


def test_without_each_is_the_estimate_of_the_others() -> None:
    images = np.random.default_rng(3).normal(size=(20, 6)) + 0.5
    sizes = [3, 2, 4, 3, 3, 5]
    sums = sums_of(images, sizes)
    ends = np.cumsum(sizes)
    for i, (trace, square) in enumerate(zip(*sums.without_each(), strict=True)):
        rest = np.delete(images, range(ends[i] - sizes[i], ends[i]), axis=0)
        others = sums_of(rest, sizes[:i] + sizes[i + 1 :]).moments()
        assert (trace, square) == pytest.approx(others, rel=1e-9)


UNEVEN = np.array([3.0, 2.0, *[0.5] * 38])
EVEN = np.ones(200)
ONE = np.array([3.0, *[0.1] * 38])
"""Standard deviations: nearly all of the noise in one direction is the worst case of an interval."""


@pytest.mark.parametrize(
    ("deviations", "true_scale", "least"),
    [(UNEVEN, 20.0, 0.93), (UNEVEN, 400.0, 0.93), (EVEN, 20.0, 0.93), (ONE, 20.0, 0.92)],
)
def test_the_interval_has_the_true_noise_scale(
    deviations: np.ndarray, true_scale: float, least: float
) -> None:
    """Gradients N(μ, Σ): 300 times 320 images in 16 batches. At 400 the noise of all images together is larger
    than the signal."""
    random = np.random.default_rng(4)
    trace = float((deviations**2).sum())
    mean = random.normal(size=len(deviations))
    mean *= math.sqrt(trace / true_scale) / np.linalg.norm(mean)
    inside, moments = 0, []
    for _ in range(300):
        images = mean + deviations * random.normal(size=(320, len(deviations)))
        result = found(images, [20] * 16)
        moments.append((result.trace, result.square))
        assert result.low is None or result.high is None or result.low < result.high
        above = result.low is not None and result.low <= true_scale
        inside += above and (result.high is None or true_scale <= result.high)
    errors = np.std(moments, axis=0) / math.sqrt(300)
    assert np.all(np.abs(np.mean(moments, axis=0) - (trace, (mean**2).sum())) < 3 * errors)
    assert inside >= least * 300


def test_an_interval_that_no_noise_scale_fits() -> None:
    """|G|² so far below 0 that this is no chance: there is no bound either."""
    assert _fieller(1.0, -1.0, np.diag([0.01, 0.01])) == (None, None)
    assert _fieller(1.0, 1.0, np.zeros((2, 2))) == (1.0, 1.0)
    low, high = _fieller(1.0, 0.1, np.diag([0.0, 0.04]))
    assert low == pytest.approx(1 / 0.3)  # |G|² is 0.1 ± 0.2
    assert high is None
    assert _fieller(0.1, 1.0, np.diag([0.04, 0.0])) == (0.0, pytest.approx(0.3))
    assert _fieller(0.1, 0.1, np.diag([0.04, 0.04])) == (0.0, None)


def test_without_signal_there_is_a_bound_and_no_number() -> None:
    """The gradients of two halves are opposite: |G|² is estimated below 0."""
    half = np.random.default_rng(5).normal(size=(80, 10))
    result = found(np.concatenate([half, -half]), [10] * 16)
    assert result.square < 0
    assert result.scale is None
    assert result.high is None
    assert not result.resolved
    assert result.wanted is not None
    assert result.wanted >= 4 * 160
    assert result.low is None or result.low > 0


def test_a_weak_signal_has_no_upper_bound_but_more_images_give_one() -> None:
    random = np.random.default_rng(6)
    images = random.normal(size=(16000, 30)) + 0.03
    few = found(images[:800], [50] * 16)
    assert few.scale is not None
    assert few.high is None
    assert few.wanted is not None
    assert 1600 <= few.wanted <= 16000
    many = found(images, [1000] * 16)
    assert many.resolved
    assert many.wanted is None


def test_equal_and_infinite_gradients_have_no_noise_scale() -> None:
    same = np.ones((16, 3))
    assert estimate(sums_of(same, [2] * 8)) is None
    assert estimate(sums_of(0 * same, [2] * 8)) is None
    assert estimate(sums_of(np.inf * same, [2] * 8)) is None
