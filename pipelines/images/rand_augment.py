"""RandAugment: a few random operations of one magnitude on each image, on the device.

Which operations an image gets is a pure function of (seed, epoch, sample), so a resumed run sees
the same pixels. (DALI's RandAugment draws from a generator with a state.)
Source: Cubuk et al. 2019, arXiv 1909.13719; the operations are those of `policies`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from hvdtrain.config.data import Data
from pipelines.hashing import uniforms
from pipelines.images.change import Change, Images
from pipelines.images.numbers import Numbers
from pipelines.images.operations import moved
from pipelines.images.policies import GEOMETRIC, POLICIES, signs

_RAND = 6  # keeps these draws apart from those of `order`, `augment`, mixing and colour


class RandAugment(Change):
    """Applies RandAugment to training images. Pixels keep the 256 levels of 8-bit images."""

    def __init__(self, data: Data, seed: int) -> None:
        """As `data.rand_augment` and its policy say; None: images stay as they are."""
        self._rounds, self._magnitude = data.rand_augment or (0, 0)
        self._policy = POLICIES[data.rand_augment_policy]
        self._mean, self._std = ((torch.tensor(v) * 255).numpy() for v in (data.mean, data.std))
        self._seed = seed

    def prepare(
        self, ids: np.ndarray, epoch: int, size: tuple[int, ...], numbers: Numbers
    ) -> Images | None:
        """See `Change`."""
        if not self._rounds:
            return None
        draws = uniforms(ids, self._policy.draws * self._rounds, _RAND, self._seed, epoch)
        on_device = numbers.add(self._mean), numbers.add(self._std)
        parts = [
            part
            for of_round in np.split(draws, self._rounds, axis=1)
            for part in self._round(of_round, size, numbers)
        ]

        def change(images: torch.Tensor) -> torch.Tensor:
            mean, std = (each()[:, None, None] for each in on_device)
            levels = (images * std + mean).round_()
            for places, operation in parts:
                levels[places()] = operation(levels[places()])
            return levels.sub_(mean).div_(std)

        return change

    def _round(
        self, draws: np.ndarray, size: tuple[int, ...], numbers: Numbers
    ) -> list[tuple[Callable[[], torch.Tensor], Images]]:
        """One operation for each image, by `draws` [N, policy.draws]: which images get each, and how."""
        policy = self._policy
        chosen = (draws[:, 0] * len(policy.operations)).astype(np.int64)
        parts = self._moves(chosen, draws, size, numbers)
        for number, name in enumerate(policy.operations):
            own = np.flatnonzero(chosen == number)
            if len(own) and name != "identity" and name not in GEOMETRIC:
                change = policy.change(name, self._magnitude, draws[own], size, numbers)
                parts.append((numbers.add(own), change))
        return parts

    def _moves(
        self, chosen: np.ndarray, draws: np.ndarray, size: tuple[int, ...], numbers: Numbers
    ) -> list[tuple[Callable[[], torch.Tensor], Images]]:
        """The geometric operations, of all images at once."""
        policy = self._policy
        names = [policy.operations[number] for number in chosen]
        own = np.array([k for k, name in enumerate(names) if name in GEOMETRIC], dtype=np.int64)
        if not len(own):
            return []
        matrices = [
            policy.matrix(names[k], self._magnitude, sign, size)
            for k, sign in zip(own, signs(draws[own]), strict=True)
        ]
        to = numbers.add_float(np.stack(matrices))
        return [(numbers.add(own), lambda levels: moved(levels, to(), policy.fill))]
