"""Staging: a dataset is copied to a disk of this machine, and every file is checked."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hvdtrain.errors import ConfigError, DataError, ResourceError
from hvdtrain.files import PartFile, whole_file
from pipelines.commands.reports import StageReport
from pipelines.commands.stage_files import LOCK, File, check_places, extra_files, files_of
from pipelines.commands.stage_files import delete as remove
from pipelines.sources.left_out import LeftOut, printable
from pipelines.sources.packed import DATASET, INDEX, read_description

CHUNK = 4 * 2**20  # bytes read at once


def stage(
    src: str,
    dst: str,
    *,
    copies: list[str] | None = None,
    threads: int = 4,
    delete: bool = False,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> StageReport:
    """Copy the packed dataset `src`, or any folder of files, to `dst`. Links are followed.

    Files that `dst` has and `src` does not are reported; with `delete` they are removed, if `dst` is
    an earlier copy. Of a packed dataset only `copies` are taken (None: all), besides those that `dst` already has.
    Files that `dst` has with the right checksum are kept. Every other file gets its name when it
    is complete, and `dataset.json` comes last: a dataset that can be opened is complete. One
    process per node should call this; a second one waits, and then finds everything there.
    `progress(bytes done, all bytes)` is called from several threads.
    Raises DataError if `src` is damaged or `dst` holds another dataset, ResourceError if the disk
    of `dst` is too small or cannot be written, ConfigError if `src` has no such copy.
    """
    began = time.monotonic()
    source, target = Path(src), Path(dst)
    check_places(source, target)
    description = _describe(source)
    left_out = LeftOut()
    files = chosen_files(source, target, description, copies, left_out)
    try:
        if delete:
            require_copy(target)
        with held(target), ThreadPoolExecutor(threads, "hvdtrain-stage") as pool:
            extra = extra_files(target, files)
            if delete:
                remove(target, extra)
            total = sum(file.size for file in files)
            count = Count(progress, total)
            count.add(0)
            right = list(pool.map(lambda file: _check(source, target, file, count), files))
            kept = [file for file, good in zip(files, right, strict=True) if good]
            missing = [file for file, good in zip(files, right, strict=True) if not good]
            require_room(target, sum(file.size for file in missing))
            futures = [pool.submit(_copy, source, target, file, count) for file in missing]
            try:
                for future in futures:
                    future.result()
            except BaseException:
                count.stopped.set()
                raise
            if description is not None:
                with whole_file(target / DATASET) as file:
                    file.write(json.dumps(description, indent=1).encode())
    except OSError as error:
        raise ResourceError(f"DST: {dst}: cannot be written: {error.strerror or error}") from None
    return StageReport(
        path=dst,
        copied=len(missing),
        copied_bytes=sum(file.size for file in missing),
        kept=len(kept),
        seconds=time.monotonic() - began,
        left_out=left_out,
        extra=extra,
        deleted=delete,
    )


def _check(source: Path, target: Path, file: File, count: Count) -> bool:
    """Whether `target` has the file as it should be; then it is counted as done."""
    right = _is_right(source, target, file)
    if right:
        count.add(file.size)
    return right


class Count:
    """Bytes done so far, over all threads; `stopped` once one of them has failed."""

    def __init__(self, progress: Callable[[int, int], None], total: int) -> None:
        self._progress = progress
        self._total = total
        self._done = 0
        self._lock = threading.Lock()
        self.stopped = threading.Event()

    def add(self, size: int) -> None:
        """Count `size` bytes more."""
        with self._lock:
            self._done += size
            self._progress(self._done, self._total)


def _describe(source: Path) -> dict[str, Any] | None:
    """The content of a packed dataset's `dataset.json`; None for any other folder."""
    if not (source / DATASET).is_file():
        return None
    description = read_description(source, f"SRC: {source}")
    inside = [Path(name).parts for name in description["files"]]
    if any(parts[:1] == ("/",) or ".." in parts for parts in inside):
        raise DataError(f"SRC: {source / DATASET}: names a file outside of the dataset")
    return description


