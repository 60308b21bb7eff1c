"""Passes over a cached dataset: pixels are gathered, cropped and mirrored by a few torch calls.

Crop windows and mirroring come from the same recipes as without a cache. Batches are not prepared
ahead: a CIFAR batch of 512 takes about 3 ms on one core.
"""

from __future__ import annotations

from collections.abc import Generator

import numpy as np
import torch
from torch.nn import functional

from pipelines.cache import Cache
from pipelines.images.numbers import copied_to
from pipelines.images.recipes import FILTERS, Inputs, Recipe
from pipelines.order import Share
from pipelines.sampling import Pass, Sampler
from pipelines.sources import Source
from pipelines.stream import Batch


class CachedPrefetcher:
    """Makes the batches of passes over `source` from the pixels of its `cache`.

    With `on_device` the pixels are copied to `device` and stay there.
    """

    def __init__(
        self,
        source: Source,
        sampler: Sampler,
        cache: Cache,
        *,
        mean: list[float],
        std: list[float],
        device: torch.device,
        on_device: bool,
    ) -> None:
        self.source = source
        self.cache = cache
        self.sampler = sampler
        self._device = device
        self._on_device = on_device
        self._pixels: torch.Tensor | None = None
        self._shift = torch.tensor(
            [255 * m for m in mean], device=device
        )  # rounded once, as DALI does
        self._scale = torch.tensor([1 / (255 * s) for s in std], device=device)

    def open(self, spec: Pass) -> Generator[Batch, None, None]:
        """The batches of `spec`."""
        if self._pixels is None:
            self._take_pixels()
        recipe = self.sampler.recipe(spec)
        return (self._batch(share, recipe) for share in self.sampler.shares(spec))

    def prepare(self, spec: Pass, after: object) -> None:
        """Does nothing: batches are made when they are asked for."""

    def batches(self, stream: Generator[Batch, None, None]) -> Generator[Batch, None, None]:
        """The batches of `stream`, which `open` has returned."""
        return stream

    def doing(self) -> str:
        """Empty: no other thread has a part in a batch."""
        return ""

    def close(self) -> None:
        """Release the pixels."""
        self._pixels = None
        self.cache.close()

    def _take_pixels(self) -> None:
        """Begin to use the cache, which all ranks of the node have filled by now."""
        if not len(self.cache.pixels):
            raise RuntimeError("data.cache: Loaders.accept was not called")
        if self.sampler.quarantine is not None:
            self.sampler.quarantine.add(self.cache.faults())
        self._pixels = self.cache.pixels
        if self._on_device:
            self._pixels = self._pixels.to(self._device)

    def _batch(self, share: Share, recipe: Recipe) -> Batch:
        assert self._pixels is not None
        ids = torch.from_numpy(share.indices)
        chosen = self._pixels[ids.to(self._pixels.device)]
        if self._device.type == "cuda" and not self._on_device:
            chosen = chosen.pin_memory()
        source = np.tile(np.array(self.cache.layout[1:]), (len(ids), 1))
        pixels = chosen.to(self._device, non_blocking=True)
        inputs = recipe.inputs(share.copies, source)
        images = cropped(pixels, inputs, black=recipe.graph == "zero_padded_crop")
        labels = torch.from_numpy(self.source.labels[share.indices].astype(np.int64))
        weights = torch.from_numpy(share.weights)
        normalised = self._normalised(images).permute(0, 3, 1, 2)
        return Batch(normalised, labels, weights, share.copies, 0)

    def _normalised(self, images: torch.Tensor) -> torch.Tensor:
        """[N, H, W, 3] uint8 to float32, by whole rows, which suits vector instructions."""
        width = images.shape[2]
        rows = images.reshape(-1, 3 * width).float()
        rows.sub_(self._shift.repeat(width)).mul_(self._scale.repeat(width))
        return rows.view(images.shape)


def cropped(pixels: torch.Tensor, inputs: Inputs, *, black: bool = False) -> torch.Tensor:
    """Do to whole images what the graphs do with these inputs: [N, H, W, 3] to [N, h, w, 3], uint8.

    Images are resized, padded by reflection or with `black`, cropped (each at its own place) and
    mirrored.
    """
    (height, width), (source_height, source_width) = inputs["size"][0], pixels.shape[1:3]
    count, pad = len(pixels), 0
    resized, offset = (int(height), int(width)), np.zeros((count, 2), np.int32)
    if "region_start" in inputs:  # of the source images, the same for all
        scale = (inputs["region_end"][0] - inputs["region_start"][0]) / inputs["size"][0]
        rounded = np.rint(np.array([source_height, source_width]) / scale)
        resized = (int(rounded[0]), int(rounded[1]))
        offset = np.rint((inputs["anchor"] + inputs["region_start"]) / scale).astype(np.int32)
    if "pad" in inputs:
        pad, offset = int(inputs["pad"][0, 0]), inputs["offset"]
    if resized != (source_height, source_width):
        pixels = _resized(pixels, *resized, FILTERS[inputs["filter"][0]])
    mirrored = inputs.get("mirror", np.zeros(0, np.int32))
    places, mirror = copied_to(pixels.device, offset - pad, mirrored)
    rows, columns = (places[:, k : k + 1] + _upto(n, pixels) for k, n in enumerate((height, width)))
    if len(mirrored):
        columns = torch.where(mirror.bool()[:, None], columns.flip(1), columns)
    outside = _outside(rows, columns, resized) if black else None
    rows, columns = _reflected(rows, resized[0]), _reflected(columns, resized[1])
    rows += resized[0] * _upto(count, pixels)[:, None]
    index = rows[:, :, None] * resized[1] + columns[:, None, :]
    flat = pixels.reshape(-1, 3).index_select(0, index.view(-1))
    images = flat.view(count, int(height), int(width), 3)
    return images if outside is None else images.masked_fill_(outside, 0)


def _outside(rows: torch.Tensor, columns: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """[N, h, w, 1] bool: the pixels that are not in the image of `size` (height, width)."""
    beyond = [(at < 0) | (at >= side) for at, side in zip((rows, columns), size, strict=True)]
    return (beyond[0][:, :, None] | beyond[1][:, None, :])[..., None]


def _upto(count: int, like: torch.Tensor) -> torch.Tensor:
    return torch.arange(int(count), device=like.device)


def _reflected(places: torch.Tensor, length: int) -> torch.Tensor:
    """Places up to `length - 1` beyond either end, reflected without repeating the border."""
    places = places.abs()
    return torch.where(places >= length, 2 * length - 2 - places, places)


def _resized(pixels: torch.Tensor, height: int, width: int, mode: str) -> torch.Tensor:
    """[N, H, W, 3] to [N, height, width, 3], uint8: `mode` of FILTERS, widened by the reduction."""
    planes = pixels.permute(0, 3, 1, 2)
    on_cpu = pixels.device.type == "cpu"  # only there does torch resize 8-bit images
    planes = functional.interpolate(
        planes if on_cpu else planes.float(),
        size=(height, width),
        mode=mode,
        antialias=True,
        align_corners=False,
    )
    if not on_cpu:
        planes = planes.round().clamp(0, 255).to(torch.uint8)
    return planes.permute(0, 2, 3, 1).contiguous()
