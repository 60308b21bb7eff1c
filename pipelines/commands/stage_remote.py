"""Staging from a server: a packed dataset or tar shards are copied to a disk of this machine, and checked.

DST/.hvdtrain-staged.json   for each tar shard what it was on the server, and the crc32 of the copy
"""

from __future__ import annotations

import contextlib
import email.utils
import json
import os
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from hvdtrain.errors import DataError, ResourceError
from hvdtrain.files import PartFile, whole_file
from pipelines.commands.reports import StageReport
from pipelines.commands.stage import (
    Count,
    chosen_files,
    crc32_of,
    held,
    require_copy,
    require_room,
)
from pipelines.commands.stage_files import File, extra_files
from pipelines.commands.stage_files import delete as remove
from pipelines.sources.left_out import LeftOut
from pipelines.sources.packed import DATASET, parse_description
from pipelines.sources.remote.objects import OBJECTS, State
from pipelines.sources.remote.opening import packed_root
from pipelines.sources.remote.paths import checked_url, is_folder, shard_urls
from pipelines.sources.shard_paths import CLASSES
from pipelines.sources.tar_labels import CLASSES_BYTES

RECORD = ".hvdtrain-staged.json"
_CHUNK = 4 * 2**20  # bytes asked for at once
_LOOKS = 32


@dataclass(frozen=True)
class _Object:
    """A file to copy, and where it is."""

    file: File
    url: str
    state: State


