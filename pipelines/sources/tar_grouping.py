"""Neighbouring members of a tar file with one key are one sample, as the webdataset library has it."""

from __future__ import annotations

import os
import re
from typing import NamedTuple

import numpy as np

from hvdtrain.errors import DataError
from pipelines.sources.base import EXTENSIONS, Names
from pipelines.sources.left_out import LeftOut, printable
from pipelines.sources.shards import ShardReader
from pipelines.sources.tar_labels import (
    LABEL_KEYS,
    LabelError,
    check_length,
    label_in_cls,
    label_in_json,
)
from pipelines.sources.tar_links import members
from pipelines.sources.tar_members import Entry

DOTS = "images with dots in their key"
"""What images are counted under that are in no sample because a key ends at its first dot."""
_LARGEST = (1 << 32) - 1  # bytes of an image
_META = re.compile(rb"__[^/]*__(/|$)")
_READERS = {"cls": label_in_cls, "json": label_in_json}


class Shard(NamedTuple):
    """What is in one shard."""

    names: Names
    offsets: np.ndarray
    sizes: np.ndarray
    labels: list[int | str]
    left_out: LeftOut


def read_shard(reader: ShardReader, shard: int) -> Shard:
    """All samples of a shard. Raises DataError if it is damaged or a sample is ambiguous."""
    found = _Samples(reader, shard)
    at: tuple[int, bytes] | None = None
    sample: dict[str, Entry] = {}
    empty = True
    for member in members(reader, shard, found.left_out):
        empty = False
        if reason := _passed_over(member.name):
            found.left_out.add(reason, member.name)
            continue
        key, extension = _split(member.name)
        if (member.archive, key) != at:
            found.add(sample)
            at, sample = (member.archive, key), {}
        if extension in sample:
            raise found.error(member, "twice in its sample; expected each name once")
        sample[extension] = member
    found.add(sample)
    if empty and not found.left_out:
        found.left_out.add("empty tar files", reader.paths[shard])
    images = found.images
    return Shard(
        Names.of([image.name for image in images]),
        np.array([image.offset for image in images], dtype=np.int64),
        np.array([image.size for image in images], dtype=np.uint32),
        found.labels,
        found.left_out,
    )


def _passed_over(name: bytes) -> str:
    """Why a member belongs to no sample; empty if it may."""
    parts = name.split(b"/")
    if any(part.startswith(b".") and part not in (b".", b"..") for part in parts):
        return "hidden"
    for folder in (b"__MACOSX", b"@eaDir"):
        if folder in parts:
            return folder.decode()
    if _META.match(name):
        return "webdataset metadata"
    return "" if b"." in parts[-1] else "no extension"


def _split(name: bytes) -> tuple[bytes, str]:
    """Key and lower-case extension. Source: webdataset 1.0, `tariterators.base_plus_ext`."""
    folder, slash, base = name.rpartition(b"/")
    stem, _, extension = base.partition(b".")
    return folder + slash + stem, os.fsdecode(extension.lower())


def _is_image(extension: str) -> bool:
    return b"." + os.fsencode(extension) in EXTENSIONS


class _Samples:
    """The complete samples of a shard, and what was left out."""

    def __init__(self, reader: ShardReader, shard: int) -> None:
        self._reader, self._shard = reader, shard
        self.images: list[Entry] = []
        self.labels: list[int | str] = []
        self.left_out = LeftOut()

    def error(self, member: Entry, text: str) -> DataError:
        """`text`, with the shard and the member."""
        return DataError(f"{self._reader.paths[self._shard]}: {_shown(member)}: {text}")

    def add(self, sample: dict[str, Entry]) -> None:
        """Add a sample, its members by their extensions; one without an image is left out."""
        images = [extension for extension in sample if _is_image(extension)]
        if len(images) > 1:
            first, second = (sample[extension] for extension in images[:2])
            raise self.error(
                second,
                f"a second image in its sample, beside {_shown(first)}; expected one "
                "(of KEY.jpg and KEY.mask.png, the mask is no image)",
            )
        for extension, member in sample.items():
            if extension not in images and not (images and extension in _READERS):
                self.left_out.add(_reason(extension, has_image=bool(images)), member.name)
        if not images:
            return
        image = sample[images[0]]
        label = self._label(sample)
        if label is None:
            raise self.error(
                image,
                "no label; expected a .cls next to it, or a .json with one of "
                + ", ".join(LABEL_KEYS),
            )
        if image.size > _LARGEST:
            raise self.error(image, f"{image.size:,} bytes; expected {_LARGEST:,} at most")
        self.images.append(image)
        self.labels.append(label)

    def _label(self, sample: dict[str, Entry]) -> int | str | None:
        """The label, on which all members that have one agree; None without."""
        found: list[tuple[Entry, int | str]] = []
        for extension, read in _READERS.items():
            member = sample.get(extension)
            if member is None:
                continue
            try:
                check_length(extension, member.size)
                label = read(self._content(member))
            except LabelError as error:
                raise self.error(member, str(error)) from None
            if label is not None:
                found.append((member, label))
        if len(found) > 1 and str(found[0][1]) != str(found[1][1]):
            (other, first), (member, second) = found
            raise self.error(member, f"label {second!r}, but {first!r} in {_shown(other)}")
        return found[0][1] if found else None

    def _content(self, member: Entry) -> bytes:
        if len(member.head) == member.size:
            return member.head
        return self._reader.read(self._shard, member.offset, member.size).tobytes()


def _reason(extension: str, *, has_image: bool) -> str:
    """Why a member is left out, of a sample with or without an image."""
    if not has_image and _is_image(extension.rpartition(".")[2]):
        return DOTS
    if not has_image and extension in _READERS:
        return "labels without an image"
    return f".{extension}" if len(extension) < 30 else "other"


def _shown(member: Entry) -> str:
    return printable(os.fsdecode(member.name))
