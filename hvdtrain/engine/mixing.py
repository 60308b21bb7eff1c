"""Mixup and CutMix on the device, with counter-based random numbers.

Every image is mixed with the next one of its micro-batch, which is a random one as the order is
shuffled, or with one that is drawn from the micro-batch, or one that came with it. The mixing share is a pure function of
(seed, epoch, sample).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch

from hvdtrain.config.schema import Config
from pipelines.hashing import uniforms
from pipelines.images.numbers import copied_to

_MIX = 3  # streams of random numbers that the pipelines do not use
_PARTNER = 10
_ATTEMPTS = 40


class Batch(Protocol):
    """Images [N,3,H,W] float32, labels [N] int64, weights [N] float32, sample ids with the numbers of
    their copies [N] int64."""

    @property
    def images(self) -> torch.Tensor: ...
    @property
    def labels(self) -> torch.Tensor: ...
    @property
    def weights(self) -> torch.Tensor: ...
    @property
    def copies(self) -> np.ndarray: ...
    @property
    def partners(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
        """Images, labels and weights of as many others, or None."""


class Part(NamedTuple):
    """One micro-batch: images [n,3,H,W], the other fields [n]. Image i has the target `labels[i]`
    with weight `shares[i]` and `others[i]` with weight `1 - shares[i]`; both are None without
    mixing."""

    images: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor
    others: torch.Tensor | None = None
    shares: torch.Tensor | None = None


@dataclass(frozen=True)
class Mixing:
    """Alphas of the Beta distribution of the shares, for `train.mixup` and `train.cutmix`.

    With both, each image gets one of the two with probability 1/2; with neither, nothing is mixed.
    Source: Zhang et al. 2018, arXiv 1710.09412; Yun et al. 2019, arXiv 1905.04899.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    seed: int = 0
    share: Literal["image", "batch"] = "image"
    """What is drawn for each image, or once for all of a micro-batch: the share, the place of the box,
    and which of the two it is."""
    partner: Literal["neighbour", "random", "doubled"] = "neighbour"
    """The next image, or that at the same place of a random permutation of the micro-batch, or that of
    `Batch.partners`; a batch without those, made up to try its size, mixes neighbours."""
    repeats: int = 1
    """Images in a row that may be copies of one: the next image is the one after them."""

    @classmethod
    def of(cls, cfg: Config) -> Mixing:
        """As the run does it."""
        train = cfg.train
        return cls(
            train.mixup,
            train.cutmix,
            cfg.seed,
            train.mix_share,
            train.mix_partner,
            cfg.data.repeats,
        )

    def parts(self, batch: Batch, images: torch.Tensor, count: int, epoch: int) -> Iterator[Part]:
        """The `count` micro-batches of `batch` with `images` for its own, mixed.

        An image of weight 0 may be a placeholder: it is not mixed with any other.
        """
        parts = _chunks(images, batch.labels, batch.weights, count)
        if not (self.mixup or self.cutmix):
            yield from parts
            return
        beside = batch.partners if self.partner == "doubled" else None
        others = _chunks(*beside, count) if beside is not None else None
        for k, ids in enumerate(np.split(batch.copies, count)):
            other = others[k] if others else self._partners(parts[k], ids, epoch)
            yield self._mixed(parts[k], other, self._draws(ids, epoch, images))

    def _partners(self, part: Part, ids: np.ndarray, epoch: int) -> Part:
        """The images of the micro-batch in the order of those they are mixed with."""
        own = part.images, part.labels, part.weights
        if self.partner != "random":
            return Part(*(each.roll(-self.repeats, 0) for each in own))
        order = np.argsort(uniforms(ids, 1, _PARTNER, self.seed, epoch)[:, 0], kind="stable")
        [places] = copied_to(part.images.device, order)
        return Part(*(each[places] for each in own))

    def _draws(self, ids: np.ndarray, epoch: int, images: torch.Tensor) -> _Draws:
        drawn = ids if self.share == "image" else np.repeat(ids[:1], len(ids))
        u = uniforms(drawn, 2 * _ATTEMPTS + 3, _MIX, self.seed, epoch)
        cut = u[:, -1] < (self.cutmix > 0) / ((self.cutmix > 0) + (self.mixup > 0))
        alpha = np.where(cut, self.cutmix, self.mixup)[:, None]
        shares = _beta(u[:, :_ATTEMPTS], u[:, _ATTEMPTS:-3], alpha)
        place = u[:, -3:-1]
        return _Draws(
            *copied_to(images.device, shares.astype(np.float32), place.astype(np.float32), cut)
        )

    def _mixed(self, part: Part, other: Part, draws: _Draws) -> Part:
        unmixed = ~((part.weights > 0) & (other.weights > 0))
        boxes = _boxes(draws, *part.images.shape[2:])
        area = boxes.flatten(1).float().mean(1)
        shares = torch.where(draws.cut, 1 - area, draws.shares)
        shares = torch.where(unmixed, torch.ones_like(shares), shares)
        images = part.images
        if self.mixup:
            by = torch.where(draws.cut, torch.ones_like(shares), shares)
            images = torch.lerp(other.images, images, by[:, None, None, None])
        if self.cutmix:
            cut = (draws.cut & ~unmixed)[:, None, None] & boxes
            images = torch.where(cut[:, None], other.images, images)
        images = images.contiguous(memory_format=torch.channels_last)
        return Part(images, part.labels, part.weights, other.labels, shares)


def _chunks(
    images: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor, count: int
) -> list[Part]:
    """The micro-batches, not mixed."""
    chunks = (tensor.chunk(count) for tensor in (images, labels, weights))
    return [Part(*chunk) for chunk in zip(*chunks, strict=True)]


class _Draws(NamedTuple):
    shares: torch.Tensor
    """[n] share of the image's own pixels, 0-1."""
    place: torch.Tensor
    """[n, 2] centre of the box."""
    cut: torch.Tensor
    """[n] CutMix rather than mixup."""


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
    """[n, height, width] bool: a box that covers 1 - share of the area, clipped at the border."""
    side = torch.sqrt(1 - draws.shares)
    inside = []
    for axis, length in enumerate((height, width)):
        pixels = torch.arange(length, device=side.device) + 0.5
        distance = (pixels - (draws.place[:, axis] * length)[:, None]).abs()
        inside.append(distance < (side * length / 2)[:, None])
    return inside[0][:, :, None] & inside[1][:, None, :]
