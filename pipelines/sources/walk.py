"""What is in folders: the images, and a count of everything else.

Links are followed everywhere. Files with a known ending are images; others are looked into.
"""

# ruff: noqa: PTH119, PTH122

from __future__ import annotations

import os
import re
from functools import partial
from typing import Any, NamedTuple

from hvdtrain.errors import DataError
from pipelines.sources.base import EXTENSIONS
from pipelines.sources.left_out import LeftOut, printable
from pipelines.sources.retries import RETRIES, passing

SYSTEM_FOLDERS = frozenset(
    [b"@eaDir", b"__MACOSX", b"lost+found", b"$RECYCLE.BIN", b"System Volume Information"]
)
"""Folders that a system puts beside the user's; some hold small copies of the images."""
_OWN = re.compile(rb"\.hvdtrain-.*|\..*\.hvdtrain-.*|\.lock|\..*\.part")
_NEVER = frozenset(
    b".txt .json .jsonl .xml .csv .tsv .yaml .yml .md .html .cls .npy .npz .tar .zip .gz .db .ini "
    # copies that programs leave behind, and photographs in a raw format, whose preview is small
    b".bak .tmp .part .crdownload .orig .swp "
    b".nef .nrw .cr2 .crw .dng .arw .orf .rw2 .pef .srw .raf .3fr .kdc .dcr .erf .mef .mos".split()
)
"""Endings of files that are not looked into."""
_MAGIC = (
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|RIFF....WEBP|II[*+]\0|MM\0[*+]|"
    rb"BM........[\0-\xff]{4}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0|P[1-6]\s+[#\d]|"
    rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51"
)
_IMAGE = re.compile(_MAGIC, re.DOTALL)
"""How JPEG, PNG, WebP, TIFF, BMP, PNM and JPEG 2000 begin."""
_HEAD = 24  # bytes
_PASSED_OVER = ("hidden", "in folders of the system")

Chain = tuple[tuple[int, int], Any] | None
"""Device and inode of a folder, and the same of the folders above it."""


IMAGE, FOLDER = "image", "folder"


def kind(entry: os.DirEntry[bytes]) -> str:
    """`IMAGE`, `FOLDER`, or the reason why it is left out; of a link, what it leads to."""
    if entry.name.startswith(b"."):
        return "hidden"
    if entry.name in SYSTEM_FOLDERS:
        return "in folders of the system"
    try:
        if entry.is_dir():
            return FOLDER
        if not entry.is_file():
            return "dangling links" if entry.is_symlink() else "pipes and devices"
    except OSError as error:
        if passing(error):
            raise
        return "dangling links"  # a link to itself, or to where nobody may look
    extension = os.path.splitext(entry.name)[1].lower()
    if extension in EXTENSIONS:
        return IMAGE
    looked_into = extension not in _NEVER and not entry.name.endswith(b"~")
    if looked_into and _IMAGE.match(head(entry.path, _HEAD)):
        return IMAGE
    return os.fsdecode(extension) or "without ending"


def leave_out(entry: os.DirEntry[bytes], reason: str, name: bytes, left_out: LeftOut) -> None:
    """Count a file, or the files in a folder that is passed over; not those of hvdtrain itself."""
    if _OWN.fullmatch(entry.name):
        return
    if reason not in _PASSED_OVER or not entry.is_dir(follow_symlinks=False):
        left_out.add(reason, name)
    elif files := sum(len(files) for _path, _folders, files in os.walk(entry.path)):
        left_out.add(reason, name, files)


def head(path: str | bytes, size: int) -> bytes:
    """The first bytes of a file; none if it cannot be read or is no regular file."""

    def once() -> bytes:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123
            return file.read(size) or b""

    try:
        return RETRIES.read(path, once) if os.path.isfile(path) else b""  # noqa: PTH113 - bytes
    except OSError:
        return b""


def images_below(folder: bytes, prefix: bytes, key: str, left_out: LeftOut) -> list[bytes]:
    """Names, relative to `folder`, of the images in it and below it, sorted.

    Whatever else is there is counted in `left_out`, named with `prefix`. Raises DataError for a
    folder that cannot be listed, and for a link that leads back to a folder above it.
    """
    names: list[bytes] = []
    pending: list[tuple[bytes, bytes, Chain]] = [(folder, b"", None)]
    try:
        while pending:
            path, inner, above = pending.pop()
            chain = (identity(path, above, key), above)
            found = RETRIES.read(path, partial(_below, path, inner, prefix))
            names += found.images
            pending += [
                (each, inner + os.path.basename(each) + b"/", chain) for each in found.folders
            ]
            left_out.merge(found.left_out)
    except OSError as error:
        shown = printable(os.fsdecode(error.filename or folder))
        raise DataError(f"{key}: {shown}: cannot list the folder: {error.strerror}") from None
    return sorted(names)


class _Below(NamedTuple):
    """What lies directly in a folder."""

    images: list[bytes]
    """Relative to where the listing began."""
    folders: list[bytes]
    """Their paths."""
    left_out: LeftOut


def _below(path: bytes, inner: bytes, prefix: bytes) -> _Below:
    found = _Below([], [], LeftOut())
    with os.scandir(path) as entries:
        for entry in entries:
            name, what = inner + entry.name, kind(entry)
            if what == IMAGE:
                found.images.append(name)
            elif what == FOLDER:
                found.folders.append(entry.path)
            else:
                leave_out(entry, what, prefix + name, found.left_out)
    return found


def identity(path: bytes, above: Chain, key: str) -> tuple[int, int]:
    """Device and inode of a folder. Raises DataError if it is one of those `above`, OSError."""
    state = os.stat(path)  # noqa: PTH116 - bytes
    own = (state.st_dev, state.st_ino)
    while above is not None:
        known, above = above
        if known == own:
            raise DataError(
                f"{key}: {printable(os.fsdecode(path))}: a link that leads back to a folder above "
                "it: remove it"
            )
    return own


class Glance(NamedTuple):
    """What lies directly in a folder, by name, sorted."""

    folders: list[bytes]
    images: list[bytes]
    files: list[bytes]


def glance(folder: bytes) -> Glance:
    """What lies directly in `folder`, without what is hidden. Raises OSError."""
    found = Glance([], [], [])
    places = {FOLDER: found.folders, IMAGE: found.images}
    with os.scandir(folder) as entries:
        for entry in entries:
            what = kind(entry)
            if what not in _PASSED_OVER:
                places.get(what, found.files).append(entry.name)
    for names in found:
        names.sort()
    return found


def has_image(folder: bytes, *, deep: bool = True, most: int = 100_000) -> bool:
    """Whether there is an image in `folder`, or below it if `deep`; `most` entries are looked at."""
    pending, seen = [folder], 0
    while pending and seen < most:
        try:
            with os.scandir(pending.pop()) as entries:
                for entry in entries:
                    seen += 1
                    what = kind(entry)
                    if what == IMAGE:
                        return True
                    if what == FOLDER and deep:
                        pending.append(entry.path)
        except OSError:
            continue  # reported when the dataset is listed
    return False
