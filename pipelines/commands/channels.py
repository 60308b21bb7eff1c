"""Mean and standard deviation of each colour channel of a dataset."""

from __future__ import annotations

import numpy as np

from pipelines import order
from pipelines.commands.reports import Channels

MOST = 50_000
"""Images that are measured; of more, so many are drawn."""
_SMALLEST = 0.001
"""Standard deviation that `data.std` takes."""


def drawn(num_images: int) -> np.ndarray:
    """[num_images] bool: the images to measure, always the same ones."""
    chosen = np.zeros(num_images, dtype=bool)
    chosen[order.permutation(num_images, seed=0, epoch=0)[:MOST]] = True
    return chosen


def moments(pixels: np.ndarray) -> np.ndarray:
    """[2, 3] float64: mean of the levels of each channel, and of their squares; exact sums.

    `pixels` [H, W, 3] uint8.
    """
    height, width, _channels = pixels.shape
    wide = np.int32 if height * 255**2 < 2**31 else np.int64
    rows = pixels.reshape(height, -1).astype(wide)
    columns = np.stack([rows.sum(axis=0), np.einsum("ij,ij->j", rows, rows)])
    sums = columns.astype(np.int64).reshape(2, width, 3).sum(axis=1)
    means: np.ndarray = sums / (height * width)
    return means


class Measuring:
    """Adds up the moments of images, each of which counts the same, as in training."""

    def __init__(self) -> None:
        self._sums = np.zeros((2, 3))
        self._images = 0

    def add(self, of_image: np.ndarray) -> None:
        """Add the `moments` of an image."""
        self._sums += of_image
        self._images += 1

    def channels(self) -> Channels | None:
        """The result in 0-1; None without images, or if a channel hardly varies."""
        if not self._images:
            return None
        means, squares = self._sums / self._images
        deviations = np.sqrt(np.maximum(squares - means**2, 0)) / 255
        if deviations.min() < _SMALLEST:
            return None
        return Channels((means / 255).tolist(), deviations.tolist(), self._images)
