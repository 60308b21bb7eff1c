"""The policies of RandAugment: which operations there are, and what a magnitude means for each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from pipelines.images import operations
from pipelines.images.change import Images
from pipelines.images.numbers import Numbers

GEOMETRIC = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
BLENDS = ("brightness", "saturation", "contrast", "sharpness")


@dataclass(frozen=True)
class Policy:
    """`data.rand_augment_policy`."""

    operations: tuple[str, ...]
    """Drawn with equal probability; those of `GEOMETRIC` move pixels."""
    draws: int
    """Random numbers of an operation, in [0, 1); the first two are its choice and its sign."""
    fill: float
    """Level of pixels moved in from outside."""
    matrix: Callable[[str, int, float, tuple[int, ...]], np.ndarray]
    """(geometric operation, magnitude, sign, (height, width)) -> [2, 3], see `operations.moved`."""
    change: Callable[[str, int, np.ndarray, tuple[int, ...], Numbers], Images]
    """(another operation, magnitude, draws [N, draws], (height, width), numbers) -> what changes levels,
    as `Change.prepare` returns it."""


def signs(draws: np.ndarray) -> np.ndarray:
    """[N]: -1 or 1, with probability 1/2 each."""
    return np.where(draws[:, 1] < 0.5, -1.0, 1.0)


def _turned(degrees: float, size: tuple[int, ...]) -> np.ndarray:
    """About the middle of the image."""
    turn, centre = operations.turn(np.deg2rad(degrees)), np.array([size[1] / 2, size[0] / 2])
    return np.column_stack([turn, centre - turn @ centre])


STRONGEST = 30
"""Largest magnitude of the standard policy."""


def _standard_matrix(name: str, magnitude: int, sign: float, size: tuple[int, ...]) -> np.ndarray:
    height, width = size
    share = sign * magnitude / STRONGEST
    if name == "rotate":
        return _turned(30 * share, size)
    move = np.eye(2, 3)
    if name in ("shear_x", "shear_y"):
        axis = 0 if name == "shear_x" else 1
        move[axis, 1 - axis] = -0.3 * share
    else:
        axis, length = (0, width) if name == "translate_x" else (1, height)
        move[axis, 2] = -int(150 / 331 * length * share)
    return move


def _standard_change(
    name: str, magnitude: int, draws: np.ndarray, _size: tuple[int, ...], numbers: Numbers
) -> Images:
    share = magnitude / STRONGEST
    if name in BLENDS:
        factors = numbers.add_float(1 + 0.9 * share * signs(draws))
        base = operations.BASES[name]
        return lambda levels: operations.blended(
            base(levels), levels, factors()[:, None, None, None]
        )
    if name == "posterize":
        lost = round(magnitude / (STRONGEST / 4))
        return lambda levels: operations.posterize(levels, lost)
    if name == "solarize":
        return lambda levels: operations.solarize(levels, 255 * (1 - share))
    return _PLAIN[name]


_PLAIN: dict[str, Images] = {
    "identity": lambda levels: levels,
    "invert": lambda levels: 255 - levels,
    "autocontrast": operations.autocontrast,
    "equalize": operations.equalize,
}
"""Operations without a magnitude."""

STANDARD = Policy(
    operations=(
        *("identity", *GEOMETRIC, *BLENDS),
        *("posterize", "solarize", "autocontrast", "equalize"),
    ),
    draws=2,
    fill=0.0,
    matrix=_standard_matrix,
    change=_standard_change,
)
"""Source: `RandAugment` of torchvision 0.28."""

_LEVEL = 10.0
"""The magnitude at which the ranges of the policy below end."""


def _nfnet_matrix(name: str, magnitude: int, sign: float, size: tuple[int, ...]) -> np.ndarray:
    share = sign * magnitude / _LEVEL
    if name == "rotate":
        return _turned(30 * share, size)
    move, axis = np.eye(2, 3), 0 if name.endswith("_x") else 1
    if name.startswith("shear"):  # of pixel numbers, not of the middles of pixels
        move[axis, 1 - axis], move[axis, 2] = 0.3 * share, -0.15 * share
    else:
        move[axis, 2] = -100 * share
    return move


def _nfnet_change(
    name: str, magnitude: int, draws: np.ndarray, size: tuple[int, ...], numbers: Numbers
) -> Images:
    share = magnitude / _LEVEL
    if name in BLENDS:
        base = _pixel_count if name == "contrast" else operations.BASES[name]
        factor = torch.tensor(1.8 * share + 0.1)
        return lambda levels: operations.blended(base(levels), levels, factor)
    if name == "posterize":
        lost = min(7, 8 - int(share * 4))
        return lambda levels: operations.posterize(levels, lost)
    if name == "solarize":
        return lambda levels: operations.solarize(levels, int(share * 256))
    if name == "solarize_add":
        more = int(share * 110)
        return lambda levels: torch.where(levels < 128, (levels + more).clamp(0, 255), levels)
    if name == "cutout":
        return _cut(int(share * 40), draws[:, 2:], size, numbers)
    return _PLAIN[name]


def _pixel_count(levels: torch.Tensor) -> torch.Tensor:
    """What the source blends with for contrast: it means the mean grey, but divides the number of
    pixels by 256."""
    height, width = levels.shape[2:]
    return torch.full_like(levels, min(255, height * width // 256))


def _cut(reach: int, draws: np.ndarray, size: tuple[int, ...], numbers: Numbers) -> Images:
    """A grey square of `2 * reach` pixels about a pixel of each image, drawn by `draws` [N, 2]."""
    middles = numbers.add(np.floor(draws * size))

    def change(levels: torch.Tensor) -> torch.Tensor:
        inside = []
        for axis, length in enumerate(size):
            middle = middles()[:, axis, None]
            pixels = torch.arange(length, device=levels.device)
            inside.append((pixels >= middle - reach) & (pixels < middle + reach))
        cut = inside[0][:, :, None] & inside[1][:, None, :]
        return torch.where(cut[:, None], 128.0, levels)

    return change


NFNET = Policy(
    operations=(
        *("autocontrast", "equalize", "invert", *GEOMETRIC, "posterize", "solarize"),
        *(*BLENDS, "cutout", "solarize_add"),
    ),
    draws=4,
    fill=128.0,
    matrix=_nfnet_matrix,
    change=_nfnet_change,
)
"""Source: Brock et al. 2021, arXiv 2102.06171; google-deepmind/deepmind-research,
nfnets/autoaugment.py, `distort_image_with_randaugment`."""

POLICIES = {"standard": STANDARD, "nfnet": NFNET}
"""Those of `data.rand_augment_policy`."""
