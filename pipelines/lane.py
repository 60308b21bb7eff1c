"""The passes over one dataset: at most one in use, and those prepared to follow it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pipelines import order
from pipelines.decoder import Decoder
from pipelines.recipes import Recipe
from pipelines.sources import Source
from pipelines.stream import Batch, Stream


class Pass(NamedTuple):
    """All that decides the batches of one pass; equal passes give equal batches."""

    epoch: int
    image_size: int
    min_crop_area: float
    batch: int
    """Images per rank."""
    start: int
    """First place of the order."""


@dataclass(frozen=True)
class Dealer:
    """How this rank gets from a pass to its samples and to their preparation."""

    rank: int
    world_size: int
    order: Callable[[Pass], np.ndarray]
    """All sample ids of a pass, in order: [len(source)] int64."""
    recipe: Callable[[Pass], Recipe]


class Lane:
    """Starts, prepares and ends streams over `source`, all through one decoder."""

    def __init__(
        self,
        source: Source,
        dealer: Dealer,
        make_decoder: Callable[[Recipe], Decoder],
        readers: ThreadPoolExecutor,
        depth: int,
    ) -> None:
        self.source = source
        self._dealer = dealer
        self._make_decoder = make_decoder
        self._decoder: Decoder | None = None
        self._readers = readers
        self._depth = depth
        self._current: Stream | None = None
        self._prepared: dict[Pass, Stream] = {}

    def open(self, spec: Pass) -> Stream:
        """The stream of `spec`, prepared earlier or started now; every other one ends."""
        ready = self._prepared.pop(spec, None)
        self._end_streams()
        self._current = ready or self._start(spec, None)
        self._current.hurry()
        return self._current

    def prepare(self, spec: Pass, after: Stream) -> None:
        """Start on `spec` as soon as `after` has decoded its last batch.

        Streams share one decoder, so every stream but `after` and an equal one ends.
        """
        if spec in self._prepared:
            return
        current = self._current
        self._current = None if current is after else current
        self._end_streams()
        self._current = after if current is after else None
        self._prepared = {spec: self._start(spec, after)}

    def batches(self, stream: Stream) -> Generator[Batch, None, None]:
        """Yield what `stream` holds, and end it however the iteration ends."""
        try:
            while (batch := stream.get()) is not None:
                yield batch
        finally:
            stream.close()

    def close(self) -> None:
        """End all threads."""
        self._end_streams()
        if self._decoder is not None:
            self._decoder.reset()

    def _end_streams(self) -> None:
        if self._current is not None:
            self._current.close()
            self._current = None
        for stream in self._prepared.values():
            stream.close()
        self._prepared = {}

    def _start(self, spec: Pass, after: Stream | None) -> Stream:
        recipe = self._dealer.recipe(spec)
        if self._decoder is None:
            self._decoder = self._make_decoder(recipe)
        return Stream(
            self.source,
            lambda: self._shares(spec),
            recipe,
            self._decoder,
            self._readers,
            self._depth,
            after,
        )

    def _shares(self, spec: Pass) -> Iterator[order.Share]:
        ids = self._dealer.order(spec)
        rank, world_size = self._dealer.rank, self._dealer.world_size
        for first in range(spec.start, len(ids), spec.batch * world_size):
            yield order.share(ids, first, batch=spec.batch, rank=rank, world_size=world_size)
