"""One pass over a dataset: its batches are read, decoded and queued ahead of the training thread."""

from __future__ import annotations

import threading
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch

from hvdtrain.errors import DataError
from pipelines.bad import PIXEL, PIXEL_SIZE, BadSample, Quarantine
from pipelines.channel import Channel
from pipelines.images.decoder import DEPTH, DecodeError, Decoder
from pipelines.images.headers import HeaderError, image_size
from pipelines.images.recipes import Inputs, Recipe
from pipelines.order import COPY, Share
from pipelines.sources import Source
from pipelines.sources.remote.opening import is_far
from pipelines.sources.retries import RETRIES

READERS = 8
"""Threads that read files: enough to hide the latency of a network disk, idle on a local one."""
FAR_READERS = 32
"""The same where images come from a server: each waits for its answer, or for a block that another fetches."""
_READ_AHEAD = 2  # batches read beyond those being decoded


class Partners(NamedTuple):
    """What the images of a batch are mixed with: images [N, 3, H, W], labels [N], weights [N]."""

    images: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor


@dataclass(frozen=True)
class Batch:
    """Images of one rank for one step."""

    images: torch.Tensor
    """[N, 3, H, W] float32, normalised, channels_last memory."""
    labels: torch.Tensor
    """[N] int64."""
    weights: torch.Tensor
    """[N] float32: 1, or 0 for a sample that is masked or only fills the batch."""
    copies: np.ndarray
    """[N] int64 sample ids with the number of the copy, see `Share.copies`."""
    size_bytes: int
    """Size of the encoded images that were read for it."""
    bad: tuple[BadSample, ...] = ()
    """The masked samples; each is replaced by a grey image of weight 0."""
    partners: Partners | None = None
    """Another image for each, where `train.mix_partner: doubled` asks for them."""

    def paired(self) -> Batch:
        """The first half of the images, with the second half for partners."""
        count = len(self.labels) // 2
        return replace(
            self,
            images=self.images[:count],
            labels=self.labels[:count],
            weights=self.weights[:count],
            copies=self.copies[:count],
            partners=Partners(self.images[count:], self.labels[count:], self.weights[count:]),
        )

    @property
    def indices(self) -> np.ndarray:
        """[N] int64 sample ids."""
        return self.copies % COPY


Encoded = tuple[np.ndarray, tuple[int, int]]
"""The bytes of an image, and its height and width."""


@dataclass
class _Work:
    """One batch on its way from the disk to the decoder."""

    share: Share
    reads: list[Future[list[Encoded]]]
    encoded: list[np.ndarray] = field(default_factory=list)
    inputs: Inputs = field(default_factory=dict)

    def single(self, k: int) -> tuple[list[np.ndarray], Inputs]:
        """Sample `k` as a batch of one."""
        return [self.encoded[k]], {name: values[k : k + 1] for name, values in self.inputs.items()}


class Readers(ThreadPoolExecutor):
    """The threads that read the samples of some sources."""

    def __init__(self, sources: Iterable[Source]) -> None:
        self.count = FAR_READERS if any(map(is_far, sources)) else READERS
        super().__init__(self.count, thread_name_prefix="hvdtrain-read")


