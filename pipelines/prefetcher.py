"""Passes over one dataset: one in use, and the next one, prepared ahead."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, Protocol

from pipelines import copies
from pipelines.images.decoder import Decoder
from pipelines.images.recipes import Recipe
from pipelines.sampling import Pass, Sampler
from pipelines.sources import Source
from pipelines.stream import Batch, Readers, Stream


class Passes(Protocol):
    """The passes over one dataset, as `Prefetcher` has them. What `open` returns is for `prepare`
    and `batches` of the same object only."""

    source: Source

    def open(self, spec: Pass) -> Any: ...
    def prepare(self, spec: Pass, after: Any) -> None: ...
    def batches(self, stream: Any) -> Generator[Batch, None, None]: ...
    def doing(self) -> str: ...
    def close(self) -> None: ...


class Prefetcher:
    """Starts, prepares and ends streams over `source`, which share one decoder."""

    def __init__(
        self,
        source: Source,
        sampler: Sampler,
        make_decoder: Callable[[Recipe], Decoder],
        readers: Readers,
        depth: int,
    ) -> None:
        self.source = source
        self._sampler = sampler
        self._make_decoder = make_decoder
        self._decoder: Decoder | None = None
        self._readers = readers
        self._depth = depth
        self._current: Stream | None = None
        self._prepared: dict[Pass, Stream] = {}

    def open(self, spec: Pass) -> Stream:
        """The stream of `spec`, prepared earlier or started now. Ends every other stream."""
        ready = self._prepared.pop(spec, None)
        self._end_streams()
        self._current = ready or self._start(spec, None)
        self._current.hurry()
        return self._current

    def prepare(self, spec: Pass, after: Stream) -> None:
        """Start the stream of `spec` as soon as `after` has decoded its last batch.

        Ends every stream except `after`. Does nothing if `spec` is prepared already.
        """
        if spec in self._prepared:
            return
        current = self._current
        self._current = None if current is after else current
        self._end_streams()
        self._current = after if current is after else None
        self._prepared = {spec: self._start(spec, after)}

    def batches(self, stream: Stream) -> Generator[Batch, None, None]:
        """Yield the batches of `stream`, and end it however the iteration ends."""
        try:
            while (batch := stream.get()) is not None:
                yield batch
        finally:
            stream.close()

    def doing(self) -> str:
        """What keeps the next batch from being there; empty if no pass is open."""
        current = self._current
        return current.doing() if current is not None else ""

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
        recipe = self._sampler.recipe(spec)
        if self._decoder is None:
            self._decoder = self._make_decoder(recipe)
        return Stream(
            copies.view(self.source, self._sampler.short_side(spec)),
            lambda: self._sampler.shares(spec),
            recipe,
            self._decoder,
            self._readers,
            self._depth,
            after,
            spec.epoch,
            self._sampler.quarantine,
        )
