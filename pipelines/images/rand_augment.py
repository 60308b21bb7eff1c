"""RandAugment: a few random operations of one magnitude on each image, on the device.

Which operations an image gets is a pure function of (seed, epoch, sample), so a resumed run sees
the same pixels. (DALI's RandAugment draws from a generator with a state.)
Source: Cubuk et al. 2019, arXiv 1909.13719; operations and their ranges are those of `RandAugment`
in torchvision 0.28.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional

from pipelines.hashing import uniforms

_RAND = 6  # keeps these draws apart from those of `order`, `augment`, mixing and colour
STRONGEST = 30
"""Largest magnitude."""
GEOMETRIC = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
BLENDS = ("brightness", "saturation", "contrast", "sharpness")
POINTWISE = ("posterize", "solarize", "autocontrast", "equalize")
OPERATIONS = ("identity", *GEOMETRIC, *BLENDS, *POINTWISE)
_GREY = (0.299, 0.587, 0.114)


class RandAugment:
    """Applies RandAugment to training images."""

    def __init__(
        self, setting: list[int] | None, mean: list[float], std: list[float], seed: int
    ) -> None:
        """`setting`: operations per image and their magnitude in 0-30; None: images stay as they
        are. `mean`, `std`: the normalisation, in 0-1."""
        self._rounds, self._magnitude = setting or (0, 0)
        self._mean, self._std = torch.tensor(mean) * 255, torch.tensor(std) * 255
        self._seed = seed

    def __call__(self, images: torch.Tensor, ids: np.ndarray, epoch: int) -> torch.Tensor:
        """Normalised images [N, 3, H, W] of samples `ids`, changed as in `epoch`.

        Pixels keep the 256 levels of 8-bit images. Pixels moved in from outside are black.
        """
        if not self._rounds:
            return images
        draws = uniforms(ids, 2 * self._rounds, _RAND, self._seed, epoch)
        mean, std = (v.to(images.device)[:, None, None] for v in (self._mean, self._std))
        levels = (images * std + mean).round_()
        for first in range(0, 2 * self._rounds, 2):
            chosen = (draws[:, first] * len(OPERATIONS)).astype(np.int64)
            signs = np.where(draws[:, first + 1] < 0.5, -1.0, 1.0)
            self._round(levels, chosen, signs)
        return levels.sub_(mean).div_(std)

    def _round(self, levels: torch.Tensor, chosen: np.ndarray, signs: np.ndarray) -> None:
        """Apply one operation to each image of `levels`, in place."""
        geometric = np.flatnonzero(np.isin(chosen, [OPERATIONS.index(o) for o in GEOMETRIC]))
        if len(geometric):
            matrices = np.stack(
                [
                    matrix(OPERATIONS[chosen[k]], self._magnitude, signs[k], levels.shape[2:])
                    for k in geometric
                ]
            )
            places = torch.from_numpy(geometric).to(levels.device)
            levels[places] = moved(levels[places], matrices)
        for name in (*BLENDS, *POINTWISE):
            numbers = np.flatnonzero(chosen == OPERATIONS.index(name))
            if len(numbers):
                places = torch.from_numpy(numbers).to(levels.device)
                levels[places] = _changed(name, levels[places], self._magnitude, signs[numbers])


def matrix(name: str, magnitude: int, sign: float, size: tuple[int, ...]) -> np.ndarray:
    """[2, 3]: maps (x, y, 1) in the result to (x, y) in the image, in pixels."""
    height, width = size
    share = sign * magnitude / STRONGEST
    if name == "rotate":
        angle = np.deg2rad(30 * share)
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        centre = np.array([width / 2, height / 2])
        return np.column_stack([turn, centre - turn @ centre])
    move = np.eye(2, 3)
    if name in ("shear_x", "shear_y"):
        axis = 0 if name == "shear_x" else 1
        move[axis, 1 - axis] = -0.3 * share
    else:
        axis, length = (0, width) if name == "translate_x" else (1, height)
        move[axis, 2] = -int(150 / 331 * length * share)
    return move


def moved(levels: torch.Tensor, matrices: np.ndarray) -> torch.Tensor:
    """Images [N, 3, H, W], each transformed by its matrix [N, 2, 3]; the nearest pixel is taken."""
    count, channels, height, width = levels.shape
    device = levels.device
    to = torch.from_numpy(matrices).float().to(device)
    x = torch.arange(width, device=device) + 0.5
    y = (torch.arange(height, device=device) + 0.5)[:, None]
    at = to[:, :, 0, None, None] * x + to[:, :, 1, None, None] * y + to[:, :, 2, None, None]
    column, row = at.floor().long().unbind(1)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    places = (row.clamp(0, height - 1) * width + column.clamp(0, width - 1)).flatten(1)
    flat = levels.flatten(2).gather(2, places[:, None].expand(-1, channels, -1))
    return flat.view(count, channels, height, width).mul_(inside[:, None])


def _changed(name: str, levels: torch.Tensor, magnitude: int, signs: np.ndarray) -> torch.Tensor:
    share = magnitude / STRONGEST
    if name in BLENDS:
        factors = torch.from_numpy(1 + 0.9 * share * signs).float().to(levels.device)
        return blended(BASES[name](levels), levels, factors[:, None, None, None])
    if name == "posterize":
        step = 2 ** round(magnitude / (STRONGEST / 4))
        return levels.div(step).floor_().mul_(step)
    if name == "solarize":
        return torch.where(levels < 255 * (1 - share), levels, 255 - levels)
    return autocontrast(levels) if name == "autocontrast" else equalize(levels)


def blended(base: torch.Tensor, levels: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """`base` at factor 0, `levels` at 1, linear between and beyond; clipped to 0-255."""
    return (base + factor * (levels - base)).clamp_(0, 255).floor_()


def _grey(levels: torch.Tensor) -> torch.Tensor:
    weights = torch.tensor(_GREY, device=levels.device)
    return torch.einsum("nchw,c->nhw", levels, weights)[:, None].round()


def _mean_grey(levels: torch.Tensor) -> torch.Tensor:
    return (_grey(levels).mean((1, 2, 3), keepdim=True) + 0.5).floor()


def _smooth(levels: torch.Tensor) -> torch.Tensor:
    """Averages of 3 x 3 pixels, the middle one counted five times; the border stays."""
    kernel = torch.ones(3, 1, 3, 3, device=levels.device)
    kernel[:, :, 1, 1] = 5
    result = levels.clone()
    result[:, :, 1:-1, 1:-1] = functional.conv2d(levels, kernel / 13, groups=3).round_()
    return result


BASES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "brightness": torch.zeros_like,
    "saturation": _grey,
    "contrast": _mean_grey,
    "sharpness": _smooth,
}
"""The image that each blend starts from."""


def autocontrast(levels: torch.Tensor) -> torch.Tensor:
    """Each channel stretched to 0-255."""
    low, high = levels.amin((2, 3), keepdim=True), levels.amax((2, 3), keepdim=True)
    stretched = ((levels - low) * (255 / (high - low).clamp(min=1))).floor()
    return torch.where(high > low, stretched, levels)


def equalize(levels: torch.Tensor) -> torch.Tensor:
    """Each channel mapped by the cumulative sum of its histogram."""
    rows = levels.flatten(2).flatten(0, 1).long()
    counts = torch.zeros(len(rows), 256, dtype=torch.long, device=levels.device)
    counts.scatter_add_(1, rows, torch.ones_like(rows))
    last = counts.gather(1, rows.amax(1, keepdim=True))
    step = (rows.shape[1] - last) // 255
    table = (counts.cumsum(1) - counts + step // 2) // step.clamp(min=1)
    table = torch.where(step > 0, table, torch.arange(256, device=levels.device))
    return table.clamp_(max=255).gather(1, rows).view_as(levels).to(levels.dtype)
