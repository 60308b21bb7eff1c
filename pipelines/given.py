"""Images that are given one by one, prepared as for evaluation; each may be bad."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch

from hvdtrain.config.data import Data
from hvdtrain.errors import DataError
from pipelines.fixed import Preparation
from pipelines.images import recipes
from pipelines.images.decoder import DecodeError, Decoder
from pipelines.images.headers import MAX_PIXELS, HeaderError, image_size
from pipelines.memory import limit_arenas

READERS = 4
"""Threads that read files: each may hold one of up to 1 GiB before it is found to be no image."""
_PIXELS_AT_ONCE = 2 * MAX_PIXELS
"""Most pixels that are decoded at once: half a GiB of RGB."""


@dataclass(frozen=True)
class Given:
    """An image by its name, and how its encoded bytes [bytes] uint8 are read."""

    name: str
    read: Callable[[], np.ndarray]
    """Raises DataError."""


@dataclass(frozen=True)
class Fault:
    """Why an image cannot be used."""

    reason: str
    """One of `bad.REASONS`, or `network`: what it computes of the image is not finite."""
    detail: str


@dataclass(frozen=True)
class Prepared:
    """A batch of what was given, in its order."""

    names: list[str]
    faults: dict[int, Fault]
    """Of the bad images, by their place in `names`."""
    places: list[int]
    """Of the others."""
    images: torch.Tensor
    """Those at `places`: [M, 3, S, S] float32, normalised, where the decoder works."""


_Read = tuple[np.ndarray, tuple[int, int]] | Fault


class GivenImages:
    """Prepares images to the pixel as evaluation does it. A context manager; leaving it ends all threads.

    With `phases.rect_val` evaluation takes rectangles that depend on the whole dataset; here images
    are squares.
    """

    def __init__(self, data: Data, how: Preparation) -> None:
        limit_arenas()
        square = np.array([how.image_size, how.image_size])
        self._how = how
        self._recipe = recipes.evaluation(data, lambda _ids: square, how.interpolation)
        self._decoder = Decoder(self._recipe, data.mean, data.std, how.threads, how.device)
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="hvdtrain-read")
        self._ahead = ThreadPoolExecutor(1, thread_name_prefix="hvdtrain-decode")

    def __enter__(self) -> GivenImages:
        return self

    def __exit__(self, *_: object) -> None:
        self._ahead.shutdown(cancel_futures=True)
        self._readers.shutdown(cancel_futures=True)
        self._decoder.reset()

    def batches(self, given: Iterable[Given], batch: int) -> Iterator[Prepared]:
        """Batches of `batch` images, the last one smaller. One is prepared while the caller uses another."""
        left, pending = iter(given), deque[Future[Prepared]]()
        while True:
            while len(pending) < 2 and (chunk := list(islice(left, batch))):
                pending.append(self._ahead.submit(self._prepare, chunk))
            if not pending:
                return
            yield pending.popleft().result()

    def _prepare(self, chunk: list[Given]) -> Prepared:
        read = list(self._readers.map(_read, chunk))
        faults = {k: one for k, one in enumerate(read) if isinstance(one, Fault)}
        found: dict[int, torch.Tensor] = {}
        good = [(k, *one) for k, one in enumerate(read) if not isinstance(one, Fault)]
        for part in _parts(good):
            try:
                images = self._decode(part)
                found.update(zip([k for k, _, _ in part], images, strict=True))
            except DecodeError:  # of some image: one after the other says which
                for one in part:
                    try:
                        found[one[0]] = self._decode([one])[0]
                    except DecodeError as error:
                        faults[one[0]] = Fault("decode", _refusal(error))
        places = sorted(found)
        size = self._how.image_size
        images = (
            torch.stack([found[k] for k in places])
            if places
            else torch.empty((0, 3, size, size), device=self._how.device)
        )
        if images.is_cuda:  # DALI does not know the stream that copies
            torch.cuda.current_stream(images.device).synchronize()
        images = images.contiguous(memory_format=torch.channels_last)
        return Prepared([one.name for one in chunk], faults, places, images)

    def _decode(self, part: Sequence[tuple[int, np.ndarray, tuple[int, int]]]) -> torch.Tensor:
        """[N, 3, S, S] of memory that DALI owns."""
        sizes = np.array([size for _, _, size in part], dtype=np.int64)
        inputs = self._recipe.inputs(np.zeros(len(part), dtype=np.int64), sizes)
        self._decoder.submit([encoded for _, encoded, _ in part], inputs)
        return self._decoder.result()


def _refusal(error: DecodeError) -> str:
    """DALI's reason, which is sometimes only that there is one."""
    reason = str(error).rstrip(" :")
    return "the decoder refuses it" if reason.startswith("Failed to decode sample") else reason


def _read(one: Given) -> _Read:
    """The bytes and the size of an image; runs in a reader thread."""
    try:
        encoded = one.read()
        return encoded, image_size(encoded)
    except HeaderError as error:
        return Fault(error.reason, str(error))
    except DataError as error:
        return Fault("read", str(error).removeprefix(f"{one.name}: "))


def _parts(
    good: list[tuple[int, np.ndarray, tuple[int, int]]],
) -> Iterator[list[tuple[int, np.ndarray, tuple[int, int]]]]:
    """Consecutive ones that may be decoded at once."""
    part: list[tuple[int, np.ndarray, tuple[int, int]]] = []
    pixels = 0
    for one in good:
        own = one[2][0] * one[2][1]
        if part and pixels + own > _PIXELS_AT_ONCE:
            yield part
            part, pixels = [], 0
        part.append(one)
        pixels += own
    if part:
        yield part
