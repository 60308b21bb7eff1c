"""The index of tar shards: made from all their headers, or read from the file next to them.

SHARDS/.hvdtrain-index.npz   names, labels, offsets and sizes of all images, and the name, length
                             and time of change of each shard
"""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hvdtrain.errors import DataError
from hvdtrain.files import whole_file
from pipelines.sources.arrays import DamagedError, read_arrays
from pipelines.sources.base import EXTENSIONS, Names
from pipelines.sources.shards import Member, ShardReader, members

INDEX = ".hvdtrain-index.npz"
_FORMAT = 1
_COLUMNS = ("starts", "names", "name_ends", "offsets", "sizes", "numbers", "texts")
_STATES = ("shards", "lengths", "changed")
_FIX = "run hvdtrain data index again, or delete it"
_LABEL_KEYS = ("cls", "label", "class")
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


def index_path(path: str) -> Path:
    """Where the index of the shards at `path` is: in a folder, or next to a file or pattern."""
    place = Path(path)
    return place / INDEX if place.is_dir() else place.with_name(f".{place.name}{INDEX}")


def read_headers(reader: ShardReader) -> TarIndex:
    """Read all headers of all shards. Raises DataError if one is damaged or a label is missing."""
    with ThreadPoolExecutor(_THREADS) as pool:
        shards = list(pool.map(lambda k: _read_shard(reader, k), range(len(reader.paths))))
    labels = [label for shard in shards for label in shard.labels]
    numbers, texts = _numbered(labels)
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
    )


def write(reader: ShardReader, file: Path) -> TarIndex:
    """Read all headers, and save the index, whole or not at all. Raises DataError, OSError."""
    states = _states(reader.paths)
    index = read_headers(reader)
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
    except DamagedError as error:
        raise DataError(f"{where}: {file}: {error}; {_FIX}") from None
    states = _states(reader.paths)
    if not all(np.array_equal(states[name], arrays[name]) for name in _STATES):
        raise DataError(f"{where}: other shards than when {file} was written; {_FIX}")
    return TarIndex(
        arrays["starts"],
        Names(arrays["names"].tobytes(), arrays["name_ends"]),
        arrays["offsets"],
        arrays["sizes"],
        arrays["numbers"],
        arrays["texts"].tolist(),
    )


def _states(paths: list[str]) -> dict[str, np.ndarray]:
    """What shows that shards are the same: name, length in bytes, time of change in ns."""
    states = [Path(path).stat() for path in paths]
    return {
        "shards": np.array([Path(path).name for path in paths], dtype=np.str_),
        "lengths": np.array([state.st_size for state in states], dtype=np.int64),
        "changed": np.array([state.st_mtime_ns for state in states], dtype=np.int64),
    }


class _Shard(NamedTuple):
    """What is in one shard."""

    names: Names
    offsets: np.ndarray
    sizes: np.ndarray
    labels: list[int | str]


def _read_shard(reader: ShardReader, shard: int) -> _Shard:
    path = reader.paths[shard]
    images: list[Member] = []
    labels: list[int | str] = []
    last_key, image, label = b"", None, None
    for member in members(reader, shard):
        key, extension = _split(member.name)
        if key != last_key:
            _append(images, labels, image, label, path)
            last_key, image, label = key, None, None
        if b"." + extension in EXTENSIONS:
            image = member
        elif extension in (b"cls", b"json"):
            text = member.head
            if len(text) < member.size:
                text = reader.read(shard, member.offset, member.size).tobytes()
            parsed = _label(text, is_json=extension == b"json")
            label = label if parsed is None else parsed
    _append(images, labels, image, label, path)
    return _Shard(
        Names.of([image.name for image in images]),
        np.array([image.offset for image in images], dtype=np.int64),
        np.array([image.size for image in images], dtype=np.uint32),
        labels,
    )


def _append(
    images: list[Member],
    labels: list[int | str],
    image: Member | None,
    label: int | str | None,
    path: str,
) -> None:
    """Add a complete sample; one without an image is ignored."""
    if image is None:
        return
    if label is None:
        raise DataError(
            f"{path}: {os.fsdecode(image.name)}: no label; expected a .cls next to it, or a .json "
            f"with one of {', '.join(_LABEL_KEYS)}"
        )
    images.append(image)
    labels.append(label)


def _split(name: bytes) -> tuple[bytes, bytes]:
    """Key and lower-case extension. Source: webdataset 0.2, `tariterators.base_plus_ext`."""
    folder, slash, base = name.rpartition(b"/")
    stem, _, extension = base.partition(b".")
    return folder + slash + stem, extension.lower()


def _label(text: bytes, *, is_json: bool) -> int | str | None:
    if not is_json:
        word = text.decode(errors="replace").strip()
        return int(word) if word.isdecimal() else word or None
    try:
        content = json.loads(text)
    except ValueError:
        return None
    if not isinstance(content, dict):
        return None
    label: Any = next((content[key] for key in _LABEL_KEYS if key in content), None)
    return label if isinstance(label, (int, str)) else None


def _numbered(labels: list[int | str]) -> tuple[np.ndarray, list[str]]:
    """Labels as numbers [len(labels)] int64, and the texts these stand for; [] if all are numbers."""
    if all(isinstance(label, int) for label in labels):
        return np.array(labels, dtype=np.int64), []
    texts = sorted({str(label) for label in labels})
    number_of = {text: number for number, text in enumerate(texts)}
    return np.array([number_of[str(label)] for label in labels], dtype=np.int64), texts
