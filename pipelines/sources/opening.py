"""Chooses the source that reads a path."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from hvdtrain.config.data import Columns, RemoteCache
from hvdtrain.errors import DataError
from pipelines.sources import cifar, guess, listing, packed, scanned, tar
from pipelines.sources.base import Source, some
from pipelines.sources.classes import natural_order, renumbered, require_distinct
from pipelines.sources.folder import ImageFolder, Unlabelled
from pipelines.sources.left_out import printable
from pipelines.sources.remote.opening import open_remote
from pipelines.sources.remote.paths import is_remote
from pipelines.sources.remote.reader import cache_of
from pipelines.sources.walk import Glance, glance, has_image


def open_source(
    path: str,
    key: str,
    *,
    check: bool = True,
    columns: Columns | None = None,
    unlabelled: bool = False,
    remote: RemoteCache | None = None,
    scattered: bool = False,
) -> Source:
    """The dataset at `path`; `key` is the configuration key to name in errors.

    What `path` holds decides: a packed dataset or one of its copies; CIFAR-10 (folder or archive,
    binary or Python version); tar shards (a folder of them, one file, or a pattern like
    `train-{000..099}.tar`); a list of files (.csv, .tsv, .txt), in which `columns` are read; a flat
    folder with a label file; otherwise a folder with one sub-folder of images per class. With
    `unlabelled` a flat folder needs no labels; then the source has no classes. If `hvdtrain data
    scan` has left a manifest, every image is checked against it, unless `check` is False.
    Class folders that are all numbers are classes in the order of the numbers; the order of samples
    is that of the names. Of a URL (http, https, s3, gs) `remote` says where its blocks are kept, and
    `scattered` that its samples are read in random order. Raises DataError where there is no dataset to read.
    """
    if is_remote(path):
        found = open_remote(path, key, cache_of(remote, scattered=scattered))
        require_distinct(found.classes, f"{key}: {path}")
        return found
    source = _open(path, key, columns, unlabelled)
    require_distinct(source.classes, f"{key}: {path}")
    folders = isinstance(source, ImageFolder)
    if check and not isinstance(source, packed.Packed):  # a packed dataset has its own checksums
        source = scanned.checked(source, path, key)
    return renumbered(source, natural_order(source.classes)) if folders else source


def _open(path: str, key: str, columns: Columns | None, unlabelled: bool) -> Source:
    if "\0" in path:
        raise DataError(f"{key}: {printable(path)}: no path has a NUL character in it")
    if _is_too_long(path):
        return _open_pattern(path, key)
    if packed.is_packed(path):
        return packed.Packed(path, key)
    if cifar.is_cifar(path):
        return cifar.Cifar10(path, key)
    if Path(path).is_dir():
        return _open_folder(path, key, columns, unlabelled)
    if listing.is_listing(path):
        return listing.Listing(path, key, columns=columns)
    if tar.is_shards(path):
        return tar.TarShards(path, key)
    if os.path.lexists(path) and Path(path).exists():
        raise guess.refuse_file(path, key)
    return ImageFolder(path, key)  # which says that there is none


def _is_too_long(path: str) -> bool:
    try:
        Path(path).stat()
    except OSError as error:
        return error.errno == errno.ENAMETOOLONG
    return False


def _open_pattern(path: str, key: str) -> Source:
    """The shards of a pattern that is longer than a path may be."""
    if tar.is_shards(path):
        return tar.TarShards(path, key)
    raise DataError(f"{key}: {printable(path)}: longer than a path may be")


def _open_folder(path: str, key: str, columns: Columns | None, unlabelled: bool) -> Source:
    try:
        seen = glance(os.fsencode(path))
    except OSError:
        return ImageFolder(path, key)  # which reports it
    tars = [name for name in seen.files if name.endswith(b".tar")]
    if tars and not _are_stray(path, key, seen, tars):
        return tar.TarShards(path, key)
    if not tars and not seen.folders and not seen.images and tar.is_shards(path):
        return tar.TarShards(path, key)  # compressed ones: it says so
    if seen.folders:
        guess.refuse_wrong_level(path, key, seen)
    elif labels := listing.label_files(path):
        return listing.Listing(labels[0], key, Path(path), columns, labels[1:])
    elif seen.images:
        if unlabelled:
            return Unlabelled(path, key)
        raise guess.refuse_flat(path, key, seen)
    return ImageFolder(path, key)


def _are_stray(path: str, key: str, seen: Glance, tars: list[bytes]) -> bool:
    """Whether the tar files in a folder lie beside class folders, which are the dataset then."""
    root = os.fsencode(path)
    classes = [name for name in seen.folders if has_image(os.path.join(root, name))]  # noqa: PTH118
    if len(classes) == 1 or (not classes and seen.images):
        what = printable(os.fsdecode(classes[0])) if classes else f"{len(seen.images):,} images"
        raise DataError(
            f"{key}: {printable(path)}: tar files ({some([printable(os.fsdecode(name)) for name in tars])}) and images "
            f"({what}): which are the dataset? Move the others away"
        )
    return bool(classes)
