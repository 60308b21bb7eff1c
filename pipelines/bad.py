"""Bad samples: the reasons for them, and the list of masked ones that every rank keeps."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

REASONS = ("read", "empty", "format", "header", "size", "truncated", "decode")
"""Why a sample is bad: its file cannot be read, is empty, has no known format, a damaged header or
too many pixels, is cut short, or the decoder refused it."""

PIXEL = np.frombuffer(b"P5\n1 1\n255\n\x80", dtype=np.uint8)
"""One grey pixel as a PGM file, decoded in place of a bad sample."""
PIXEL_SIZE = (1, 1)
PIXEL_LEVEL = 128 / 255
"""Its value in 0-1."""


@dataclass(frozen=True)
class BadSample:
    """A sample that cannot be used."""

    index: int
    epoch: int
    """The epoch in which it failed."""
    reason: str
    """One of `REASONS`."""
    name: str
    """A name by which a person finds it, usually a path."""
    detail: str
    """What is wrong with it, in a few words."""
    crc32: int | None = None
    """Of its bytes; None if they could not be read."""


class Quarantine:
    """The samples that are masked, each from the epoch on in which it failed.

    An image may be damaged outside the window that one epoch decodes, and inside that of another.
    What an epoch masks depends only on this epoch and earlier ones, and every epoch uses each
    sample exactly once. So it is the same for any number of ranks and after a resume, as long as
    all ranks share the list before they use the next epoch's batches.
    """

    def __init__(self) -> None:
        self._found: dict[int, BadSample] = {}

    def add(self, samples: Iterable[BadSample]) -> None:
        """Mask samples. Of several reports of one sample the earliest epoch counts."""
        for bad in samples:
            known = self._found.get(bad.index)
            if known is None or bad.epoch < known.epoch:
                self._found[bad.index] = bad

    def find(self, index: int, epoch: int) -> BadSample | None:
        """Why sample `index` is masked in `epoch`; None if it is not."""
        bad = self._found.get(index)
        return bad if bad is not None and bad.epoch <= epoch else None

    def among(self, indices: np.ndarray, epoch: int) -> dict[int, BadSample]:
        """The masked ones among sample ids [N] in `epoch`, by their position in `indices`."""
        if not self._found:
            return {}
        looked_up = ((k, self.find(i, epoch)) for k, i in enumerate(indices.tolist()))
        return {k: bad for k, bad in looked_up if bad is not None}
