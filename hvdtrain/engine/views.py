"""Logits as the mean over several views of each image: `train.val_views`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional

from hvdtrain.config.train import ValViews

SHARES: dict[ValViews, dict[int, float]] = {
    "one": {0: 1.0},
    "mirror": {0: 1.0},
    "six": {0: 0.5, -1: 0.25, 1: 0.25},
}
"""Pixels by which an image is moved, down and to the right, and the share of that view.

Source: `val_loop` in train_imagenet.py of https://github.com/libffcv/ffcv-imagenet (mirror); Jordan
2024, https://arxiv.org/abs/2404.00498, and airbench94.py of
https://github.com/KellerJordan/cifar10-airbench, tta_level 2 (six).
"""


def mean_logits(
    network: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor, views: ValViews
) -> torch.Tensor:
    """Logits [N, classes] of `images` [N, 3, H, W]: the mean over an image and its mirror image, for each
    of the SHARES. One forward pass for each view, so that no more memory is needed than for one."""
    if views == "one":
        return network(images)
    parts = [
        share / 2 * network(view)
        for pixels, share in SHARES[views].items()
        for view in both(moved(images, pixels))
    ]
    return torch.stack(parts).sum(0)


def both(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The images and their mirror images."""
    return images, images.flip(3)


def moved(images: torch.Tensor, pixels: int) -> torch.Tensor:
    """`images` moved down and to the right; what enters at the border is its reflection."""
    if pixels == 0:
        return images
    margin, (height, width) = abs(pixels), images.shape[2:]
    padded = functional.pad(images, (margin,) * 4, mode="reflect")
    first = margin - pixels
    window = padded[:, :, first : first + height, first : first + width]
    last = images.is_contiguous(memory_format=torch.channels_last)
    return window.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
