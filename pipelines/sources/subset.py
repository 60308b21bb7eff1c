"""Some of the samples of a source: the two parts of a split are subsets of one dataset."""

from __future__ import annotations

import hashlib

import numpy as np

from pipelines.sources.base import Source
from pipelines.sources.classes import Relabelled
from pipelines.sources.left_out import LeftOut


class Subset:
    """The samples `ids` of `source`, in its order; all of its classes, even those without a sample."""

    def __init__(self, source: Source, ids: np.ndarray) -> None:
        """`ids` [N] int64, rising."""
        self.source, self.ids = source, ids
        self.classes = source.classes
        self.labels = source.labels[ids]
        digest = hashlib.sha256(f"subset {source.fingerprint} ".encode())
        digest.update(ids.astype("<i8").tobytes())
        self.fingerprint = digest.hexdigest()
        self.left_out = LeftOut()
        self.shard_starts = _starts_within(getattr(source, "shard_starts", None), ids)

    def __len__(self) -> int:
        return len(self.ids)

    def name(self, i: int) -> str:
        """The name that the source gives it."""
        return self.source.name(int(self.ids[i]))

    def read(self, i: int) -> np.ndarray:
        """The encoded bytes of sample `i`, [bytes] uint8. Raises DataError naming it."""
        return self.source.read(int(self.ids[i]))

    def over(self, source: Source) -> Subset:
        """The same samples of another copy of the source."""
        return Subset(source, self.ids)


def _starts_within(starts: np.ndarray | None, ids: np.ndarray) -> np.ndarray | None:
    """The first sample of each shard, counted among `ids`; shards without a sample are left out."""
    if starts is None:
        return None
    places = np.unique(np.searchsorted(ids, starts))
    return places[places < len(ids)]


def origin(source: Source) -> tuple[Source, np.ndarray]:
    """The source that reads the dataset, and which of its samples `source` has, [len] int64."""
    ids = np.arange(len(source))
    while isinstance(source, (Relabelled, Subset)):
        if isinstance(source, Subset):
            ids = source.ids[ids]
        source = source.source
    return source, ids
