"""Random erasing on the device, with counter-based random numbers: `data.random_erasing`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from pipelines.hashing import uniforms
from pipelines.images.numbers import copied_to

_ERASE = 7  # keeps these draws apart from those of the pipelines and of mixing
_ATTEMPTS = 10
AREA = (0.02, 0.33)
"""Smallest and largest share of the image."""
ASPECT = (0.3, 3.3)
"""Height over width, drawn evenly in its logarithm."""


@dataclass(frozen=True)
class Erasing:
    """Fill a box of each image with the mean colour, with `probability`.

    The box of an image is a pure function of (seed, epoch, sample) and of its size. Area, aspect and
    attempts are torchvision's. Source: Zhong et al. 2017, https://arxiv.org/abs/1708.04896.
    """

    probability: float = 0.0
    seed: int = 0

    def erased(self, images: torch.Tensor, ids: np.ndarray, epoch: int) -> torch.Tensor:
        """`images` [n, 3, H, W], normalised, of the samples `ids` [n], with their boxes set to 0."""
        if not self.probability:
            return images
        boxes = self._boxes(ids, epoch, *images.shape[2:])
        [sent] = copied_to(images.device, boxes)
        top, bottom, left, right = sent[:, :, None]
        rows = torch.arange(images.shape[2], device=images.device)
        columns = torch.arange(images.shape[3], device=images.device)
        in_rows, in_columns = (rows >= top) & (rows < bottom), (columns >= left) & (columns < right)
        erased = in_rows[:, :, None] & in_columns[:, None, :]
        return torch.where(erased[:, None], 0.0, images)

    def _boxes(self, ids: np.ndarray, epoch: int, height: int, width: int) -> np.ndarray:
        """First and last row and column, both + 1 for the last, of each image, [4, n]; an empty box where
        nothing is erased, or where no attempt fits."""
        u = uniforms(ids, 1 + 4 * _ATTEMPTS, _ERASE, self.seed, epoch)
        drawn = u[:, 1:].reshape(len(ids), _ATTEMPTS, 4)
        area = height * width * (AREA[0] + (AREA[1] - AREA[0]) * drawn[..., 0])
        low, high = np.log(ASPECT)
        aspect = np.exp(low + (high - low) * drawn[..., 1])
        tall = np.rint(np.sqrt(area * aspect)).astype(np.int64)
        wide = np.rint(np.sqrt(area / aspect)).astype(np.int64)
        fits = (tall < height) & (wide < width)
        chosen = np.arange(len(ids)), fits.argmax(axis=1)
        erased = fits.any(axis=1) & (u[:, 0] < self.probability)
        tall, wide = tall[chosen] * erased, wide[chosen] * erased
        top = (drawn[..., 2][chosen] * (height - tall + 1)).astype(np.int64)
        left = (drawn[..., 3][chosen] * (width - wide + 1)).astype(np.int64)
        return np.stack([top, top + tall, left, left + wide])
