"""Samples that cannot be used, and the list of them that every rank keeps."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

REASONS = ("read", "empty", "format", "header", "size", "truncated", "decode")
"""Why a sample can be bad: not readable, no bytes, not an image of a known format, a damaged
header, too many pixels, cut short, or refused by the decoder."""

PIXEL = np.frombuffer(b"P5\n1 1\n255\n\x80", dtype=np.uint8)
"""One grey pixel as a PGM file, decoded in place of a bad sample."""
PIXEL_SIZE = (1, 1)
PIXEL_LEVEL = 128 / 255
"""Its value in 0-1."""


@dataclass(frozen=True)
class BadSample:
    """A bad sample, and when it was found to be one."""

    index: int
    epoch: int
    reason: str
    """One of `REASONS`."""
    name: str
    """By which a person finds it, usually a path."""
    detail: str
    """What is wrong with it, in a few words."""


class Quarantine:
    """The samples set aside so far, each from the epoch on in which it failed.

    Damage may lie outside the window that one epoch decodes and inside that of another. What is
    masked in an epoch depends only on this and earlier epochs, in each of which every sample is
    met exactly once: so it is the same for any number of ranks and after a resume, as long as
    all ranks share the list before the next epoch's batches are used.
    """

    def __init__(self) -> None:
        self._found: dict[int, BadSample] = {}

    def add(self, found: Iterable[BadSample]) -> None:
        """Set samples aside; the earliest epoch counts."""
        for bad in found:
            known = self._found.get(bad.index)
            if known is None or bad.epoch < known.epoch:
                self._found[bad.index] = bad

    def find(self, index: int, epoch: int) -> BadSample | None:
        """Why sample `index` is masked in `epoch`; None if it is not."""
        bad = self._found.get(index)
        return bad if bad is not None and bad.epoch <= epoch else None

    def among(self, indices: np.ndarray, epoch: int) -> dict[int, BadSample]:
        """The masked ones among sample ids [N] in `epoch`, by their place in `indices`."""
        if not self._found:
            return {}
        looked_up = ((k, self.find(i, epoch)) for k, i in enumerate(indices.tolist()))
        return {k: bad for k, bad in looked_up if bad is not None}
