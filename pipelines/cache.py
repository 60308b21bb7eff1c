"""All images of a dataset, decoded once and kept as 8-bit pixels that the ranks of a node share.

Local rank 0 creates an anonymous file in memory and offers its address. The other ranks of the node
map the same file, and each decodes its share of the images into it. The file has no name: nothing
is left behind however the ranks end, and /dev/shm may be small.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from hvdtrain.errors import DataError
from pipelines import order
from pipelines.bad import PIXEL_SIZE, REASONS, BadSample, Quarantine
from pipelines.images import augment, recipes
from pipelines.images.decoder import Decoder
from pipelines.images.headers import HeaderError, image_size
from pipelines.images.recipes import Inputs, Recipe
from pipelines.sources import Source
from pipelines.stream import Readers, Stream

_BATCH = 256  # images decoded at once
_FREE_SHARE = 0.8  # of the memory that is free


class Layout(NamedTuple):
    """What the shared memory holds: pixels [images, height, width, 3], then one byte for each image."""

    images: int
    height: int
    width: int

    @property
    def pixels_bytes(self) -> int:
        """Size of the pixels only."""
        return self.images * self.height * self.width * 3

    @property
    def size_bytes(self) -> int:
        """Size of everything."""
        return self.pixels_bytes + self.images


class Cache:
    """The pixels of `source`, to be used when `fill` has returned on every rank of the node."""

    def __init__(self, source: Source, key: str) -> None:
        """`key`: the configuration key of the dataset. Raises DataError if no image can be read."""
        self._source = source
        self._key = key
        self.layout = Layout(len(source), *_first_size(source, key))
        self._file = -1
        self.pixels = torch.empty(0)
        """[images, height, width, 3] uint8."""
        self._faults = np.empty(0, np.uint8)

    def offer(self) -> str:
        """Create the memory; returns its address for the other ranks of the node."""
        need, free = self.layout.size_bytes, _free_bytes()
        if need > _FREE_SHARE * free:
            raise DataError(
                f"data.cache: the pixels of {self._key} take {need / 1e9:.1f} GB, "
                f"{free / 1e9:.1f} GB of memory are free: use data.cache=none"
            )
        self._file = os.memfd_create("hvdtrain-pixels", os.MFD_CLOEXEC)
        os.posix_fallocate(self._file, 0, need)
        return f"/proc/{os.getpid()}/fd/{self._file}"

    def attach(self, address: str) -> None:
        """Map the memory that local rank 0 has offered."""
        try:
            file = os.open(address, os.O_RDWR | os.O_CLOEXEC)
            with os.fdopen(file, "r+b") as opened:
                memory = mmap.mmap(opened.fileno(), self.layout.size_bytes)
        except OSError as error:
            raise DataError(
                f"data.cache: the memory of local rank 0 cannot be shared ({error.strerror}): "
                "use data.cache=none"
            ) from None
        content = np.frombuffer(memory, np.uint8)
        shape = (*self.layout, 3)
        self.pixels = torch.from_numpy(content[: self.layout.pixels_bytes].reshape(shape))
        self._faults = content[self.layout.pixels_bytes :]

    def fill(
        self,
        decoder: Callable[[Recipe], Decoder],
        readers: Readers,
        quarantine: Quarantine | None,
        local_rank: int,
        local_size: int,
    ) -> None:
        """Decode this rank's share of the images.

        `decoder` makes a decoder whose images are in 0-255. Raises DataError for an image of
        another size, and without `quarantine` for a bad image.
        """
        recipe = Recipe("window", self._inputs(quarantine))
        ids = np.arange(local_rank, self.layout.images, local_size)
        own = decoder(recipe)
        stream = Stream(
            self._source, lambda: _shares(ids), recipe, own, readers, 2, None, 0, quarantine
        )
        try:
            while (batch := stream.get()) is not None:
                images = batch.images.permute(0, 2, 3, 1).round().to(torch.uint8)
                self.pixels[torch.from_numpy(batch.indices)] = images
        finally:
            stream.close()
            own.reset()
        masked = quarantine.among(ids, 0) if quarantine is not None else {}
        for bad in masked.values():
            self._faults[bad.index] = 1 + REASONS.index(bad.reason)

    def faults(self) -> list[BadSample]:
        """The images that some rank of the node could not decode, once `fill` is done on all."""
        return [
            BadSample(
                i, 0, REASONS[self._faults[i] - 1], self._source.name(i), "found by the cache"
            )
            for i in np.flatnonzero(self._faults).tolist()
        ]

    def close(self) -> None:
        """Release the memory; it is freed when the last rank of the node does."""
        self.pixels, self._faults = torch.empty(0), np.empty(0, np.uint8)
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _inputs(self, quarantine: Quarantine | None) -> Callable[[np.ndarray, np.ndarray], Inputs]:
        """The function that computes the inputs for whole images, and refuses other sizes."""
        expected = [self.layout.height, self.layout.width]

        def inputs(ids: np.ndarray, sizes: np.ndarray) -> Inputs:
            for i, size in zip(ids.tolist(), sizes.tolist(), strict=True):
                masked = quarantine is not None and quarantine.find(i, 0)
                primed = i == 0 and size == list(PIXEL_SIZE)  # the decoder's own first image
                if size != expected and not masked and not primed:
                    raise DataError(
                        f"data.cache: {self._source.name(i)}: {size[1]}x{size[0]} pixels, others "
                        f"have {expected[1]}x{expected[0]}: caching needs images of one size; "
                        "use data.cache=none"
                    )
            result = recipes.windowed(augment.whole(sizes), np.array(expected))
            return {**result, "mirror": np.zeros(len(ids), dtype=np.int32)}

        return inputs


def _shares(ids: np.ndarray) -> Iterator[order.Share]:
    return order.shares(ids, 0, min(_BATCH, max(1, len(ids))), 0, 1)


def _first_size(source: Source, key: str) -> tuple[int, int]:
    for i in range(len(source)):
        try:
            return image_size(source.read(i))
        except (HeaderError, DataError):
            continue
    raise DataError(f"{key}: no image in it can be read")


def _free_bytes() -> int:
    """Memory that programs can use without swapping. Source: proc(5), MemAvailable."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
