"""WebDataset shards: tar files whose members with one key, side by side, are one sample."""

from __future__ import annotations

import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hvdtrain.errors import DataError
from pipelines.sources.base import EXTENSIONS, Names, fingerprint
from pipelines.sources.shards import Member, Places, ShardReader, members

_BRACES = re.compile(r"\{([^{}]*)\}")
_LABEL_KEYS = ("cls", "label", "class")
_THREADS = 8  # hide the latency of a network disk while indexing


def is_shards(path: str) -> bool:
    """Whether `path` is a tar file, a pattern of them, or a folder with some."""
    if path.endswith(".tar"):
        return True
    return Path(path).is_dir() and any(name.endswith(".tar") for name in os.listdir(path))  # noqa: PTH208


class TarShards:
    """The samples of tar shards in the order of file names and members; any one can be read.

    A sample is the run of members with one key: the name up to the first dot of its last
    part. It needs an image (`.jpg`, `.png`, …) and a label: `.cls` with a class number or
    name, or `.json` with it under `cls`, `label` or `class`. Class numbers are named by
    `classes.txt` in the folder of the shards, one name in every line, where there is one.
    The headers are read once when it is opened, by several threads; nothing is written.
    """

    def __init__(self, path: str, key: str) -> None:
        """Raises DataError where shards are missing, damaged or hold samples without a label."""
        self._reader = ShardReader(_shard_paths(path, key))
        with ThreadPoolExecutor(_THREADS) as pool:
            shards = list(pool.map(self._index, range(len(self._reader.paths))))
        starts = np.cumsum([0] + [len(shard.labels) for shard in shards[:-1]])
        offsets = np.concatenate([shard.offsets for shard in shards])
        sizes = np.concatenate([shard.sizes for shard in shards])
        self._places = Places(starts, offsets, sizes)
        self.shard_starts = starts
        if not len(sizes):
            raise DataError(f"{key}: {path}: no images in the tar files")
        ends = np.cumsum(np.concatenate([np.diff(s.names.ends, prepend=0) for s in shards]))
        self._names = Names(b"".join(shard.names.block for shard in shards), ends)
        folder = Path(self._reader.paths[0]).parent
        labels = [label for shard in shards for label in shard.labels]
        self.classes, self.labels = _classes(labels, folder, f"{key}: {path}")
        self.fingerprint = fingerprint(self.classes, self.labels, self._names, sizes)

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, i: int) -> str:
        """Shard and member of sample `i`."""
        return f"{self._reader.paths[self._places[i][0]]}:{os.fsdecode(self._names[i])}"

    def read(self, i: int) -> np.ndarray:
        """The bytes of image `i`, [bytes] uint8. Raises DataError naming it."""
        try:
            return self._reader.read(*self._places[i])
        except DataError as error:
            raise DataError(f"{self.name(i)}: {error}") from None

    def _index(self, shard: int) -> _Index:
        path = self._reader.paths[shard]
        images: list[Member] = []
        labels: list[int | str] = []
        last_key, image, label = b"", None, None
        for member in members(self._reader, shard):
            key, extension = _split(member.name)
            if key != last_key:
                _append(images, labels, image, label, path)
                last_key, image, label = key, None, None
            if b"." + extension in EXTENSIONS:
                image = member
            elif extension in (b"cls", b"json"):
                text = member.head
                if len(text) < member.size:
                    text = self._reader.read(shard, member.offset, member.size).tobytes()
                found = _label(text, is_json=extension == b"json")
                label = label if found is None else found
        _append(images, labels, image, label, path)
        return _Index(
            Names.of([image.name for image in images]),
            np.array([image.offset for image in images], dtype=np.int64),
            np.array([image.size for image in images], dtype=np.uint32),
            labels,
        )


class _Index(NamedTuple):
    """What is in one shard."""

    names: Names
    offsets: np.ndarray
    sizes: np.ndarray
    labels: list[int | str]


def _append(
    images: list[Member],
    labels: list[int | str],
    image: Member | None,
    label: int | str | None,
    path: str,
) -> None:
    """A sample is complete: keep it. One without an image is passed over."""
    if image is None:
        return
    if label is None:
        raise DataError(
            f"{path}: {os.fsdecode(image.name)}: no label; expected a .cls beside it, or a .json "
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
    found: Any = next((content[key] for key in _LABEL_KEYS if key in content), None)
    return found if isinstance(found, (int, str)) else None


def _classes(labels: list[int | str], folder: Path, where: str) -> tuple[list[str], np.ndarray]:
    """Class names, and the class of every sample [len(labels)] int32."""
    named = folder / "classes.txt"
    classes = named.read_text(encoding="utf-8").splitlines() if named.is_file() else None
    numbers = [label for label in labels if isinstance(label, int)]
    if len(numbers) == len(labels):
        highest = max(numbers)
        if min(numbers) < 0 or (classes is not None and highest >= len(classes)):
            known = f"0 to {len(classes) - 1} (classes.txt)" if classes else "0 or more"
            raise DataError(f"{where}: class numbers {min(numbers)} to {highest}; expected {known}")
        return classes or [str(k) for k in range(highest + 1)], np.array(numbers, dtype=np.int32)
    texts = [str(label) for label in labels]
    classes = classes or sorted(set(texts))
    number_of = {name: number for number, name in enumerate(classes)}
    if unknown := sorted(set(texts) - set(classes)):
        raise DataError(f"{where}: class {unknown[0]!r} is not in classes.txt")
    return classes, np.array([number_of[text] for text in texts], dtype=np.int32)


def _shard_paths(path: str, key: str) -> list[str]:
    if Path(path).is_dir():
        return sorted(str(file) for file in Path(path).iterdir() if file.name.endswith(".tar"))
    paths = _expanded(path)
    for shard in paths:
        if not Path(shard).is_file():
            raise DataError(f"{key}: {shard}: no such file")
    return paths


def _expanded(pattern: str) -> list[str]:
    """`a-{00..12}-{x,y}.tar` written out, as bash does it."""
    parts = _BRACES.split(pattern)
    choices = [_choices(part) if k % 2 else [part] for k, part in enumerate(parts)]
    return ["".join(choice) for choice in product(*choices)]


def _choices(text: str) -> list[str]:
    first, dots, last = text.partition("..")
    if dots and first.isdecimal() and last.isdecimal():
        step = 1 if int(first) <= int(last) else -1
        return [f"{k:0{len(first)}d}" for k in range(int(first), int(last) + step, step)]
    return text.split(",")
