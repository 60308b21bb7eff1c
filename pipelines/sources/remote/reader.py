"""Random access to byte ranges of objects far away, through the blocks that this node keeps."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hvdtrain.config.data import RemoteCache
from pipelines.sources.remote.blocks import BLOCK, BlockCache, default_folder
from pipelines.sources.remote.objects import OBJECTS, State
from pipelines.sources.shards import ShardReader

LOOKS = 32
"""Objects that are looked at, or fetched from, at once: enough to hide the latency of a store."""


class Cached(NamedTuple):
    """Where blocks are kept, and how the samples of a dataset are going to be read."""

    blocks: BlockCache
    scattered: bool
    """In random order over the whole dataset, and not shard after shard."""


def cache_of(settings: RemoteCache | None, *, scattered: bool = False) -> Cached:
    """The cache that `data.remote_cache` describes. Raises ResourceError if its folder cannot be used."""
    settings = settings or RemoteCache()
    folder = default_folder() if settings.folder is None else Path(settings.folder).absolute()
    return Cached(BlockCache(folder, int(settings.size_gb * 1e9)), scattered)


class RemoteReader(ShardReader):
    """Reads byte ranges of objects as `ShardReader` reads those of files.

    What is read comes from blocks, which are fetched once and kept. Only if samples are read in random order, and all
    objects together have more bytes than may be kept, just the bytes asked for are fetched: a block would be deleted
    before its other samples are wanted.
    """

    def __init__(self, urls: list[str], cached: Cached) -> None:
        """Looks at every object. Raises DataError if one is missing."""
        self.paths = urls
        with ThreadPoolExecutor(LOOKS) as pool:
            self.states: list[State] = list(pool.map(OBJECTS.state, urls))
        self._keys = [state.key(url) for url, state in zip(urls, self.states, strict=True)]
        self.blocks = cached.blocks
        self.size = sum(state.size for state in self.states)
        """Bytes of all objects."""
        self.exact = False
        """Whether only the bytes asked for are fetched."""
        self._scattered = cached.scattered

    def begin_samples(self) -> None:
        """From now on samples are read, in their order; before that it was the index."""
        self.exact = self._scattered and self.size > self.blocks.limit

    def read_into(self, shard: int, offset: int, content: np.ndarray) -> int:
        """Fill `content` [bytes] uint8 from `offset`; returns how many bytes there were.

        Raises DataError naming the object if it cannot be read or is another one by now.
        """
        url, state = self.paths[shard], self.states[shard]
        end = min(offset + len(content), state.size)
        if end <= offset:
            return 0
        view = content.data
        if self.exact:
            view[: end - offset] = OBJECTS.read(url, state, offset, end)
            return end - offset
        for number in range(offset // BLOCK, -(-end // BLOCK)):
            first, last = number * BLOCK, min((number + 1) * BLOCK, state.size)
            begin = max(offset, first)
            part = view[begin - offset : min(end, last) - offset]
            self.blocks.read(
                self._keys[shard],
                state.size,
                number,
                begin - first,
                part,
                lambda first=first, last=last: OBJECTS.read(url, state, first, last),  # type: ignore[misc]
            )
        return end - offset

    def identity(self) -> dict[str, np.ndarray]:
        """As of local shards, with a hash of ETag or date in place of the time of change."""
        numbers = [int(key[:15], 16) for key in self._keys]
        return {
            "shards": np.array([url.rpartition("/")[2] for url in self.paths], dtype=np.str_),
            "lengths": np.array([state.size for state in self.states], dtype=np.int64),
            "changed": np.array(numbers, dtype=np.int64),
        }

    def key(self) -> str:
        """A name for all objects as they are."""
        return hashlib.sha256("".join(self._keys).encode()).hexdigest()[:32]

    def size_bytes(self, shard: int) -> int:
        """Length of an object."""
        return self.states[shard].size
