"""A dataset in a fixed random order, for packing."""

from __future__ import annotations

import hashlib

import numpy as np

from pipelines import order
from pipelines.sources.base import Source

SEED = 0


class Shuffled:
    """The samples of `source` in the order of one permutation."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._places = order.permutation(len(source), seed=SEED, epoch=0)
        self.classes = source.classes
        self.labels = source.labels[self._places]
        self.fingerprint = hashlib.sha256(f"shuffled {source.fingerprint}".encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._places)

    def read(self, i: int) -> np.ndarray:
        """The encoded bytes of sample `i` in this order, [bytes] uint8. Raises DataError."""
        return self._source.read(int(self._places[i]))

    def name(self, i: int) -> str:
        """The name of sample `i` in this order."""
        return self._source.name(int(self._places[i]))
