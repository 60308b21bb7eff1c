"""The index of tar shards: made from all their headers, or read from the file next to them.

SHARDS/.hvdtrain-index.npz   names, labels, offsets and sizes of all images, and the name, length
                             and time of change of each shard
"""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hvdtrain.errors import DataError
from hvdtrain.files import whole_file
from pipelines.sources.arrays import DamagedError, read_arrays
from pipelines.sources.base import Names
from pipelines.sources.left_out import LeftOut, printable
from pipelines.sources.shards import ShardReader
from pipelines.sources.tar_grouping import DOTS, read_shard
from pipelines.sources.tar_labels import numbered

INDEX = ".hvdtrain-index.npz"
_FORMAT = 2
_COLUMNS = ("starts", "names", "name_ends", "offsets", "sizes", "numbers", "texts", "left_out")
_STATES = ("shards", "lengths", "changed")
_FIX = "run hvdtrain data index again, or delete it"
Progress = Callable[[int, int], None]
_THREADS = 8  # hide the latency of a network disk while indexing


class TarIndex(NamedTuple):
    """All images of a list of shards, in order. `len` is the number of images."""

    starts: np.ndarray
    """[shards] int64: the first image of each shard."""
    names: Names
    offsets: np.ndarray
    """[len] int64: first byte in the shard."""
    sizes: np.ndarray
    """[len] uint32: bytes."""
    numbers: np.ndarray
    """[len] int64: class numbers, or indices into `texts` if that is not empty."""
    texts: list[str]
    """The different labels, sorted; empty if all are numbers."""
    left_out: LeftOut
    """The members that belong to no sample."""


def index_path(path: str) -> Path:
    """Where the index of the shards at `path` is: in a folder, or next to a file or pattern."""
    place = Path(path)
    return place / INDEX if place.is_dir() else place.with_name(f".{place.name}{INDEX}")


def unseen(_done: int, _total: int) -> None:
    """A `Progress` that nobody looks at."""


def read_headers(reader: ShardReader, progress: Progress = unseen) -> TarIndex:
    """Read all headers of all shards. `progress(shards read, all shards)`.

    Raises DataError if one is damaged, a label is missing, or images are in no sample because of
    dots in their names.
    """
    count = len(reader.paths)
    progress(0, count)
    shards = []
    with ThreadPoolExecutor(_THREADS) as pool:
        for shard in pool.map(lambda k: read_shard(reader, k), range(count)):
            shards.append(shard)
            progress(len(shards), count)
    left_out = LeftOut()
    for shard in shards:
        left_out.merge(shard.left_out)
    if DOTS in left_out.counts:
        raise DataError(
            f"{reader.paths[0]}{', …' if len(shards) > 1 else ''}: {left_out.counts[DOTS]:,} images "
            f"are in no sample, first {printable(left_out.first[DOTS][0])}: the key of a sample ends "
            "at the first dot of the file's name; rename them"
        )
    numbers, texts = numbered([label for shard in shards for label in shard.labels])
    return TarIndex(
        np.cumsum([0] + [len(shard.labels) for shard in shards[:-1]]),
        Names(
            b"".join(shard.names.block for shard in shards),
            np.cumsum(np.concatenate([np.diff(s.names.ends, prepend=0) for s in shards])),
        ),
        np.concatenate([shard.offsets for shard in shards]),
        np.concatenate([shard.sizes for shard in shards]),
        numbers,
        texts,
        left_out,
    )


def write(reader: ShardReader, file: Path, progress: Progress = unseen) -> TarIndex:
    """Read all headers, and save the index, whole or not at all. Raises DataError, OSError."""
    states = reader.identity()
    index = read_headers(reader, progress)
    with whole_file(file) as stream:
        np.savez(
            stream,
            format=np.array(_FORMAT),
            starts=index.starts,
            names=np.frombuffer(index.names.block, dtype=np.uint8),
            name_ends=index.names.ends,
            offsets=index.offsets,
            sizes=index.sizes,
            numbers=index.numbers,
            texts=np.array(index.texts, dtype=np.str_),
            left_out=np.array(json.dumps(asdict(index.left_out))),
            **states,  # type: ignore[arg-type]
        )
    return index


def load(file: Path, reader: ShardReader, where: str) -> TarIndex:
    """The saved index. Raises DataError if it is damaged, or was made from other shards."""
    try:
        version = int(read_arrays(file, "format")["format"])
        if version != _FORMAT:
            raise DamagedError(f"format {version}; this version reads {_FORMAT}")
        arrays = read_arrays(file, *_COLUMNS, *_STATES)
        left_out = _checked(arrays)
    except DamagedError as error:
        raise DataError(f"{where}: {file}: {error}; {_FIX}") from None
    states = reader.identity()
    if not all(np.array_equal(states[name], arrays[name]) for name in _STATES):
        raise DataError(f"{where}: other shards than when {file} was written; {_FIX}")
    return TarIndex(
        arrays["starts"],
        Names(arrays["names"].tobytes(), arrays["name_ends"]),
        arrays["offsets"],
        arrays["sizes"],
        arrays["numbers"],
        arrays["texts"].tolist(),
        left_out,
    )


def _checked(arrays: dict[str, np.ndarray]) -> LeftOut:
    """What was left out. Raises DamagedError unless all arrays fit together."""
    count, ends, starts = len(arrays["sizes"]), arrays["name_ends"], arrays["starts"]
    numbers, texts = arrays["numbers"], arrays["texts"]
    whole = (
        all(len(arrays[name]) == count for name in ("name_ends", "offsets", "numbers"))
        and len(starts) == len(arrays["shards"]) == len(arrays["lengths"])
        and (np.diff(ends, prepend=0) >= 0).all()
        and len(arrays["names"]) == (ends[-1] if count else 0)
        and (np.diff(starts, prepend=0) >= 0).all()
        and (starts <= count).all()
        and (not len(texts) or not count or 0 <= numbers.min() <= numbers.max() < len(texts))
        and (arrays["offsets"] >= 0).all()
    )
    try:
        left_out = LeftOut(**json.loads(str(arrays["left_out"])))
    except (ValueError, TypeError, RecursionError):
        whole = False
    if not whole:
        raise DamagedError("damaged (its parts do not fit together)")
    return left_out
