"""The disks of a run as one host sees them: its run directory and its datasets."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from hvdtrain.config.object_urls import is_url
from hvdtrain.config.schema import Config
from hvdtrain.errors import HvdtrainError

READ_S = 0.3
READ_BYTES = 64 * 2**20
"""Reading of the dataset is timed until one of these limits is reached."""
MIN_READ_BYTES = 256 * 2**10
"""If less can be read, no speed is computed."""


@dataclass(frozen=True)
class Disk:
    """The disk of the run directory."""

    path: str
    free_bytes: int = 0
    need_bytes: int | None = None
    """Size of one checkpoint; None: unknown."""
    keep: int = 2
    """Number of checkpoints that are kept."""
    error: str | None = None


@dataclass(frozen=True)
class Dataset:
    """A dataset of the config, as this host sees it."""

    key: str
    path: str
    error: str | None = None
    manifest: str | None = None
    """Hash of the names in its top folder, or of all names and labels."""
    count: int = 0
    """Number of names in its top folder, or of images."""
    classes: int = 0
    """Number of classes, where all images are listed; else 0."""


@dataclass(frozen=True)
class Reads:
    """How fast the dataset's files are read, one after the other."""

    mb_per_s: float
    files_per_s: float


def disk_at(path: Path, need_bytes: int | None = None, keep: int = 2) -> Disk:
    """Free space of the disk where `path` is or will be created, and whether it is writable."""
    place = path.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        free = psutil.disk_usage(str(place)).free
    except OSError as error:
        return Disk(str(place), 0, need_bytes, keep, f"cannot be read: {error.strerror}")
    fault = None if os.access(place, os.W_OK) else "not writable"
    return Disk(str(place), free, need_bytes, keep, fault)


def list_top_folder(key: str, path: str) -> Dataset:
    """List the top folder of a dataset: cheap, also for a million images on a network disk."""
    place = Path(path)
    if not place.exists():
        if any(sign in path for sign in "{*?[:"):
            return Dataset(key, path)  # a pattern: it is expanded when the run opens the dataset
        return Dataset(key, path, "no such folder or file")
    try:
        if place.is_file():
            names = [f"{place.stat().st_size} bytes"]
        else:
            names = sorted(entry.name for entry in os.scandir(place))
    except OSError as error:
        return Dataset(key, path, f"cannot be read: {error.strerror}")
    if not names:
        return Dataset(key, path, "an empty folder")
    text = "\0".join(names).encode("utf-8", "surrogateescape")
    return Dataset(key, path, None, hashlib.sha256(text).hexdigest()[:12], len(names))


def list_images(key: str, path: str, cfg: Config) -> Dataset:
    """List all images of the dataset `key` of `cfg`; of one that is split, those for training.

    Of a URL the shards are looked at.
    """
    dataset = list_top_folder(key, path)
    if dataset.error is not None:
        return dataset
    from pipelines.datasets import open_training
    from pipelines.sources import open_source

    try:
        if is_url(path):
            from pipelines.sources.remote.opening import look

            return Dataset(key, path, None, *look(path, key, cfg.data.remote_cache))
        if key == "data.train":
            source = open_training(cfg.data, cfg.seed).train
        else:
            source = open_source(path, key, columns=cfg.data.columns)
    except HvdtrainError as error:
        return Dataset(key, path, str(error).removeprefix(f"{key}: ").removeprefix(f"{path}: "))
    return Dataset(key, path, None, source.fingerprint[:12], len(source), len(source.classes))


def datasets(cfg: Config) -> Iterator[tuple[str, str]]:
    """Key and path of each dataset of the config."""
    for key, path in (("data.train", cfg.data.train), ("data.val", cfg.data.val)):
        if isinstance(path, str):
            yield key, path


def read_speed(path: str) -> Reads | None:
    """Measure how fast files come from the disk, not from memory; None: too little to read."""
    done, files, began = 0, 0, time.perf_counter()
    with contextlib.suppress(OSError):  # reported when the dataset is opened
        for file in _some_files(Path(path)):
            files += 1
            with file.open("rb", buffering=0) as opened:
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                while chunk := opened.read(2**20):
                    done += len(chunk)
                    if time.perf_counter() - began > READ_S or done > READ_BYTES:
                        break
            if time.perf_counter() - began > READ_S or done > READ_BYTES:
                break
    seconds = time.perf_counter() - began
    if done < MIN_READ_BYTES:
        return None
    return Reads(done / seconds / 1e6, files / seconds)


def _some_files(place: Path) -> Iterator[Path]:
    if place.is_file():
        yield place
    elif place.is_dir():
        for folder, _, names in os.walk(place):
            yield from (Path(folder, name) for name in names)
