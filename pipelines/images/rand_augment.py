"""RandAugment: a few random operations of one magnitude on each image, on the device.

Which operations an image gets is a pure function of (seed, epoch, sample), so a resumed run sees
the same pixels. (DALI's RandAugment draws from a generator with a state.)
Source: Cubuk et al. 2019, arXiv 1909.13719; the operations are those of `policies`.
"""

from __future__ import annotations

import numpy as np
import torch

from hvdtrain.config.data import Data
from pipelines.hashing import uniforms
from pipelines.images.operations import moved
from pipelines.images.policies import GEOMETRIC, POLICIES, signs

_RAND = 6  # keeps these draws apart from those of `order`, `augment`, mixing and colour


class RandAugment:
    """Applies RandAugment to training images."""

    def __init__(self, data: Data, seed: int) -> None:
        """As `data.rand_augment` and its policy say; None: images stay as they are."""
        self._rounds, self._magnitude = data.rand_augment or (0, 0)
        self._policy = POLICIES[data.rand_augment_policy]
        self._mean, self._std = torch.tensor(data.mean) * 255, torch.tensor(data.std) * 255
        self._seed = seed

    def __call__(self, images: torch.Tensor, ids: np.ndarray, epoch: int) -> torch.Tensor:
        """Normalised images [N, 3, H, W] of samples `ids`, changed as in `epoch`.

        Pixels keep the 256 levels of 8-bit images.
        """
        if not self._rounds:
            return images
        draws = uniforms(ids, self._policy.draws * self._rounds, _RAND, self._seed, epoch)
        mean, std = (v.to(images.device)[:, None, None] for v in (self._mean, self._std))
        levels = (images * std + mean).round_()
        for of_round in np.split(draws, self._rounds, axis=1):
            self._round(levels, of_round)
        return levels.sub_(mean).div_(std)

    def _round(self, levels: torch.Tensor, draws: np.ndarray) -> None:
        """Apply one operation to each image of `levels`, in place; `draws` [N, policy.draws]."""
        policy = self._policy
        chosen = (draws[:, 0] * len(policy.operations)).astype(np.int64)
        self._move(levels, chosen, draws)
        for number, name in enumerate(policy.operations):
            own = np.flatnonzero(chosen == number)
            if len(own) and name != "identity" and name not in GEOMETRIC:
                places = torch.from_numpy(own).to(levels.device)
                changed = policy.changed(name, levels[places], self._magnitude, draws[own])
                levels[places] = changed

    def _move(self, levels: torch.Tensor, chosen: np.ndarray, draws: np.ndarray) -> None:
        """Apply the geometric operations, of all images at once."""
        policy, size = self._policy, tuple(levels.shape[2:])
        names = [policy.operations[number] for number in chosen]
        own = [k for k, name in enumerate(names) if name in GEOMETRIC]
        if own:
            matrices = [
                policy.matrix(names[k], self._magnitude, sign, size)
                for k, sign in zip(own, signs(draws[own]), strict=True)
            ]
            places = torch.tensor(own, device=levels.device)
            levels[places] = moved(levels[places], np.stack(matrices), policy.fill)
