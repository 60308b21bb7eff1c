"""What the loaders of all ranks exchange before the first pass.

Each rank makes a text by `offer`, and the trainer gives the texts of all ranks to `accept`. This is
how caches find their shared memory, and rectangular evaluation the shapes of all images.
"""

from __future__ import annotations

import json
import socket
from typing import NamedTuple

import torch

from pipelines import shapes
from pipelines.cached_prefetcher import CachedPrefetcher
from pipelines.images.windows import WindowDecoder
from pipelines.rectangular import Rectangles
from pipelines.sampling import EvaluationSampler
from pipelines.sources import Source
from pipelines.stream import Readers


class Place(NamedTuple):
    """A rank's place among all ranks, and among those of its node."""

    rank: int
    world_size: int
    local_rank: int
    local_size: int


class Exchange:
    """One rank's side of the exchange."""

    def __init__(
        self,
        place: Place,
        caches: list[CachedPrefetcher],
        shaped: tuple[Source, EvaluationSampler] | None,
        readers: Readers,
    ) -> None:
        """`shaped`: evaluation images whose shapes are needed, and the sampler that needs them."""
        self._place = place
        self._caches = caches
        self._shaped = shaped
        self._readers = readers

    def offer(self) -> str:
        """What other ranks need from this one. Raises DataError if a cache cannot be made or a size
        not read."""
        place = self._place
        addresses = (
            [prefetcher.cache.offer() for prefetcher in self._caches]
            if not place.local_rank
            else []
        )
        sizes = []
        if self._shaped is not None:
            source, _sampler = self._shaped
            ids = shapes.share(len(source), place.rank, place.world_size)
            sizes = shapes.read_sizes(source, ids, self._readers).tolist()
        return json.dumps({"host": socket.gethostname(), "caches": addresses, "sizes": sizes})

    def accept(self, offers: list[str], decode_threads: int) -> None:
        """Use the offers of all ranks, in rank order; decode this rank's share of what is cached."""
        parsed = [json.loads(offer) for offer in offers]
        if self._shaped is not None:
            source, sampler = self._shaped
            parts = [offer["sizes"] for offer in parsed]
            sampler.rectangles = Rectangles(shapes.joined(len(source), parts))
        here = socket.gethostname()
        addresses: list[str] = next(
            (o["caches"] for o in parsed if o["host"] == here and o["caches"]), []
        )
        for prefetcher, address in zip(self._caches, addresses, strict=True):
            prefetcher.cache.attach(address)
            prefetcher.cache.fill(
                lambda recipe: WindowDecoder(
                    recipe, [0.0] * 3, [1 / 255] * 3, decode_threads, torch.device("cpu")
                ),
                self._readers,
                prefetcher.sampler.quarantine,
                self._place.local_rank,
                self._place.local_size,
            )
