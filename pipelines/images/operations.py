"""What RandAugment and random rotations do to images, as functions of tensors.

`levels` are images [N, 3, H, W] float32 with the 256 levels of 8-bit ones, 0-255.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional

_GREY = (0.299, 0.587, 0.114)


def turn(radians: np.ndarray) -> np.ndarray:
    """[..., 2, 2]: the rotation of the coordinates (x, y) by each of the angles."""
    cos, sin = np.cos(radians), np.sin(radians)
    turned: np.ndarray = np.stack([np.stack([cos, sin], -1), np.stack([-sin, cos], -1)], -2)
    return turned


def moved(images: torch.Tensor, to: torch.Tensor, fill: torch.Tensor | float) -> torch.Tensor:
    """Images [N, 3, H, W], each transformed by its matrix `to` [N, 2, 3] float32, which maps (x, y, 1) in
    the result to (x, y) in the image, in pixels. The nearest pixel is taken, and outside the image
    `fill`, a number or broadcast to [N, 3, H, W]."""
    count, channels, height, width = images.shape
    device = images.device
    x = torch.arange(width, device=device) + 0.5
    y = (torch.arange(height, device=device) + 0.5)[:, None]
    at = to[:, :, 0, None, None] * x + to[:, :, 1, None, None] * y + to[:, :, 2, None, None]
    column, row = at.floor().long().unbind(1)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    places = (row.clamp(0, height - 1) * width + column.clamp(0, width - 1)).flatten(1)
    flat = images.flatten(2).gather(2, places[:, None].expand(-1, channels, -1))
    return torch.where(inside[:, None], flat.view(count, channels, height, width), fill)


def blended(base: torch.Tensor, levels: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """`base` at factor 0, `levels` at 1, linear between and beyond; clipped to 0-255."""
    return (base + factor * (levels - base)).clamp_(0, 255).floor_()


def grey(levels: torch.Tensor) -> torch.Tensor:
    """[N, 1, H, W]: the luma of each pixel."""
    # Filled there: a copy from the host would wait for the device.
    weights = torch.stack([torch.full((), share, device=levels.device) for share in _GREY])
    return torch.einsum("nchw,c->nhw", levels, weights)[:, None].round()


def mean_grey(levels: torch.Tensor) -> torch.Tensor:
    """[N, 1, 1, 1]: the mean luma of each image."""
    return (grey(levels).mean((1, 2, 3), keepdim=True) + 0.5).floor()


def smooth(levels: torch.Tensor) -> torch.Tensor:
    """Averages of 3 x 3 pixels, the middle one counted five times; the border stays."""
    kernel = torch.ones(3, 1, 3, 3, device=levels.device)
    kernel[:, :, 1, 1] = 5
    result = levels.clone()
    result[:, :, 1:-1, 1:-1] = functional.conv2d(levels, kernel / 13, groups=3).round_()
    return result


BASES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "brightness": torch.zeros_like,
    "saturation": grey,
    "contrast": mean_grey,
    "sharpness": smooth,
}
"""The image that each blend starts from."""


def posterize(levels: torch.Tensor, lost_bits: int) -> torch.Tensor:
    """The `lost_bits` lowest bits of each level become 0."""
    step = 2**lost_bits
    return levels.div(step).floor_().mul_(step)


def solarize(levels: torch.Tensor, threshold: float) -> torch.Tensor:
    """Levels from `threshold` on are inverted."""
    return torch.where(levels < threshold, levels, 255 - levels)


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