def chosen_files(
    source: Path | str,
    target: Path,
    description: dict[str, Any] | None,
    copies: list[str] | None,
    left_out: LeftOut,
) -> list[File]:
    """The files to stage; takes the other ones out of `description`."""
    if description is None:
        if copies is not None:
            raise ConfigError(f"--copies: {source} is not a packed dataset")
        return files_of(Path(source), left_out)
    known = description["copies"]
    chosen = set(known if copies is None else copies)
    if unknown := sorted(chosen - set(known)):
        raise ConfigError(f"--copies: no copy {unknown[0]}; there are {', '.join(known)}")
    if (target / DATASET).is_file():
        existing = read_description(target, f"DST: {target}")
        if existing.get("fingerprint") != description["fingerprint"]:
            raise DataError(f"DST: {target}: holds another dataset; name another folder")
        chosen |= set(existing["copies"])
    description["copies"] = {name: copy for name, copy in known.items() if name in chosen}
    description["files"] = {
        name: file
        for name, file in description["files"].items()
        if name == INDEX or name.split("/")[0] in chosen
    }
    return [File(name, file["size"], file["crc32"]) for name, file in description["files"].items()]


def require_copy(target: Path) -> None:
    """Raise DataError if `target` holds files, but no copy that was staged before."""
    if target.is_dir() and any(target.iterdir()) and not (target / LOCK).is_file():
        raise DataError(
            f"DST: {printable(str(target))}: was not made by data stage; --delete would remove what "
            "is in it: name another folder"
        )


@contextmanager
def held(target: Path) -> Iterator[None]:
    """Let one process of the machine in at a time."""
    target.mkdir(parents=True, exist_ok=True)
    with (target / LOCK).open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _is_right(source: Path, target: Path, file: File) -> bool:
    """Whether `target` has the file with the right content."""
    place = target / file.name
    if not place.is_file() or place.stat().st_size != file.size:
        return False
    expected = crc32_of(source / file.name) if file.crc32 is None else file.crc32
    if crc32_of(place) != expected:
        return False
    with suppress(OSError):  # the file may belong to another user
        _keep_time(source / file.name, place)
    return True


def _keep_time(source: Path, place: Path) -> None:
    """Copy the time of change: an index of tar shards recognises its shards by it."""
    changed = source.stat().st_mtime_ns
    if place.stat().st_mtime_ns != changed:
        os.utime(place, ns=(changed, changed))


def crc32_of(path: Path) -> int:
    """Of a whole file. Raises OSError."""
    crc32 = 0
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(CHUNK):
            crc32 = zlib.crc32(chunk, crc32)
    return crc32


def require_room(target: Path, needed: int) -> None:
    """Raise ResourceError unless the disk of `target` has room for so many bytes."""
    free = shutil.disk_usage(target).free
    if needed > free:
        raise ResourceError(
            f"DST: {target}: needs {needed / 1e9:.1f} GB more, its disk has {free / 1e9:.1f} GB "
            "free: make room, stage fewer copies (--copies), or name another disk"
        )


def _copy(source: Path, target: Path, file: File, count: Count) -> None:
    """Copy one file; it gets its name once its checksum is right and it is synced."""
    place = target / file.name
    place.parent.mkdir(parents=True, exist_ok=True)
    size = crc32 = 0
    part = PartFile(place)
    try:
        with _opened(source / file.name) as reader:
            while (chunk := reader.read(CHUNK)) and not count.stopped.is_set():
                part.file.write(chunk)
                crc32 = zlib.crc32(chunk, crc32)
                size += len(chunk)
                count.add(len(chunk))
        if count.stopped.is_set():
            return
        if size != file.size or file.crc32 not in (None, crc32):
            raise DataError(f"SRC: {source / file.name}: damaged: its size or checksum differs")
        part.file.flush()  # a later write would change the time again
        _keep_time(source / file.name, part.part)
        part.keep()
    finally:
        part.discard()


def _opened(path: Path) -> Any:
    try:
        return path.open("rb", buffering=0)
    except OSError as error:
        raise DataError(f"SRC: {path}: cannot read: {error.strerror}") from None
