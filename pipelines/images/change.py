"""A change of training images on their device, in two parts: what the host draws, and what it does."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import numpy as np
import torch

from pipelines.images.numbers import Numbers

Images = Callable[[torch.Tensor], torch.Tensor]
"""Images [N, 3, H, W] -> images of the same shape."""


class Change(ABC):
    """A pure function of images and of (seed, epoch, sample)."""

    @abstractmethod
    def prepare(
        self, ids: np.ndarray, epoch: int, size: tuple[int, ...], numbers: Numbers
    ) -> Images | None:
        """Draw what images of samples `ids` [N] with the height and width `size` get in `epoch`.

        What the device needs of it is added to `numbers`; the result is called once they are there.
        None: images stay as they are.
        """

    def __call__(self, images: torch.Tensor, ids: np.ndarray, epoch: int) -> torch.Tensor:
        """Normalised images [N, 3, H, W] of samples `ids`, changed as in `epoch`."""
        return changed([self], images, ids, epoch)


def changed(
    changes: Sequence[Change], images: torch.Tensor, ids: np.ndarray, epoch: int
) -> torch.Tensor:
    """The images after all changes, one after the other."""
    numbers, size = Numbers(), tuple(images.shape[2:])
    prepared = [change.prepare(ids, epoch, size, numbers) for change in changes]
    numbers.send(images.device)
    for change in prepared:
        if change is not None:
            images = change(images)
    return images
