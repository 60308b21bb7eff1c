"""The order of samples: one permutation of the dataset per epoch, distributed over the ranks.

The permutation is over all samples. For disks that are faster in sequence there is another one:
over shards, and over samples within a window.

Everything here is a pure function of (seed, epoch, position). So a run that stopped after any
number of samples goes on with the next one, at any world size and batch. Only integer arithmetic
of fixed width and a stable sort are used, and no library's random stream: the order does not
change with a version.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from pipelines.hashing import hash64

_ORDER = 1  # keeps these draws apart from those of `augment`
_SHARDS = 5
_FRACTION = 20  # bits of a random delay
COPY = 2**40
"""Larger than any sample id: the copies of a sample, see `repeated`, are numbered in steps of this."""


class Share(NamedTuple):
    """The samples of one rank in one step."""

    copies: np.ndarray
    """[N] int64: sample ids, and above them `COPY` times the number of the copy. Random changes of an
    image depend on this."""
    weights: np.ndarray
    """[N] float32: 1, or 0 for a sample that only fills the batch."""

    @property
    def indices(self) -> np.ndarray:
        """[N] int64 sample ids."""
        return self.copies % COPY


def permutation(num_samples: int, *, seed: int, epoch: int) -> np.ndarray:
    """All sample ids in the order of this epoch: [num_samples] int64, the same on every rank."""
    ids = np.arange(num_samples, dtype=np.uint64)
    return np.argsort(hash64(ids, _ORDER, seed, epoch), kind="stable")


def shard_permutation(
    starts: np.ndarray, num_samples: int, *, window: int, seed: int, epoch: int
) -> np.ndarray:
    """All sample ids, shard after shard in random order, mixed within a window: [num_samples].

    `starts` [shards]: the first sample of each shard, rising from 0. In the sequence of all shards
    each sample is delayed by a random number of places below `window`, and gaps are closed. So at
    any time samples come from about `2 * window` neighbouring ones.
    """
    shards = np.argsort(
        hash64(np.arange(len(starts), dtype=np.uint64), _SHARDS, seed, epoch), kind="stable"
    )
    lengths = np.diff(np.append(starts, num_samples))[shards]
    begins = np.cumsum(lengths) - lengths  # of each shard in the sequence
    sequence = np.arange(num_samples) + np.repeat(starts[shards] - begins, lengths)
    random = hash64(sequence.astype(np.uint64), _ORDER, seed, epoch) >> np.uint64(64 - _FRACTION)
    delayed = (
        np.arange(num_samples, dtype=np.uint64) << np.uint64(_FRACTION)
    ) + random * np.uint64(window)
    return np.asarray(sequence[np.argsort(delayed, kind="stable")])


def repeated(order: np.ndarray, *, repeats: int, turn: int) -> np.ndarray:
    """The part of epoch `turn` of `repeats` that share `order`, [num_samples]: each sample of it is
    there `repeats` times in a row, as the copies 0, 1, … of `Share.copies`.

    The parts of all turns together hold each copy of each sample once. A sample whose copies do not
    fit into the end of one part goes on in the next.
    """
    places = np.arange(turn * len(order), (turn + 1) * len(order))
    copies: np.ndarray = order[places // repeats] + COPY * (places % repeats)
    return copies


def classes_per_batch(labels: np.ndarray, order: np.ndarray, batch: int = 256) -> float:
    """Mean number of different classes among `batch` consecutive samples of `order`.

    `labels` [num_samples]: class of each sample. A tail shorter than `batch` is left out.
    """
    rows = labels[order[: len(order) // batch * batch]].reshape(-1, batch)
    if not len(rows):
        return float(len(np.unique(labels)))
    rows = np.sort(rows, axis=1)
    return float(np.mean(1 + (np.diff(rows, axis=1) != 0).sum(axis=1)))


def steps_left(num_samples: int, *, start: int, global_batch: int) -> int:
    """Steps from sample `start` to the end of the epoch; a shorter last step counts."""
    return -(-(num_samples - start) // global_batch)


def share(order: np.ndarray, first: int, *, batch: int, rank: int, world_size: int) -> Share:
    """The samples of `rank` in the global step whose first sample is `order[first]`.

    The step covers `batch * world_size` places of `order`, and each rank takes every
    `world_size`-th of them, so a short last step is spread evenly. Places beyond the end are
    filled from the beginning of `order` with weight 0: batches are always full, and over an epoch
    the weights of each sample sum to 1 over all ranks.
    """
    places = first + rank + world_size * np.arange(batch, dtype=np.int64)
    weights = (places < len(order)).astype(np.float32)
    return Share(order[places % len(order)], weights)


def shares(
    order: np.ndarray, start: int, batch: int, rank: int, world_size: int
) -> Iterator[Share]:
    """The share of `rank` in every global step from place `start` of `order` to its end."""
    for first in range(start, len(order), batch * world_size):
        yield share(order, first, batch=batch, rank=rank, world_size=world_size)
