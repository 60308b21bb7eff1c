"""Images as users name them: files, folders, lists of files, and pixels in memory."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from hvdtrain.errors import DataError
from pipelines.given import Given
from pipelines.sources import Source, open_source
from pipelines.sources.base import EXTENSIONS, read_file
from pipelines.sources.cifar import is_cifar
from pipelines.sources.column_names import IDS, PATHS
from pipelines.sources.folder import Unlabelled
from pipelines.sources.left_out import printable
from pipelines.sources.packed import is_packed
from pipelines.sources.tar import is_shards

LISTS = (".csv", ".tsv", ".txt")
"""Endings of lists of images."""
MAX_LINE = 2**16
"""Characters in a line of a list."""


def given(image: Any, number: int) -> Given:
    """One image: a path, a PIL image, or an array [H, W, 3] or [H, W] uint8. Raises DataError."""
    if isinstance(image, (str, os.PathLike)):
        return _file(os.fsencode(image))
    if isinstance(image, Image.Image):
        upright = ImageOps.exif_transpose(image)
        return Given(str(number), partial(_encoded, np.asarray(upright.convert("RGB"))))
    if isinstance(image, np.ndarray):
        return Given(str(number), partial(_encoded, _checked(image, number)))
    raise DataError(
        f"image {number}: expected a path, a PIL image or an array [H, W, 3] uint8, found "
        f"{type(image).__name__}"
    )


def _checked(array: np.ndarray, number: int) -> np.ndarray:
    """The array as [H, W, 3]. Raises DataError."""
    if array.ndim == 2:
        array = np.repeat(array[:, :, None], 3, axis=2)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise DataError(
            f"image {number}: expected an array [H, W, 3] uint8, found {list(array.shape)} {array.dtype}"
        )
    return array


def _encoded(pixels: np.ndarray) -> np.ndarray:
    """The pixels [H, W, 3] uint8 as a file of the format PPM, which takes the road of all others."""
    height, width = pixels.shape[:2]
    header = np.frombuffer(f"P6\n{width} {height}\n255\n".encode(), np.uint8)
    return np.concatenate([header, pixels.reshape(-1)])


def _file(path: bytes) -> Given:
    return Given(os.fsdecode(path), partial(read_file, path))


def find_images(paths: Sequence[Path], notes: list[str]) -> list[Given]:
    """The images that `paths` name: image files, folders with all images below them, and lists.

    Packed datasets, tar shards and CIFAR-10 are read as well. What is left out of a folder is added to
    `notes`. A list has a column of paths, relative to its folder, or one path a line. Raises DataError
    for a folder or list that cannot be read, or has no images; a file is looked at later.
    """
    found: list[Given] = []
    for path in paths:
        name = str(path)
        if is_packed(name) or is_cifar(name) or (is_shards(name) and not _has_images(path)):
            found += of_source(open_source(name, name, check=False))
        elif path.is_dir():
            found += _below(path, notes)
        elif path.suffix.lower() in LISTS and path.is_file():
            found += _listed(path)
        else:
            found.append(_file(os.fsencode(path)))
    return found


def _has_images(path: Path) -> bool:
    """Whether a folder, beside tar files, has images."""
    return path.is_dir() and any(
        os.fsencode(entry.suffix.lower()) in EXTENSIONS for entry in path.iterdir()
    )


def of_source(source: Source) -> list[Given]:
    """All samples of a dataset."""
    return [Given(source.name(k), partial(source.read, k)) for k in range(len(source))]


def _below(folder: Path, notes: list[str]) -> list[Given]:
    source = Unlabelled(str(folder), str(folder))
    if source.left_out:
        notes.append(f"{printable(str(folder))}: {source.left_out.text()}")
    if not len(source):
        raise DataError(f"{printable(str(folder))}: no images in it or below it")
    return of_source(source)


def _listed(path: Path) -> list[Given]:
    where = printable(str(path))
    try:
        with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as text:
            names = list(_names(text, path.suffix.lower(), where))
    except OSError as error:
        raise DataError(f"{where}: cannot read: {error.strerror}") from None
    except csv.Error as error:
        raise DataError(
            f"{where}: {error}: expected one path a line, or a column of paths"
        ) from None
    if not names:
        raise DataError(f"{where}: names no images")
    folder = os.fsencode(path.parent)
    return [_file(os.path.join(folder, os.fsencode(name))) for name in names]  # noqa: PTH118


def _names(text: Any, ending: str, where: str) -> Iterator[str]:
    """The paths of a list; the first line may name the columns."""
    lines = _lines(text, where)
    if ending == ".txt":
        yield from (line.strip() for line in lines if line.strip())
        return
    column = None
    for cells in csv.reader(lines, delimiter="\t" if ending == ".tsv" else ","):
        if not any(cells):
            continue
        if column is None:
            plain = [cell.strip().lower().replace("_", "").replace("-", "") for cell in cells]
            named = [k for k, cell in enumerate(plain) if cell in PATHS]
            named = named or [k for k, cell in enumerate(plain) if cell in IDS]
            column = named[0] if named else 0
            if named:
                continue
        if column >= len(cells) or not cells[column].strip():
            raise DataError(f"{where}: a line without a path: {printable(','.join(cells))[:80]}")
        yield cells[column].strip()


def _lines(text: Any, where: str) -> Iterator[str]:
    number = 0
    while line := text.readline(MAX_LINE + 1):
        number += 1
        if len(line) > MAX_LINE or "\0" in line:
            raise DataError(f"{where}:{number}: not a line of text: expected one path a line")
        yield line
