"""Chooses the source that reads a path."""

from __future__ import annotations

import os
from pathlib import Path

from pipelines.sources import cifar, listing, packed, scanned, tar
from pipelines.sources.base import Source
from pipelines.sources.classes import natural_order, renumbered, require_distinct
from pipelines.sources.folder import ImageFolder
from pipelines.sources.splits import refuse_splits


def open_source(path: str, key: str, *, check: bool = True) -> Source:
    """The dataset at `path`; `key` is the configuration key to name in errors.

    What `path` holds decides: a packed dataset or one of its copies; CIFAR-10 (folder or archive,
    binary or Python version); tar shards (a folder of them, one file, or a pattern like
    `train-{000..099}.tar`); a list of files (.csv, .tsv, .txt); a flat folder with a label file;
    otherwise a folder with one sub-folder of images per class. If `hvdtrain data scan` has left a
    manifest, every image is checked against it, unless `check` is False. Class folders that are all
    numbers are classes in the order of the numbers; the order of samples is that of the names.
    Raises DataError where there is no dataset to read.
    """
    source = _open(path, key)
    require_distinct(source.classes, f"{key}: {path}")
    folders = isinstance(source, ImageFolder)
    if check and not isinstance(source, packed.Packed):  # that one has its own checksums
        source = scanned.checked(source, path, key)
    return renumbered(source, natural_order(source.classes)) if folders else source


def _open(path: str, key: str) -> Source:
    if packed.is_packed(path):
        return packed.Packed(path, key)
    if cifar.is_cifar(path):
        return cifar.Cifar10(path, key)
    if tar.is_shards(path):
        return tar.TarShards(path, key)
    if listing.is_listing(path):
        return listing.Listing(path, key)
    if _is_flat(path) and (labels := listing.label_file(path)) is not None:
        return listing.Listing(labels, key, Path(path))
    refuse_splits(path, key)
    return ImageFolder(path, key)


def _is_flat(path: str) -> bool:
    """Whether `path` is a folder without visible folders in it."""
    if not Path(path).is_dir():
        return False
    try:
        with os.scandir(path) as entries:
            return not any(e.is_dir() and not e.name.startswith(".") for e in entries)
    except OSError:
        return False  # the source that lists the folder reports it
