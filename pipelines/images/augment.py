"""Crop windows: which part of each image is used, as a pure function of (seed, epoch, sample).

They are computed on the host and fed to the DALI graph together with the bytes. Nothing depends on
earlier draws, so a resumed run sees the same pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipelines.hashing import uniforms

_AUGMENT = 2  # keeps these draws apart from those of `order`
_FLIP = 8
_ATTEMPTS = 10
_DRAWS = 2 * _ATTEMPTS + 3
PAD_FRACTION = 8  # CIFAR: pad 4 at 32 px


@dataclass(frozen=True)
class Draws:
    """Random numbers of one batch, all in [0, 1)."""

    area: np.ndarray
    """[N, 10]: for the area of each attempt."""
    aspect: np.ndarray
    """[N, 10]: for its aspect ratio."""
    place: np.ndarray
    """[N, 2]: for the vertical and horizontal place of the window."""
    flip: np.ndarray
    """[N]: for mirroring."""


def draw(ids: np.ndarray, *, seed: int, epoch: int) -> Draws:
    """The random numbers of samples `ids` [N] in `epoch`."""
    u = uniforms(ids, _DRAWS, _AUGMENT, seed, epoch)
    return Draws(u[:, :_ATTEMPTS], u[:, _ATTEMPTS:-3], u[:, -3:-1], u[:, -1])


def random_resized_crop(
    sizes: np.ndarray, draws: Draws, *, min_area: float, aspect: tuple[float, float]
) -> np.ndarray:
    """A random window of every image, whose heights and widths are `sizes` [N, 2].

    The area is uniform in [min_area, 1] of the image, width / height log-uniform in `aspect`. The
    first of 10 attempts that fits is taken, or else the largest central window of allowed aspect.
    Returns [N, 4] int32 in pixels of the image: top, left, height, width.
    Source: `RandomResizedCrop.get_params` of torchvision 0.28, after Szegedy et al. 2015,
    "Going deeper with convolutions", section 6.
    """
    height, width = sizes[:, 0:1].astype(np.float64), sizes[:, 1:2].astype(np.float64)
    area = height * width * (min_area + (1 - min_area) * draws.area)
    low, high = np.log(aspect[0]), np.log(aspect[1])
    ratio = np.exp(low + (high - low) * draws.aspect)
    w, h = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    rows, first = np.arange(len(sizes)), fits.argmax(axis=1)
    window = np.stack([h[rows, first], w[rows, first]], axis=1)
    place = np.floor(draws.place * (sizes - window + 1))
    misfit = ~fits.any(axis=1)
    window[misfit] = _central(sizes[misfit].astype(np.float64), aspect)
    place[misfit] = (sizes[misfit] - window[misfit]) // 2
    return np.concatenate([place, window], axis=1).astype(np.int32)


def _central(sizes: np.ndarray, aspect: tuple[float, float]) -> np.ndarray:
    """Height and width of the largest window whose aspect is within `aspect`: [N, 2]."""
    height, width = sizes[:, 0], sizes[:, 1]
    ratio = width / height
    window = np.stack(
        [
            np.where(ratio < aspect[0], np.rint(width / aspect[0]), height),
            np.where(ratio > aspect[1], np.rint(height * aspect[1]), width),
        ],
        axis=1,
    )
    largest: np.ndarray = np.maximum(window, 1.0)  # a small image and an extreme aspect
    return largest


def whole(sizes: np.ndarray) -> np.ndarray:
    """The window that is the whole image: [N, 4] int32."""
    return np.concatenate([np.zeros_like(sizes), sizes], axis=1).astype(np.int32)


def pad_offsets(
    draws: Draws, image_size: int, padding: int | None = None
) -> tuple[int, np.ndarray]:
    """Padding in pixels on each side, and the top left corner of the crop in padded images [N, 2].

    `padding`: in pixels; None: an eighth of the image size."""
    pad = padding or max(1, round(image_size / PAD_FRACTION))
    return pad, np.floor(draws.place * (2 * pad + 1)).astype(np.int32)


def alternating(ids: np.ndarray, *, seed: int, view: np.ndarray | int) -> np.ndarray:
    """[N] bool: whether samples `ids` [N] are mirrored when they are seen for the time `view`, [N] or
    one for all, from 0: at random at first, and then every other time.

    Source: Jordan 2024, "94% on CIFAR-10 in 3.29 seconds on a single GPU", arXiv 2404.00498.
    """
    first = uniforms(ids, 1, _FLIP, seed)[:, 0] < 0.5
    mirrored: np.ndarray = first ^ (np.asarray(view) % 2 == 1)
    return mirrored


def centre_crop(
    sizes: np.ndarray, target: np.ndarray, crop_ratio: float, *, stretch: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """The part of each source image that "resize, then centre crop" keeps.

    `target` [N, 2] or [2]: height and width of the crop. The short side of the image is resized to
    the short side of the crop divided by `crop_ratio`, rounded, or to more if the crop would not
    fit; with `stretch`, each side to that of the crop divided by `crop_ratio`. Returns the window to
    decode, [N, 4] int32, with a margin for the interpolation filter, and
    the exact region inside that window, [N, 4] float32: top, left, bottom, right.
    Source: `Resize` and `CenterCrop` of torchvision 0.28.
    """
    target = np.broadcast_to(target, sizes.shape)
    source = sizes.astype(np.float64)
    if stretch:
        resized = np.maximum(target, np.rint(target / crop_ratio))
    else:
        resized = _resized(source, target, crop_ratio)
    begin = np.rint((resized - target) / 2)
    scale = source / resized
    region = np.concatenate([begin * scale, (begin + target) * scale], axis=1)
    margin = np.ceil(scale) + 1
    top_left = np.maximum(np.floor(region[:, :2] - margin), 0)
    bottom_right = np.minimum(np.ceil(region[:, 2:] + margin), source)
    window = np.concatenate([top_left, bottom_right - top_left], axis=1)
    return window.astype(np.int32), (region - np.tile(top_left, 2)).astype(np.float32)


def _resized(source: np.ndarray, target: np.ndarray, crop_ratio: float) -> np.ndarray:
    """Heights and widths [N, 2] of the images before the crop, of the same aspect as `source`."""
    side = target.min(axis=1, keepdims=True)
    short = np.maximum(side, np.rint(side / crop_ratio))
    small = source.min(axis=1, keepdims=True)
    resized = np.where(source == small, short, np.floor(short * source / small))
    enlarged = np.floor(source * (target / source).max(axis=1, keepdims=True))
    fits = (resized >= target).all(axis=1, keepdims=True)
    result: np.ndarray = np.where(fits, resized, np.maximum(enlarged, target))
    return result
