"""Colour jitter: brightness, contrast, saturation and hue of each image, in one product.

All four are linear in the pixel, so each image gets one 3x3 matrix and one offset. The host computes
them from random numbers that depend on (seed, epoch, sample) only; they are applied to normalised
images on the device.
"""

from __future__ import annotations

import numpy as np
import torch

from pipelines.hashing import uniforms
from pipelines.images.change import Change, Images
from pipelines.images.numbers import Numbers

_COLOUR = 4  # keeps these draws apart from those of `order`, `augment` and mixing
_GREY = np.array([0.299, 0.587, 0.114])
"""Luma of RGB. Source: ITU-R BT.601."""
_TO_YIQ = np.array([_GREY, [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
"""Source: the NTSC colour space, FCC 1953, coefficients as rounded in common use."""


class ColourJitter(Change):
    """Changes the colours of training images.

    The order is brightness, contrast about the mean grey of the image, saturation, and hue as
    a rotation in YIQ. The result is clipped to 0-1 once, at the end.
    Source: `ColorJitter` of torchvision 0.28, where the order is random, each step clips, and
    hue is rotated in HSV.
    """

    def __init__(
        self, strengths: list[float], mean: list[float], std: list[float], seed: int
    ) -> None:
        """`strengths`: of brightness, contrast and saturation (factors in 1 ± strength) and hue
        (± strength, 1 is the whole colour circle). `mean`, `std`: the normalisation, in 0-1."""
        self._strengths = np.array(strengths)
        self._mean, self._std = np.array(mean), np.array(std)
        self._seed = seed

    def prepare(
        self, ids: np.ndarray, epoch: int, size: tuple[int, ...], numbers: Numbers
    ) -> Images | None:
        """See `Change`."""
        if not self._strengths.any():
            return None
        factors = 1 + (2 * uniforms(ids, 4, _COLOUR, self._seed, epoch) - 1) * self._strengths
        brightness, contrast, saturation = factors[:, :3].T
        matrix = _turned(factors[:, 3] - 1) @ _saturated(saturation)
        matrix *= (brightness * contrast)[:, None, None]
        # Normalised in, normalised out: x = std z + mean.
        grey = (self._mean @ _GREY, self._std * _GREY)  # grey of an image: [0] + its mean z @ [1]
        base = (matrix @ self._mean - self._mean) / self._std
        matrix = matrix * self._std / self._std[:, None]
        lift = (((1 - contrast) * brightness)[:, None]) / self._std
        by_channel, middle = numbers.add_float(grey[1]), float(grey[0])
        start, slope, turned = (numbers.add_float(each) for each in (base, lift, matrix))
        limits = (-self._mean / self._std, (1 - self._mean) / self._std)
        black, white = (numbers.add_float(limit) for limit in limits)

        def change(images: torch.Tensor) -> torch.Tensor:
            level = images.mean((2, 3), dtype=torch.float32) @ by_channel() + middle
            offset = start() + slope() * level[:, None]
            count, _channels, height, width = images.shape
            pixels = images.permute(0, 2, 3, 1).reshape(count, -1, 3)
            pixels = torch.baddbmm(offset[:, None], pixels, turned().transpose(1, 2))
            pixels = torch.clamp(pixels, black(), white())
            return pixels.view(count, height, width, 3).permute(0, 3, 1, 2)

        return change


def _saturated(factors: np.ndarray) -> np.ndarray:
    """[N, 3, 3]: blends the image with its grey version."""
    grey = np.tile(_GREY, (3, 1))
    blended: np.ndarray = grey + factors[:, None, None] * (np.eye(3) - grey)
    return blended


def _turned(turns: np.ndarray) -> np.ndarray:
    """[N, 3, 3]: rotates the chroma by `turns` of a full circle; luma stays."""
    angle = 2 * np.pi * turns
    turn = np.zeros((len(turns), 3, 3))
    turn[:, 0, 0] = 1
    turn[:, 1, 1] = turn[:, 2, 2] = np.cos(angle)
    turn[:, 1, 2], turn[:, 2, 1] = -np.sin(angle), np.sin(angle)
    turned: np.ndarray = np.linalg.inv(_TO_YIQ) @ turn @ _TO_YIQ
    return turned
