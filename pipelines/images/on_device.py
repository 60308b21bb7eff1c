"""What changes decoded training images on the device, one after the other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from hvdtrain.config.data import Data
from pipelines.images.affine import RandomAffine
from pipelines.images.change import Change, changed
from pipelines.images.colour import ColourJitter
from pipelines.images.rand_augment import RandAugment


class Changes:
    """RandAugment, then colours, then rotation and translation, as far as `data` asks for them."""

    def __init__(self, data: Data, seed: int) -> None:
        colours = ColourJitter(data.color_jitter, data.mean, data.std, seed)
        self._changes: Sequence[Change] = (
            RandAugment(data, seed),
            colours,
            RandomAffine(data, seed),
        )

    def __call__(self, images: torch.Tensor, ids: np.ndarray, epoch: int) -> torch.Tensor:
        """Normalised images [N, 3, H, W] of samples `ids`, changed as in `epoch`."""
        return changed(self._changes, images, ids, epoch)
