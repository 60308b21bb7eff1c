"""The gradient noise scale: an estimate of the largest useful batch.

Let G be the true gradient and Σ the covariance of one image's gradient. Averaged over b images,
E‖g‖² = |G|² + tr(Σ)/b. Two batch sizes in one update, a rank's and the global one, give both
unknowns; B_simple = tr(Σ)/|G|² is the batch at which noise and signal are equal.
Source: McCandlish et al. 2018, https://arxiv.org/abs/1812.06162, section 2 and appendix A.1.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

DECAY = 0.98
"""Share of the old average at each measurement: a memory of 50 of them."""


@dataclass
class NoiseScale:
    """Running estimates of tr(Σ) and |G|², averaged separately, as the ratio of a single update is
    biased.

    Both averages start at 0 and have the same weights, so their ratio needs no bias correction.
    """

    trace: float = 0.0
    square: float = 0.0
    measured: int = 0

    def add(self, small_square: float, inverse_small: float, big_square: float, big: float) -> None:
        """Add one update.

        `small_square`: ‖g‖² averaged over workers; `inverse_small`: mean of 1/b over their batch
        sizes b; `big_square`: ‖g‖² of the global batch; `big`: its size. Ignored where the two
        batches have the same size, or a value is not finite.
        """
        difference = inverse_small - 1 / big if big > 0 else 0.0
        if difference <= 0 or not math.isfinite(small_square + big_square):
            return
        trace = (small_square - big_square) / difference
        self.trace += (1 - DECAY) * (trace - self.trace)
        self.square += (1 - DECAY) * (big_square - trace / big - self.square)
        self.measured += 1

    @property
    def images(self) -> float | None:
        """B_simple in images; None before the first measurement, or while an estimate is negative."""
        return self.trace / self.square if self.square > 0 and self.trace > 0 else None

    def state(self) -> dict[str, float]:
        """The constructor's arguments, as a checkpoint keeps them."""
        return asdict(self)


def advice(noise_images: float, batch: int) -> dict[str, float]:
    """What the noise scale predicts for training with global batches of `batch` images.

    recommended_batch: the batch that needs twice the minimum of steps and twice the minimum of
    images; steps_over_fewest, images_over_fewest: steps and images at `batch`, relative to those
    minima; doubling_steps, doubling_images: steps and images at twice the batch, relative to those
    at `batch`.
    Source: McCandlish et al. 2018, equation 2.11, (S/S_min − 1)(E/E_min − 1) = 1, with the
    critical batch taken to be the noise scale.
    """

    def steps(size: float) -> float:
        return 1 + noise_images / size

    def images(size: float) -> float:
        return 1 + size / noise_images

    return {
        "images": noise_images,
        "batch": batch,
        "recommended_batch": max(1, round(noise_images)),
        "steps_over_fewest": steps(batch),
        "images_over_fewest": images(batch),
        "doubling_steps": steps(2 * batch) / steps(batch),
        "doubling_images": images(2 * batch) / images(batch),
    }
