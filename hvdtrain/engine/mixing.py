"""Mixup and CutMix: images of a batch mixed in pairs, on the device, from counted random numbers.

Every image is mixed with the next one of its micro-batch (which is a random one: the order is),
by a share that is a pure function of (seed, epoch, sample).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch.nn import functional

from pipelines.hashing import uniforms

_MIX = 3  # keeps these draws apart from those of the pipelines
_ATTEMPTS = 40


class Batch(Protocol):
    """Images [N,3,H,W] float32, labels [N] int64, weights [N] float32, sample ids [N] int64."""

    @property
    def images(self) -> torch.Tensor: ...
    @property
    def labels(self) -> torch.Tensor: ...
    @property
    def weights(self) -> torch.Tensor: ...
    @property
    def indices(self) -> np.ndarray: ...


class Part(NamedTuple):
    """One micro-batch: [n,3,H,W], and [n] each. Image i shows `share[i]` of `labels[i]` and
    `1 - share[i]` of `others[i]`; both None where nothing is mixed."""

    images: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor
    others: torch.Tensor | None = None
    shares: torch.Tensor | None = None

    def losses(self, logits: torch.Tensor, label_smoothing: float) -> torch.Tensor:
        """Cross entropy of each image, [n], from `logits` [n, classes]."""
        losses = functional.cross_entropy(
            logits, self.labels, reduction="none", label_smoothing=label_smoothing
        )
        if self.others is None or self.shares is None:
            return losses
        other = functional.cross_entropy(
            logits, self.others, reduction="none", label_smoothing=label_smoothing
        )
        return torch.lerp(other, losses, self.shares)


@dataclass(frozen=True)
class Mixing:
    """What `train.mixup` and `train.cutmix` ask for: alpha of the shares' Beta distribution.

    With both, half of the images get one and half the other; with neither, nothing is done.
    Source: Zhang et al. 2018, arXiv 1710.09412; Yun et al. 2019, arXiv 1905.04899.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    seed: int = 0

    def parts(self, batch: Batch, count: int, epoch: int) -> Iterator[Part]:
        """The `count` micro-batches of `batch`, mixed.

        An image of weight 0, which may be a placeholder, is neither mixed nor mixed in.
        """
        chunks = (tensor.chunk(count) for tensor in (batch.images, batch.labels, batch.weights))
        parts = [Part(*chunk) for chunk in zip(*chunks, strict=True)]
        if not (self.mixup or self.cutmix):
            yield from parts
            return
        for part, ids in zip(parts, np.split(batch.indices, count), strict=True):
            yield self._mixed(part, self._draws(ids, epoch, part.images))

    def _draws(self, ids: np.ndarray, epoch: int, images: torch.Tensor) -> _Draws:
        u = uniforms(ids, 2 * _ATTEMPTS + 3, _MIX, self.seed, epoch)
        cut = u[:, -1] < (self.cutmix > 0) / ((self.cutmix > 0) + (self.mixup > 0))
        alpha = np.where(cut, self.cutmix, self.mixup)[:, None]
        shares = _beta(u[:, :_ATTEMPTS], u[:, _ATTEMPTS:-3], alpha)
        place = u[:, -3:-1]
        on_device = [torch.from_numpy(v).to(images.device) for v in (shares, place, cut)]
        return _Draws(on_device[0].float(), on_device[1].float(), on_device[2])

    def _mixed(self, part: Part, draws: _Draws) -> Part:
        used = part.weights > 0
        alone = ~(used & used.roll(-1))
        others = part.images.roll(-1, 0)
        boxes = _boxes(draws, *part.images.shape[2:])
        area = boxes.flatten(1).float().mean(1)
        shares = torch.where(draws.cut, 1 - area, draws.shares)
        shares = torch.where(alone, torch.ones_like(shares), shares)
        images = part.images
        if self.mixup:
            by = torch.where(draws.cut, torch.ones_like(shares), shares)
            images = torch.lerp(others, images, by[:, None, None, None])
        if self.cutmix:
            cut = (draws.cut & ~alone)[:, None, None] & boxes
            images = torch.where(cut[:, None], others, images)
        images = images.contiguous(memory_format=torch.channels_last)
        return Part(images, part.labels, part.weights, part.labels.roll(-1), shares)


class _Draws(NamedTuple):
    shares: torch.Tensor
    """[n] of the image's own pixels, in 0-1."""
    place: torch.Tensor
    """[n, 2] of the box's centre."""
    cut: torch.Tensor
    """[n] whether a box is cut, rather than all pixels averaged."""


def _beta(u: np.ndarray, v: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Beta(alpha, alpha) for alpha in (0, 1], [n], by rejection from uniforms `u`, `v` [n, k].

    Source: Jöhnk's method, in L. Devroye, "Non-uniform random variate generation", IX.3.5. At
    most half of the attempts are rejected, so all of 40 never are.
    """
    with np.errstate(under="ignore"):
        x, y = u ** (1 / alpha), v ** (1 / alpha)
    fits = (x + y <= 1) & (x + y > 0)
    rows, first = np.arange(len(u)), fits.argmax(axis=1)
    x, y = x[rows, first], y[rows, first]
    shares: np.ndarray = np.where(fits.any(axis=1), x / np.maximum(x + y, 1e-300), 0.5)
    return shares


def _boxes(draws: _Draws, height: int, width: int) -> torch.Tensor:
    """[n, height, width] bool: a box of 1 - share of the area, cut off at the border."""
    side = torch.sqrt(1 - draws.shares)
    inside = []
    for axis, length in enumerate((height, width)):
        pixels = torch.arange(length, device=side.device) + 0.5
        distance = (pixels - (draws.place[:, axis] * length)[:, None]).abs()
        inside.append(distance < (side * length / 2)[:, None])
    return inside[0][:, :, None] & inside[1][:, None, :]
