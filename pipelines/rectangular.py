"""Rectangular evaluation: images of similar shape form a group, which shares one crop size.

Images are sorted by aspect ratio, and consecutive ones form a group. The short side of its crop is
`image_size`, the aspect the mean of the group. Groups do not depend on the number of ranks, and one
rank evaluates a whole group: so every image is cropped the same way at any world size.
Source: J. Howard, "Training ImageNet in 18 minutes", fast.ai 2018, and its repository
imagenet-fast.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pipelines.order import Share

GROUP = 64
"""Images that share one rectangle."""
_MULTIPLE = 8  # pixels, of the long side


class Rectangles:
    """The groups of a dataset whose images have heights and widths `sizes` [N, 2]."""

    def __init__(self, sizes: np.ndarray) -> None:
        aspect = sizes[:, 1] / sizes[:, 0]
        order = np.argsort(aspect, kind="stable")
        self._groups = [order[first : first + GROUP] for first in range(0, len(order), GROUP)]
        self._aspects = np.empty(len(sizes))
        for group in self._groups:
            self._aspects[group] = aspect[group].mean()

    def targets(self, image_size: int) -> np.ndarray:
        """Height and width of every image's crop: [N, 2] int64.

        The short side is `image_size`, the long one rounded down to a multiple of 8.
        """
        wide = np.maximum(self._aspects, 1 / self._aspects)
        long = np.floor(image_size * wide / _MULTIPLE + 1e-9).astype(np.int64) * _MULTIPLE
        long = np.maximum(long, image_size)
        short = np.full_like(long, image_size)
        upright = self._aspects < 1
        return np.stack([np.where(upright, long, short), np.where(upright, short, long)], axis=1)

    def batch(self, largest: int) -> int:
        """Images of one forward pass: a group, or an equal part of it, at most `largest`."""
        group = len(self._groups[0])
        return -(-group // -(-group // largest))

    def shares(self, batch: int, rank: int, world_size: int) -> Iterator[Share]:
        """The shares of `rank`: the same number on every rank, each of one rectangle.

        Over all ranks every image has weight 1 once; a rank without a group gets weight 0.
        """
        rounds = -(-len(self._groups) // world_size)
        places = np.arange(-(-len(self._groups[0]) // batch) * batch)
        for group_number in range(rank, rounds * world_size, world_size):
            own = group_number < len(self._groups)
            group = self._groups[group_number if own else 0]
            ids, weights = group[places % len(group)], (places < len(group)) & own
            for first in range(0, len(places), batch):
                part = slice(first, first + batch)
                yield Share(ids[part], weights[part].astype(np.float32))
