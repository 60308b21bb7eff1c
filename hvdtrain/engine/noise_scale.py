"""The gradient noise scale: how large a batch is useful, as arithmetic.

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
    """Running estimates of tr(Σ) and |G|², averaged apart: their ratio is biased in one update.

    Both averages start at 0 and have the same weights, so their ratio needs no bias correction.
    """

    trace: float = 0.0
    square: float = 0.0
    measured: int = 0

    def add(self, small_square: float, inverse_small: float, big_square: float, big: float) -> None:
        """One update: ‖g‖² averaged over workers, the mean of 1/b over their images b, ‖g‖² of the
        global batch, and its images.

        Nothing is added where workers and global batch are the same, or a value is not finite.
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
        """B_simple; None before the first measurement, and while noise hides one of the two."""
        return self.trace / self.square if self.square > 0 and self.trace > 0 else None

    def state(self) -> dict[str, float]:
        """What a checkpoint keeps: the constructor's arguments."""
        return asdict(self)


def advice(noise_images: float, batch: int) -> dict[str, float]:
    """What the noise scale says about training at `batch` images.

    recommended_batch: where a run needs twice the fewest steps and twice the fewest images;
    steps_over_fewest, images_over_fewest: those of `batch`; doubling_steps, doubling_images:
    steps and images of twice the batch over those of `batch`.
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
