"""Random rotation and translation of training images, on the device.

The movement of an image is a pure function of (seed, epoch, sample) and of its size.
"""

from __future__ import annotations

import numpy as np
import torch

from hvdtrain.config.data import Data
from pipelines.hashing import uniforms
from pipelines.images.change import Change, Images
from pipelines.images.numbers import Numbers
from pipelines.images.operations import moved, turn

_AFFINE = 9  # keeps these draws apart from those of other changes


class RandomAffine(Change):
    """Turns and moves training images. The nearest pixel is taken, and black outside the image."""

    def __init__(self, data: Data, seed: int) -> None:
        """By `data.rotation` and `data.translation`; with both 0 images stay as they are."""
        self._degrees, self._share, self._seed = data.rotation, data.translation, seed
        self._black = (-torch.tensor(data.mean) / torch.tensor(data.std)).numpy()

    def prepare(
        self, ids: np.ndarray, epoch: int, size: tuple[int, ...], numbers: Numbers
    ) -> Images | None:
        """See `Change`."""
        if not self._degrees and not self._share:
            return None
        matrices = numbers.add_float(self.matrices(ids, epoch, size))
        black = numbers.add(self._black)

        def change(images: torch.Tensor) -> torch.Tensor:
            result = moved(images, matrices(), black()[:, None, None])
            return result.contiguous(memory_format=torch.channels_last)

        return change

    def matrices(self, ids: np.ndarray, epoch: int, size: tuple[int, ...]) -> np.ndarray:
        """[N, 2, 3], as `moved` takes them, for images of the height and width `size`.

        First about the middle by an angle that is uniform in ± rotation, then by whole pixels: uniform
        in ± translation times the side, rounded.
        Source: `RandomAffine` of torchvision 0.28.
        """
        draws = 2 * uniforms(ids, 3, _AFFINE, self._seed, epoch) - 1
        sides = np.array([size[1], size[0]], dtype=np.float64)
        turned = turn(np.deg2rad(self._degrees * draws[:, 0]))
        shifts = np.rint(self._share * draws[:, 1:] * sides)
        centre = sides / 2
        offsets = centre - np.einsum("nij,nj->ni", turned, centre + shifts)
        return np.concatenate([turned, offsets[:, :, None]], axis=2)
