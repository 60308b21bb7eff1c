"""The noise scale of a gradient from the gradients of disjoint batches, with a confidence interval.

Let G be the mean gradient of one image and Σ its covariance. For the sum r of the gradients of b images,
E|r|² = b²|G|² + b·tr Σ. The single batches (b small) and all of them together (b large) give both
unknowns, without bias. B_simple = tr Σ / |G|² is the batch whose gradient has as much noise as signal.
Source: McCandlish et al. 2018, https://arxiv.org/abs/1812.06162, section 2 and appendix A.1.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

FEWEST = 16
"""Batches: of fewer, the spread cannot be judged."""
CONFIDENCE = 0.95
"""Of the interval."""
EQUAL = 1e-9
"""Noise in parts of the signal below which it is rounding."""


@dataclass(frozen=True)
class Sums:
    """What is kept of n batches of gradients; r_i is the sum over the images of batch i."""

    sizes: np.ndarray
    """Images of each batch, [n]."""
    squares: np.ndarray
    """|r_i|², [n] float64."""
    products: np.ndarray
    """⟨r_i, Σ r⟩, [n] float64."""

    @property
    def total(self) -> float:
        """|Σ r|²."""
        return float(self.products.sum())

    def moments(self) -> tuple[float, float]:
        """Unbiased estimates of tr Σ and |G|²; the latter may be negative."""
        found = _moments(
            self.sizes.sum(), (self.sizes**2).sum(), self.squares.sum(), np.asarray(self.total)
        )
        return float(found[0]), float(found[1])

    def without_each(self) -> tuple[np.ndarray, np.ndarray]:
        """The same estimates without batch i, for each i: [n] and [n]."""
        return _moments(
            self.sizes.sum() - self.sizes,
            (self.sizes**2).sum() - self.sizes**2,
            self.squares.sum() - self.squares,
            self.total - 2 * self.products + self.squares,
        )


def _moments(
    images: np.ndarray, square_sizes: np.ndarray, squares: np.ndarray, total: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """E(total) = N²|G|² + N·tr Σ and E(squares) = Σb²·|G|² + N·tr Σ, solved for both."""
    signal = (total - squares) / (images**2 - square_sizes)
    return (squares - square_sizes * signal) / images, signal


@dataclass(frozen=True)
class Estimate:
    """The noise scale at some weights. Numbers of batches are in images."""

    images: int
    """That were used."""
    batches: int
    trace: float
    """tr Σ of one image's gradient."""
    trace_error: float
    """Standard error, as the next one."""
    square: float
    """|G|²; not above 0 where the noise hides the signal."""
    square_error: float
    scale: float | None
    """tr Σ / |G|²; None where |G|² is not above 0."""
    low: float | None
    """Ends of the 95 % confidence interval. `low` None: the gradients contradict every noise scale."""
    high: float | None
    """None: no upper bound, these images are too few."""
    wanted: int | None
    """Without an upper bound: images that would about give one."""

    @property
    def resolved(self) -> bool:
        """Whether there is a noise scale with an upper bound."""
        return self.scale is not None and self.high is not None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "resolved": self.resolved}


def estimate(sums: Sums) -> Estimate | None:
    """The noise scale of `sums`; None if all batches have the same gradient, or a value is not finite.

    Variances are those of the delete-one jackknife over batches, with Student's t. Where |G|² may be 0, the
    interval is Fieller's for a ratio, which has no upper end; else it is the hull of that and of the jackknife's
    for the logarithm, which fits the skewed distribution of tr Σ where few directions have most of the noise.
    At least 3 batches.
    Sources: Fieller 1954, Journal of the Royal Statistical Society B 16(2); Efron and Stein 1981, Annals of
    Statistics 9(3).
    """
    from scipy.stats import t

    if not math.isfinite(sums.total + sums.squares.sum()):
        return None
    trace, square = sums.moments()
    if trace <= EQUAL * max(square, 0.0):
        return None
    n, images = len(sums.sizes), int(sums.sizes.sum())
    traces, squares = sums.without_each()
    covariance = (n - 1) ** 2 / n * np.cov(traces, squares)
    quantile = float(t.ppf((1 + CONFIDENCE) / 2, n - 1))
    low, high = _fieller(trace, square, covariance * quantile**2)
    if low is not None and high is not None and min(traces.min(), squares.min()) > 0:
        deviation = (n - 1) / math.sqrt(n) * float(np.std(np.log(traces / squares), ddof=1))
        factor = math.exp(min(quantile * deviation, 700.0))
        low, high = min(low, trace / square / factor), max(high, trace / square * factor)
    error = math.sqrt(covariance[1, 1])
    return Estimate(
        images=images,
        batches=n,
        trace=trace,
        trace_error=math.sqrt(covariance[0, 0]),
        square=square,
        square_error=error,
        scale=trace / square if square > 0 else None,
        low=low,
        high=high,
        wanted=None if high is not None else _wanted(images, square, quantile * error),
    )


def _fieller(top: float, bottom: float, reach: np.ndarray) -> tuple[float | None, float | None]:
    """All x ≥ 0 for which top − x · bottom may be 0: the lowest and the highest, as in `Estimate`.

    `reach` [2, 2]: covariances of top and bottom times the square of the quantile. They are the x with
    a x² − 2 b x + c ≤ 0.
    """
    a = bottom**2 - float(reach[1, 1])
    b = top * bottom - float(reach[0, 1])
    c = top**2 - float(reach[0, 0])
    root = math.sqrt(max(0.0, b * b - a * c))
    if a > 0:
        return (max(0.0, (b - root) / a), (b + root) / a) if b + root > 0 else (None, None)
    return (0.0 if c <= 0 or a == 0 else (b - root) / a), None


def _wanted(images: int, square: float, reach: float) -> int:
    """Images with which |G|² would be twice its confidence limit above 0. Where noise hides the signal, the error
    falls as 1/images; without any signal, four times as many are a next step."""
    factor = 2 * reach / square if square > 0 else 4.0
    return math.ceil(images * min(max(factor, 2.0), 100.0))
