"""Which objects a URL stands for: a tar shard, a pattern of them, a text file with their names, or a folder."""

from __future__ import annotations

import posixpath
from collections import Counter
from fnmatch import fnmatchcase

from hvdtrain.config.object_urls import check_data_url
from hvdtrain.errors import DataError
from pipelines.sources.base import some
from pipelines.sources.left_out import LeftOut, printable
from pipelines.sources.remote.objects import OBJECTS
from pipelines.sources.shard_paths import CLASSES, expanded, is_compressed, is_tar

_LISTING = 16 * 2**20  # bytes of a file with the names of shards
_MOST = 1_000_000


def is_remote(path: str) -> bool:
    """Whether `path` is a URL, and not the path of a file or folder."""
    return "://" in path


def checked_url(path: str, key: str) -> str:
    """`path` without a slash at its end. Raises DataError, which does not repeat it: it may have a password."""
    try:
        return check_data_url(path)
    except ValueError as error:
        raise DataError(f"{key}: {error}") from None


def require_local(path: str, key: str) -> None:
    """Raise DataError if `path` is a URL: the command needs a copy on a disk."""
    if is_remote(path):
        url = checked_url(path, key)
        raise DataError(
            f"{key}: {url}: is on a server: copy it first: hvdtrain data stage {url} DIR"
        )


def is_folder(url: str) -> bool:
    """Whether `url` is meant for a folder: by its name, nobody is asked."""
    last = url.rpartition("/")[2]
    return not any(sign in url for sign in "*{[") and not (
        is_tar(last) or is_compressed(last) or last.lower().endswith(".txt")
    )


def shard_urls(url: str, key: str, left_out: LeftOut) -> list[str]:
    """The tar shards that `url` stands for, in order; what else is in a folder is counted in `left_out`.

    Raises DataError where there are none.
    """
    if is_folder(url):
        urls = _in_folder(url, key, left_out)
    elif url.lower().endswith(".txt"):
        urls = _listed(url, key)
    else:
        urls = [shard for one in expanded(url, key) for shard in _matches(one, key)]
    if twice := [name for name, count in Counter(urls).items() if count > 1]:
        raise DataError(f"{key}: {printable(url)}: names {some(twice)} more than once")
    for shard in urls:
        if is_compressed(shard):
            raise DataError(
                f"{key}: {shard}: compressed; expected tar files: decompress them first"
            )
    if not urls:
        raise DataError(f"{key}: {printable(url)}: no tar files in it")
    return urls


def _in_folder(url: str, key: str, left_out: LeftOut) -> list[str]:
    names = OBJECTS.names(f"{url}/")
    shards = [name for name in names if is_tar(name) or is_compressed(name)]
    plain = {name.lower().removesuffix(".tar") for name in shards if is_tar(name)}
    urls = []
    for name in names:
        if name in shards:
            if is_compressed(name) and name.lower().partition(".tar")[0] in plain:
                left_out.add("compressed copies of tar files", name)
            else:
                urls.append(checked_url(f"{url}/{name}", key))
        elif name and name != CLASSES and not name.startswith(".hvdtrain"):
            hidden = name.startswith(".")
            left_out.add(
                "hidden" if hidden else posixpath.splitext(name)[1].lower() or "no extension", name
            )
    return urls


def _matches(url: str, key: str) -> list[str]:
    """The URL itself, or what its wildcards match, sorted."""
    if not any(sign in url for sign in "*["):
        return [url]
    folder, _, pattern = url.rpartition("/")
    if any(sign in folder for sign in "*["):
        raise DataError(
            f"{key}: {printable(url)}: wildcards are taken in the last part of a URL alone"
        )
    found = [name for name in OBJECTS.names(f"{folder}/") if fnmatchcase(name, pattern)]
    if not found:
        raise DataError(f"{key}: {printable(url)}: no object matches this pattern")
    return [checked_url(f"{folder}/{name}", key) for name in found]


def _listed(url: str, key: str) -> list[str]:
    """The shards that a text file names, one on each line: URLs, or names beside it."""
    content = OBJECTS.read_small(url, _LISTING)
    if content is None:
        raise DataError(
            f"{key}: {url}: no such file; expected one with the name of a tar shard on each line"
        )
    try:
        lines = [line.strip() for line in content.decode("utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise DataError(f"{key}: {url}: not UTF-8 at byte {error.start}") from None
    names = [line for line in lines if line and not line.startswith("#")]
    if len(names) > _MOST:
        raise DataError(f"{key}: {url}: names more than {_MOST:,} files")
    for name in names:
        if not is_tar(name) and not is_compressed(name):
            raise DataError(
                f"{key}: {url}: {printable(name[:100])!r} is no tar shard; lists of images are read from disks alone"
            )
    base = url.rpartition("/")[0]
    return [checked_url(name if is_remote(name) else f"{base}/{name}", key) for name in names]
