"""Decodes whole images and makes them smaller, for packing and scanning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from nvidia.dali import Pipeline, fn, types

from hvdtrain.errors import is_out_of_memory
from pipelines.commands.channels import moments
from pipelines.images.decoder import DecodeError

BATCH = 16
"""Most images decoded at once, or 4 for each thread if that is more."""
_BATCH_PIXELS = 2**26
"""Pixels decoded at once, unless one image has more."""
_JPEG_SIDE = 65_500
"""Longest side that libjpeg writes."""
MOMENTS = 0
"""Where results have the moments of an image, among its copies by short side."""

Size = tuple[int, int]
"""Height and width in pixels."""


class Resizer:
    """Decodes images as training does, upright and RGB, and shrinks them step by step.

    Copies are made from large to small, each from the previous one, with a cubic filter that is
    widened by the factor of reduction.
    """

    def __init__(self, sides: list[int], threads: int = 1) -> None:
        """`sides`: the short sides of the copies in pixels; `threads`: how many decode."""
        self._sides = sorted(sides, reverse=True)
        self._threads = threads
        self._most = max(BATCH, 4 * threads)
        self._pipeline: Any = None

    def __call__(
        self, encoded: list[np.ndarray], sizes: list[Size], measured: Sequence[bool] | None = None
    ) -> list[dict[int, np.ndarray] | str]:
        """For each image, in order: its copies by short side, [H, W, 3] uint8, or what is wrong.

        `encoded`: [bytes] uint8 of each image, `sizes`: its height and width. Copies that would
        not be smaller than the image are left out. Images that are `measured` also have their
        `moments`, under `MOMENTS`.
        """
        wanted = measured or [False] * len(encoded)
        result: list[dict[int, np.ndarray] | str] = []
        for first, last in _batches(sizes, self._most):
            part = slice(first, last)
            result += self._batch(encoded[part], sizes[part], wanted[part])
        return result

    def close(self) -> None:
        """End the decoding threads."""
        if self._pipeline is not None:
            self._pipeline.__del__()  # reference cycles inside would keep it alive
            self._pipeline = None

    def _batch(
        self, encoded: list[np.ndarray], sizes: list[Size], measured: Sequence[bool]
    ) -> list[dict[int, np.ndarray] | str]:
        try:
            return self._run(encoded, sizes, measured)  # type: ignore[return-value]
        except RuntimeError as error:
            self.close()
            if is_out_of_memory(error):
                raise MemoryError(str(error)) from None
            if len(encoded) == 1:
                return [str(DecodeError(error))]
        singles = zip(encoded, sizes, measured, strict=True)
        return [self._batch([image], [size], [one])[0] for image, size, one in singles]

    def _run(
        self, encoded: list[np.ndarray], sizes: list[Size], measured: Sequence[bool]
    ) -> list[dict[int, np.ndarray]]:
        if self._pipeline is None:
            self._pipeline = self._build()
        self._pipeline.feed_input("encoded", encoded)
        for side in self._sides:
            targets = [np.array(smaller(size, side), dtype=np.float32) for size in sizes]
            self._pipeline.feed_input(f"size{side}", targets)
        images, *copies = self._pipeline.run()
        found = [
            {
                side: np.asarray(copy[k])
                for side, copy in zip(self._sides, copies, strict=True)
                if smaller(size, side) != size
            }
            for k, size in enumerate(sizes)
        ]
        for k, one in enumerate(measured):
            if one:
                found[k][MOMENTS] = moments(np.asarray(images[k]))
        return found

    def _build(self) -> Any:
        pipeline = Pipeline(
            batch_size=self._most,
            num_threads=self._threads,
            device_id=None,
            prefetch_queue_depth=1,
        )
        with pipeline:
            data = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1, no_copy=True)
            images = fn.decoders.image(data, output_type=types.RGB)
            outputs = [images]
            for side in self._sides:
                size = fn.external_source(name=f"size{side}", dtype=types.FLOAT, ndim=1)
                images = fn.resize(images, size=size, interp_type=types.INTERP_CUBIC)
                outputs.append(images)
            pipeline.set_outputs(*outputs)
        pipeline.build()
        return pipeline


def smaller(size: Size, short_side: int) -> Size:
    """Height and width with this short side and the same aspect.

    `size` itself if it is no larger, or if the result is too long for a JPEG file.
    """
    short = min(size)
    height, width = (round(side * short_side / short) for side in size)
    return size if short <= short_side or max(height, width) > _JPEG_SIDE else (height, width)


def _batches(sizes: list[Size], most: int) -> list[tuple[int, int]]:
    """The first place and the last + 1 of every batch."""
    result, first, pixels = [], 0, 0
    for k, (height, width) in enumerate(sizes):
        if k > first and (k - first == most or pixels + height * width > _BATCH_PIXELS):
            result.append((first, k))
            first, pixels = k, 0
        pixels += height * width
    return [*result, (first, len(sizes))] if sizes else []
