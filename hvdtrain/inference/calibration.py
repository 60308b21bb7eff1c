"""How far the probabilities that a network gives are those with which it is right."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BINS = 15
"""As in Guo et al. 2017."""


@dataclass(frozen=True)
class Bin:
    """The images whose confidence is in (low, high]."""

    low: float
    high: float
    images: int
    confidence: float
    """Mean probability of the predicted class."""
    accuracy: float
    """Share of them that is predicted right."""


def reliability(confidence: np.ndarray, right: np.ndarray) -> list[Bin]:
    """The bins of equal width that have images, the lowest confidence first.

    `confidence` [N]: probability (0-1) of the predicted class; `right` [N]: whether it is the image's class.
    """
    place = np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
    found = []
    for k in range(BINS):
        inside = place == k
        if count := int(inside.sum()):
            found.append(
                Bin(
                    k / BINS,
                    (k + 1) / BINS,
                    count,
                    float(confidence[inside].mean()),
                    float(right[inside].mean()),
                )
            )
    return found


def expected_calibration_error(bins: list[Bin]) -> float:
    """The mean over images of |accuracy − confidence| of their bin (ECE), 0-1.

    Source: Guo et al. 2017, https://arxiv.org/abs/1706.04599, equations 3 and 5, with 15 bins.
    """
    total = sum(one.images for one in bins)
    return sum(one.images * abs(one.accuracy - one.confidence) for one in bins) / max(1, total)