def stage(
    src: str,
    dst: str,
    *,
    copies: list[str] | None = None,
    threads: int = 4,
    delete: bool = False,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> StageReport:
    """Copy the packed dataset or the tar shards at the URL `src` to `dst`, as `pipelines.commands.stage` does.

    A packed dataset is checked against its own checksums; a tar shard has the length that the server says, and
    is the same object from its first to its last byte. Its date is kept. Raises DataError, ResourceError and
    ConfigError as well.
    """
    began, left_out = time.monotonic(), LeftOut()
    url, target = checked_url(src, "SRC"), Path(dst)
    root = packed_root(url) if is_folder(url) else None
    if root is not None and root != url:
        copy = url.rpartition("/")[2]
        raise DataError(f"SRC: {url}: a copy in {root}: stage that, with --copies {copy}")
    try:
        if delete:
            require_copy(target)
        with held(target), ThreadPoolExecutor(max(threads, _LOOKS)) as looks:
            description: bytes | None = None
            if root is not None:
                files, description = _packed(url, target, copies, left_out)
            else:
                files = _shards(url, copies, left_out)
            states = list(looks.map(lambda named: OBJECTS.state(named[1]), files))
            objects = [
                _Object(File(f.name, state.size, f.crc32), place, state)
                for (f, place), state in zip(files, states, strict=True)
            ]
            for one, (file, place) in zip(objects, files, strict=True):
                if description is not None and one.file.size != file.size:
                    raise DataError(f"SRC: {place}: damaged: its size differs")
            extra = extra_files(target, [one.file for one in objects])
            if delete:
                remove(target, extra)
            record = read_record(target)
            count = Count(progress, sum(one.file.size for one in objects))
            count.add(0)
            right = {one.file.name for one in objects if _is_right(target, one, record)}
            missing = [one for one in objects if one.file.name not in right]
            kept = [one for one in objects if one.file.name in right]
            count.add(sum(one.file.size for one in kept))
            require_room(target, sum(one.file.size for one in missing))
            _copy_all(target, missing, record, count, threads)
            if description is not None:
                with whole_file(target / DATASET) as described:
                    described.write(description)
    except OSError as error:
        raise ResourceError(f"DST: {dst}: cannot be written: {error.strerror or error}") from None
    return StageReport(
        path=dst,
        copied=len(missing),
        copied_bytes=sum(one.file.size for one in missing),
        kept=len(kept),
        seconds=time.monotonic() - began,
        left_out=left_out,
        extra=extra,
        deleted=delete,
    )


def _packed(
    url: str, target: Path, copies: list[str] | None, left_out: LeftOut
) -> tuple[list[tuple[File, str]], bytes]:
    """The files of a packed dataset with their URLs, and the description of what is copied."""
    content = OBJECTS.read_small(f"{url}/{DATASET}", 64 * 2**20) or b""
    description = parse_description(content, f"SRC: {url}")
    for name in description["files"]:
        checked_url(f"{url}/{name}", "SRC")  # no file outside of the dataset
    files = chosen_files(url, target, description, copies, left_out)
    return [(f, f"{url}/{f.name}") for f in files], json.dumps(description, indent=1).encode()


def _shards(url: str, copies: list[str] | None, left_out: LeftOut) -> list[tuple[File, str]]:
    """Tar shards, and the names of their classes."""
    if copies is not None:
        raise DataError(f"--copies: {url} is not a packed dataset")
    urls = shard_urls(url, "SRC", left_out)
    names = [place.rpartition("/")[2] for place in urls]
    if len(set(names)) < len(names):
        raise DataError(f"SRC: {url}: shards of one name in several folders: stage them one by one")
    classes = f"{urls[0].rpartition('/')[0]}/{CLASSES}"
    if OBJECTS.read_small(classes, CLASSES_BYTES):
        urls, names = [*urls, classes], [*names, CLASSES]
    return [(File(name, 0, None), place) for name, place in zip(names, urls, strict=True)]


def read_record(target: Path) -> dict[str, list[object]]:
    """What an earlier call has noted: key and crc32 by name; nothing if it cannot be read."""
    try:
        found = json.loads((target / RECORD).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _is_right(target: Path, one: _Object, record: dict[str, list[object]]) -> bool:
    """Whether `target` has the object with the right content."""
    place = target / one.file.name
    if not place.is_file() or place.stat().st_size != one.file.size:
        return False
    if one.file.crc32 is not None:
        return crc32_of(place) == one.file.crc32
    return record.get(one.file.name) == [one.state.key(one.url), crc32_of(place)]


def _copy_all(
    target: Path,
    missing: list[_Object],
    record: dict[str, list[object]],
    count: Count,
    threads: int,
) -> None:
    """Copy objects, and note each tar shard that is complete."""
    with ThreadPoolExecutor(threads, "hvdtrain-stage") as pool:
        futures = [(one, pool.submit(_copy, target, one, count)) for one in missing]
        try:
            for one, future in futures:
                crc32 = future.result()
                if one.file.crc32 is None:
                    record[one.file.name] = [one.state.key(one.url), crc32]
        except BaseException:
            count.stopped.set()
            raise
        finally:
            if any(one.file.crc32 is None for one in missing):
                with whole_file(target / RECORD) as file:
                    file.write(json.dumps(record).encode())


def _copy(target: Path, one: _Object, count: Count) -> int:
    """Copy one object; it gets its name once it is right and synced. Returns its crc32."""
    place = target / one.file.name
    place.parent.mkdir(parents=True, exist_ok=True)
    crc32 = 0
    part = PartFile(place)
    try:
        for begin in range(0, one.file.size, _CHUNK):
            if count.stopped.is_set():
                return crc32
            end = min(begin + _CHUNK, one.file.size)
            chunk = OBJECTS.read(one.url, one.state, begin, end)
            part.file.write(chunk)
            crc32 = zlib.crc32(chunk, crc32)
            count.add(len(chunk))
        if one.file.crc32 not in (None, crc32):
            raise DataError(f"SRC: {one.url}: damaged: its checksum differs")
        part.file.flush()
        with contextlib.suppress(ValueError):
            changed = email.utils.parsedate_to_datetime(one.state.changed).timestamp()
            os.utime(part.part, (changed, changed))
        part.keep()
    finally:
        part.discard()
    return crc32
