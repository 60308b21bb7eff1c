"""Makes sources of tar shards and packed datasets far away: the same samples, order and fingerprint as on a disk."""

from __future__ import annotations

import hashlib
import json
import zlib
from pathlib import Path
from typing import Any

from hvdtrain.config.data import RemoteCache
from hvdtrain.errors import DataError, ResourceError
from hvdtrain.files import whole_file
from pipelines.sources import tar_index
from pipelines.sources.base import Source
from pipelines.sources.left_out import LeftOut
from pipelines.sources.packed import DATASET, INDEX, Packed, read_description
from pipelines.sources.remote.objects import OBJECTS, AccessError
from pipelines.sources.remote.paths import checked_url, is_folder, shard_urls
from pipelines.sources.remote.reader import Cached, RemoteReader, cache_of
from pipelines.sources.shard_paths import CLASSES
from pipelines.sources.shards import ShardReader
from pipelines.sources.subset import origin
from pipelines.sources.tar import TarShards
from pipelines.sources.tar_labels import CLASSES_BYTES, names_in

_DESCRIPTION_BYTES = 64 * 2**20
_INDEX_BYTES = 2**31


def open_remote(path: str, key: str, cached: Cached) -> TarShards | Packed:
    """The dataset at the URL `path`; `key` is the configuration key to name in errors.

    Raises DataError where there is none, ConfigError if the package for it is missing.
    """
    url = checked_url(path, key)
    if is_folder(url) and (root := packed_root(url)) is not None:
        return RemotePacked(url, root, key, cached)
    return RemoteTarShards(url, key, cached)


def is_far(source: Source) -> bool:
    """Whether the samples of `source` come from a server."""
    return isinstance(origin(source)[0], (RemoteTarShards, RemotePacked))


def look(path: str, key: str, settings: RemoteCache | None) -> tuple[str, int]:
    """What shows on two hosts that a URL is of the same dataset: a hash, and the number of shards (of a packed
    dataset that of images). No image is read. Raises as `open_remote` does."""
    url, cached = checked_url(path, key), cache_of(settings)
    if is_folder(url) and (root := packed_root(url)) is not None:
        folder = _description(root, cached, f"{key}: {url}")
        return folder.name[:12], int(read_description(folder, f"{key}: {url}")["images"])
    reader = RemoteReader(shard_urls(url, key, LeftOut()), cached)
    return reader.key()[:12], len(reader.paths)


def packed_root(url: str) -> str | None:
    """The packed dataset at `url`, or that which `url` names a copy of."""
    for root in (url, url.rpartition("/")[0]):
        if not root.partition("://")[2]:
            break
        if (content := OBJECTS.read_small(f"{root}/{DATASET}", _DESCRIPTION_BYTES)) is None:
            continue
        try:
            found = root == url or url.rpartition("/")[2] in json.loads(content)["copies"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise DataError(f"{root}/{DATASET}: damaged; pack it again") from None
        return root if found else None
    return None


class RemoteTarShards(TarShards):
    """Tar shards on a server. Their index is made once, and kept on this node."""

    def __init__(self, url: str, key: str, cached: Cached) -> None:
        """Raises DataError like `TarShards`."""
        left_out = LeftOut()
        self.url = url
        reader = RemoteReader(shard_urls(url, key, left_out), cached)
        self._begin(reader, _index(reader, f"{key}: {url}"), left_out, f"{key}: {url}")
        reader.begin_samples()

    def _named(self) -> list[str] | None:
        url = f"{self._reader.paths[0].rpartition('/')[0]}/{CLASSES}"
        try:
            content = OBJECTS.read_small(url, CLASSES_BYTES)
        except AccessError:  # S3 says so of what is not there, unless the folder may be listed
            self.left_out.add(f"{CLASSES}, which may not be read if it is there", url)
            return None
        return None if content is None else names_in(content, url)


def _index(reader: RemoteReader, where: str) -> tar_index.TarIndex:
    """The index of shards: that on this node if it is of these very objects, else a new one."""
    blocks, key = reader.blocks, reader.key()
    file = blocks.index_file(key)
    try:
        with blocks.making(key):
            if file.is_file():
                try:
                    return tar_index.load(file, reader, where)
                except DataError:
                    file.unlink(missing_ok=True)  # damaged
            index = tar_index.write(reader, file)
            blocks.made(file)
            return index
    except OSError as error:
        raise ResourceError(f"{file}: cannot be written: {error.strerror}") from None


class RemotePacked(Packed):
    """A packed dataset on a server. Its description and its index are kept on this node."""

    def __init__(self, url: str, root: str, key: str, cached: Cached) -> None:
        """`url`: of the dataset at `root`, or of a copy in it. Raises DataError like `Packed`."""
        self._url, self._cached = root, cached
        copy = url.rpartition("/")[2] if url != root else None
        where = f"{key}: {url}"
        self._begin(_description(root, cached, where), root, copy, where)

    def shards(self, names: list[str]) -> ShardReader:
        """Reads these files of the dataset. Raises DataError if one has another size than when it was packed."""
        reader = RemoteReader([f"{self._url}/{name}" for name in names], self._cached)
        for name, url, state in zip(names, reader.paths, reader.states, strict=True):
            if state.size != (size := self.description["files"][name]["size"]):
                raise DataError(
                    f"{self.where}: {url}: {state.size} bytes, {size} were packed: it is damaged"
                )
        reader.begin_samples()
        return reader


def _description(root: str, cached: Cached, where: str) -> Path:
    """A folder of this node with `dataset.json` and `index.npz`, which its checksum shows to be the same."""
    content = OBJECTS.read_small(f"{root}/{DATASET}", _DESCRIPTION_BYTES)
    if content is None:
        raise DataError(f"{where}: {root}/{DATASET}: no such object")
    key = hashlib.sha256(content).hexdigest()[:32]
    blocks = cached.blocks
    folder = blocks.folder / "packed" / key
    try:
        with blocks.making(key):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with whole_file(folder / DATASET) as file:
                file.write(content)
            expected = read_description(folder, where)["files"][INDEX]
            index = folder / INDEX
            if not (index.is_file() and _is_right(index.read_bytes(), expected)):
                found = OBJECTS.read_small(f"{root}/{INDEX}", min(_INDEX_BYTES, expected["size"]))
                if found is None or not _is_right(found, expected):
                    raise DataError(f"{where}: {root}/{INDEX}: damaged or missing: pack it again")
                with whole_file(index) as file:
                    file.write(found)
    except OSError as error:
        raise ResourceError(f"{folder}: cannot be written: {error.strerror}") from None
    return folder


def _is_right(content: bytes, expected: dict[str, Any]) -> bool:
    return (len(content), zlib.crc32(content)) == (expected["size"], expected["crc32"])