class Stream:
    """Makes the batches of `shares` in its own thread; `get` returns them in order.

    Up to `depth` batches wait in a queue. A stream that is started early waits until `after` has
    decoded its last batch, or until `hurry` is called: so one pass follows another without a gap.
    A sample that cannot be used is added to `quarantine` with its `epoch`, and a grey pixel takes
    its place; without a quarantine it ends the stream.
    """

    def __init__(
        self,
        source: Source,
        shares: Callable[[], Iterator[Share]],
        recipe: Recipe,
        decoder: Decoder,
        readers: Readers,
        depth: int,
        after: Stream | None,
        epoch: int = 0,
        quarantine: Quarantine | None = None,
    ) -> None:
        self._source = source
        self._shares = shares
        self._recipe = recipe
        self._decoder = decoder
        self._readers = readers
        self._epoch = epoch
        self._quarantine = quarantine
        self._channel: Channel[Batch] = Channel(depth)
        self._hurried = False
        self._reading: dict[int, int] = {}
        """The sample that each reader thread is at, by thread."""
        self._decoding: deque[_Work] = deque()
        self._thread = threading.Thread(
            target=self._run, args=(after,), name="hvdtrain-decode", daemon=True
        )
        self._thread.start()

    def get(self) -> Batch | None:
        """The next batch; None after the last. Raises DataError where one cannot be made."""
        return self._channel.get()

    def doing(self) -> str:
        """What keeps the next batch from being there, for any thread to ask; empty after the last."""
        if not self._thread.is_alive():
            return ""
        if reading := list(self._reading.values()):
            more = f" and {len(reading) - 1} more" if len(reading) > 1 else ""
            return f"reading {self._source.name(reading[0])}{more}"
        if decoding := list(self._decoding):
            indices = decoding[0].share.indices
            return f"decoding {len(indices)} images, first {self._source.name(int(indices[0]))}"
        return "starting to read"

    def hurry(self) -> None:
        """Do not wait for `after` any longer: the consumer needs these batches now."""
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
        decoding = self._decoding
        try:
            while not self._channel.closed:
                while len(reading) < _READ_AHEAD and (share := next(shares, None)) is not None:
                    reading.append(self._begin_reading(share))
                try:
                    if reading and self._may_submit(decoding, reading[0]):
                        self._submit(reading.popleft(), decoding)
                    elif decoding:
                        self._channel.put(self._finish(decoding))
                    else:
                        return
                except DecodeError as error:
                    self._recover(decoding, error)
        finally:
            for future in (future for work in reading for future in work.reads):
                future.cancel()
            self._decoder.drain()

    def _may_submit(self, decoding: deque[_Work], work: _Work) -> bool:
        room = len(decoding) < DEPTH
        return room and (not decoding or self._decoder.fits(len(work.share.indices)))

    def _begin_reading(self, share: Share) -> _Work:
        parts = np.array_split(share.indices, min(self._readers.count, len(share.indices)))
        return _Work(share, [self._readers.submit(self._read, part) for part in parts])

    def _read(self, ids: np.ndarray) -> list[Encoded]:
        """Read samples `ids`; runs in a reader thread."""
        result, thread = [], threading.get_ident()
        try:
            with RETRIES.unless(lambda: self._channel.closed):
                for i in ids.tolist():
                    if self._channel.closed:
                        break
                    self._reading[thread] = i
                    result.append(self._read_one(i))
        finally:
            self._reading.pop(thread, None)
        return result

    def _read_one(self, i: int) -> Encoded:
        if self._quarantine is not None and self._quarantine.find(i, self._epoch):
            return PIXEL, PIXEL_SIZE
        encoded: np.ndarray | None = None
        try:
            encoded = self._source.read(i)
            return encoded, image_size(encoded)
        except HeaderError as error:
            return self._mask(i, error.reason, str(error), encoded)
        except DataError as error:
            if self._channel.closed:  # not tried again, so nothing is known of it
                return PIXEL, PIXEL_SIZE
            return self._mask(i, "read", str(error))

    def _mask(self, i: int, reason: str, detail: str, encoded: np.ndarray | None = None) -> Encoded:
        """Add sample `i`, whose bytes are `encoded`, to the quarantine; returns what takes its place."""
        name = self._source.name(i)
        detail = detail.removeprefix(f"{name}: ")
        if self._quarantine is None:
            raise DataError(f"{name}: {detail}")
        crc32 = None if encoded is None else zlib.crc32(encoded.data)
        self._quarantine.add([BadSample(i, self._epoch, reason, name, detail, crc32)])
        return PIXEL, PIXEL_SIZE

    def _submit(self, work: _Work, decoding: deque[_Work]) -> None:
        """Give a batch to the decoder once it is read, unless the consumer has gone."""
        read = [item for future in work.reads for item in future.result()]
        if self._channel.closed:
            return
        work.encoded = [encoded for encoded, _size in read]
        sizes = np.array([size for _encoded, size in read], dtype=np.int64)
        work.inputs = self._recipe.inputs(work.share.copies, sizes)
        decoding.append(work)
        self._decoder.submit(work.encoded, work.inputs)

    def _finish(self, decoding: deque[_Work]) -> Batch:
        images = self._decoder.result()
        work = decoding.popleft()
        share = work.share
        labels = torch.from_numpy(self._source.labels[share.indices].astype(np.int64))
        size_bytes = sum(map(len, work.encoded))
        return Batch(images, labels, torch.from_numpy(share.weights), share.copies, size_bytes)

    def _recover(self, decoding: deque[_Work], error: DecodeError) -> None:
        """Mask the samples at fault, and submit again the batches that were lost with them."""
        while not self._channel.closed:
            work, k, reason = self._culprit(decoding, error)
            encoded = work.encoded[k]
            pixel, size = self._mask(int(work.share.indices[k]), "decode", str(reason), encoded)
            work.encoded[k] = pixel
            inputs = self._recipe.inputs(work.share.copies[k : k + 1], np.array([size]))
            for name, values in inputs.items():
                work.inputs[name] = np.array(work.inputs[name])  # may be a view
                work.inputs[name][k] = values[0]
            try:
                for work in decoding:
                    self._decoder.submit(work.encoded, work.inputs)
            except DecodeError as another:
                error = another
            else:
                return

    def _culprit(
        self, decoding: deque[_Work], error: DecodeError
    ) -> tuple[_Work, int, DecodeError]:
        """Find a sample at fault: decode the lost batches one by one, first what DALI named."""
        places = [(work, k) for work in decoding for k in range(len(work.encoded))]
        places.sort(key=lambda place: place[1] != error.sample)
        for work, k in places:
            try:
                self._decoder.submit(*work.single(k))
                self._decoder.result()
            except DecodeError as reason:
                return work, k, reason
        raise DataError(f"a batch could not be decoded: {error}")
