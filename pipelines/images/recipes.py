"""Recipes: a graph for each way to prepare images, and its inputs, from image sizes and sample ids."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hvdtrain.config.data import Data
from pipelines.images import augment
from pipelines.order import COPY

Inputs = dict[str, np.ndarray]
"""Graph inputs by name, without the bytes: [N] or [N, k]."""


@dataclass(frozen=True)
class Recipe:
    """A graph and the function that computes its inputs."""

    graph: str
    """Name in `graphs.GRAPHS`."""
    inputs: Callable[[np.ndarray, np.ndarray], Inputs]
    """(sample ids with copies [N] as in `Share.copies`, heights and widths of their images [N, 2]) ->
    inputs."""


FILTERS = ("bilinear", "bicubic")
"""The graph input "filter" is an index into these."""


def training(
    data: Data,
    *,
    seed: int,
    epoch: int,
    image_size: int,
    min_area: float,
    aspect: tuple[float, float],
    interpolation: str,
) -> Recipe:
    """The recipe of `data.augment` for one epoch."""

    def inputs(ids: np.ndarray, sizes: np.ndarray) -> Inputs:
        draws = augment.draw(ids, seed=seed, epoch=epoch)
        if data.augment == "random_resized_crop":
            windows = augment.random_resized_crop(sizes, draws, min_area=min_area, aspect=aspect)
        else:
            windows = augment.whole(sizes)
        result = windowed(windows, np.array([image_size, image_size]), interpolation)
        mirrored = (draws.flip < 0.5) & bool(data.flip)
        if data.flip == "alternating":
            mirrored = augment.alternating(
                ids % COPY, seed=seed, view=epoch - epoch % data.repeats + ids // COPY
            )
        result["mirror"] = mirrored.astype(np.int32)
        if data.augment == "pad_crop":
            pad, result["offset"] = augment.pad_offsets(draws, image_size, data.crop_padding)
            result["pad"] = np.full((len(ids), 1), pad, dtype=np.int32)
        return result

    padded = "zero_padded_crop" if data.padding_mode == "zero" else "padded_crop"
    return Recipe(padded if data.augment == "pad_crop" else "window", inputs)


def evaluation(
    data: Data, targets: Callable[[np.ndarray], np.ndarray], interpolation: str
) -> Recipe:
    """Resize, then centre crop; nothing is random.

    `targets`: sample ids [N] -> heights and widths [N, 2] of their crops, equal within a batch.
    """

    def inputs(ids: np.ndarray, sizes: np.ndarray) -> Inputs:
        target = targets(ids)
        stretch = data.val_resize == "stretch"
        windows, regions = augment.centre_crop(sizes, target, data.val_crop_ratio, stretch=stretch)
        result = windowed(windows, target, interpolation)
        result["region_start"], result["region_end"] = regions[:, :2], regions[:, 2:]
        return result

    return Recipe("region", inputs)


def windowed(windows: np.ndarray, size: np.ndarray, interpolation: str = FILTERS[0]) -> Inputs:
    """Inputs that resize `windows` [N, 4] to the height and width `size` [N, 2] or [2]."""
    return {
        "filter": np.full(len(windows), FILTERS.index(interpolation), dtype=np.int32),
        "anchor": windows[:, :2],
        "extent": windows[:, 2:],
        "size": np.broadcast_to(size, (len(windows), 2)).astype(np.int32),
    }
