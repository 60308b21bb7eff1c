"""One pass over a dataset: files are read, decoded and queued ahead of the training thread."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from hvdtrain.errors import DataError
from pipelines.channel import Channel
from pipelines.decoder import DEPTH, DecodeError, Decoder
from pipelines.headers import image_size
from pipelines.order import Share
from pipelines.recipes import Inputs, Recipe
from pipelines.sources import Source

READERS = 8
"""Threads that read files: enough to hide the latency of a network disk, idle on a local one."""
_READ_AHEAD = 2  # batches read beyond those being decoded


@dataclass(frozen=True)
class Batch:
    """Images of one rank for one step."""

    images: torch.Tensor
    """[N, 3, H, W] float32, normalised, channels_last memory."""
    labels: torch.Tensor
    """[N] int64."""
    weights: torch.Tensor
    """[N] float32: 1, or 0 for a sample that only fills the batch."""
    indices: np.ndarray
    """[N] int64 sample ids."""
    size_bytes: int
    """Size of the encoded images that were read for it."""


@dataclass
class _Work:
    """One batch on its way from the disk to the decoder."""

    share: Share
    reads: list[Future[list[tuple[np.ndarray, tuple[int, int]]]]]
    encoded: list[np.ndarray]
    inputs: Inputs


class Stream:
    """Produces the batches of `shares` in a thread of its own; `get` them in order.

    `depth` batches wait ready. A stream that is started early waits until `after` has decoded
    its last batch, or until `hurry`; so one pass follows another without a gap.
    """

    def __init__(
        self,
        source: Source,
        shares: Callable[[], Iterator[Share]],
        recipe: Recipe,
        decoder: Decoder,
        readers: ThreadPoolExecutor,
        depth: int,
        after: Stream | None,
    ) -> None:
        self._source = source
        self._shares = shares
        self._recipe = recipe
        self._decoder = decoder
        self._readers = readers
        self._channel: Channel[Batch] = Channel(depth)
        self._hurried = False
        self._thread = threading.Thread(
            target=self._run, args=(after,), name="hvdtrain-decode", daemon=True
        )
        self._thread.start()

    def get(self) -> Batch | None:
        """The next batch; None after the last. Raises DataError where one cannot be made."""
        return self._channel.get()

    def hurry(self) -> None:
        """Wait no more for the stream before: somebody wants these batches now."""
        self._hurried = True

    def close(self) -> None:
        """Stop producing, and wait for the thread to end."""
        self._channel.close()
        self.hurry()
        self._thread.join()

    def _run(self, after: Stream | None) -> None:
        try:
            while after is not None and after._thread.is_alive() and not self._hurried:
                after._thread.join(timeout=0.05)
            self._produce()
        except BaseException as error:  # noqa: BLE001 - the consumer raises it
            self._channel.end(error)
        else:
            self._channel.end()

    def _produce(self) -> None:
        shares = self._shares()
        reading: deque[_Work] = deque()
        decoding: deque[_Work] = deque()
        try:
            while not self._channel.closed:
                while len(reading) < _READ_AHEAD and (share := next(shares, None)) is not None:
                    reading.append(self._begin_reading(share))
                if reading and self._may_submit(decoding, reading[0]):
                    self._submit(reading.popleft(), decoding)
                elif decoding:
                    self._channel.put(self._finish(decoding))
                else:
                    return
        except DecodeError as error:
            raise self._blame(decoding, error) from None
        finally:
            for future in (future for work in reading for future in work.reads):
                future.cancel()
            self._decoder.drain()

    def _may_submit(self, decoding: deque[_Work], work: _Work) -> bool:
        room = len(decoding) < DEPTH
        return room and (not decoding or self._decoder.fits(len(work.share.indices)))

    def _begin_reading(self, share: Share) -> _Work:
        parts = np.array_split(share.indices, min(READERS, len(share.indices)))
        return _Work(share, [self._readers.submit(self._read, part) for part in parts], [], {})

    def _read(self, ids: np.ndarray) -> list[tuple[np.ndarray, tuple[int, int]]]:
        """Bytes and (height, width) of samples `ids`; runs in a reader thread."""
        result = []
        for i in ids.tolist():
            if self._channel.closed:
                break
            encoded = self._source.read(i)
            try:
                result.append((encoded, image_size(encoded)))
            except ValueError as error:
                raise DataError(f"{self._source.name(i)}: {error}") from None
        return result

    def _submit(self, work: _Work, decoding: deque[_Work]) -> None:
        """Hand a batch to the decoder once it is read; not if the consumer has gone."""
        read = [item for future in work.reads for item in future.result()]
        if self._channel.closed:
            return
        work.encoded = [encoded for encoded, _size in read]
        sizes = np.array([size for _encoded, size in read], dtype=np.int64)
        work.inputs = self._recipe.inputs(work.share.indices, sizes)
        decoding.append(work)
        self._decoder.submit(work.encoded, work.inputs)

    def _finish(self, decoding: deque[_Work]) -> Batch:
        images = self._decoder.result()
        work = decoding.popleft()
        indices, weights = work.share
        labels = torch.from_numpy(self._source.labels[indices].astype(np.int64))
        size_bytes = sum(map(len, work.encoded))
        return Batch(images, labels, torch.from_numpy(weights), indices, size_bytes)

    def _blame(self, decoding: deque[_Work], error: DecodeError) -> DataError:
        """Decode what was lost with the failure one by one, to name the sample at fault."""
        for work in decoding:
            for k, i in enumerate(work.share.indices.tolist()):
                alone = {name: values[k : k + 1] for name, values in work.inputs.items()}
                try:
                    self._decoder.submit([work.encoded[k]], alone)
                    self._decoder.result()
                except DecodeError as reason:
                    return DataError(f"{self._source.name(i)}: {reason}")
        return DataError(f"a batch could not be decoded: {error}")
