"""What a path seems to be that is no dataset as it stands, and what its user probably meant."""

# ruff: noqa: PTH118, PTH122

from __future__ import annotations

import os
import re

from hvdtrain.errors import DataError
from pipelines.sources.base import some
from pipelines.sources.left_out import printable
from pipelines.sources.walk import Glance, glance, has_image, head

SPLITS = {
    "train": frozenset([b"train", b"training"]),
    "val": frozenset([b"val", b"valid", b"validation", b"dev", b"eval"]),
    "test": frozenset([b"test", b"testing"]),
}
"""What the parts of a dataset are called."""
_BESIDE_SPLIT = frozenset(
    [b"", b"set", b"data", b"dataset", b"split", b"images", b"image", b"img", b"imgs", b"photos"]
)
"""Words that the name of a part may have besides, as in `training_set` and `val2017`."""
TABLES = (b".csv", b".tsv", b".txt")
_ARCHIVES = (
    (b"PK\x03\x04", "a zip archive", "unzip -q"),
    (b"\x1f\x8b", "a gzip archive", "tar -xzf"),
    (b"BZh91AY&SY", "a bzip2 archive", "tar -xjf"),
    (b"\xfd7zXZ\0", "an xz archive", "tar -xJf"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive", "tar --zstd -xf"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "7z x"),
    (b"Rar!\x1a\x07", "a rar archive", "unrar x"),
    (b"\x89HDF", "an HDF5 file", ""),
    (b"PAR1\x15", "a Parquet file", ""),
    (b"\x93NUMPY", "a NumPy file", ""),
    (b"SQLite format", "a database", ""),
    (b"%PDF", "a PDF file", ""),
    (b"\xff\xd8\xff", "a single image", ""),
    (b"\x89PNG", "a single image", ""),
)
_CONTAINERS = frozenset(
    b"images image imgs img photos pictures jpegimages masks mask labels label annotations "
    b"annotation segmentations bboxes".split()
)
"""Folders that are no classes if there is no other."""
_EXPECTED = "expected a folder with one sub-folder of images per class, tar shards, or a list"


def what_file(path: str) -> str | None:
    """What the file at `path` is by its first bytes, and what to do with it; None: maybe text."""
    begin = head(path, 265)
    for magic, what, command in _ARCHIVES:
        if begin.startswith(magic):
            shown = printable(path)
            return (
                f"{what}; unpack it ({command} {shown}), and name the folder" if command else what
            )
    if begin[257:262] == b"ustar":
        return "a tar file; name it with the ending .tar"
    return None


def refuse_file(path: str, key: str) -> DataError:
    """The error for a file that is no dataset."""
    if not os.path.isfile(path):  # noqa: PTH113
        what = "a pipe or device; expected a file or folder"
    else:
        what = what_file(path) or "a file with an unknown ending; a list ends in .csv, .tsv or .txt"
    more = "" if ";" in what else f"; {_EXPECTED}"
    return DataError(f"{key}: {printable(path)}: {what}{more}")


def refuse_wrong_level(root: str, key: str, seen: Glance) -> None:
    """Raise DataError if the folders in `root` are splits, or one that holds the classes itself.

    `seen`: what lies in `root`.
    """
    where = f"{key}: {printable(root)}"
    if splits := _splits(root, seen.folders):
        likely = printable(os.path.join(root, _likely(splits, key)))
        names = ", ".join(printable(os.fsdecode(name)) for name in splits)
        setting = "" if key == "PATH" else f"{key}="
        raise DataError(
            f"{where}: its folders {names} are parts of a dataset, not classes: {setting}{likely}?"
        )
    if len(seen.folders) > 1 and _CONTAINERS.issuperset(map(bytes.lower, seen.folders)):
        names = ", ".join(printable(os.fsdecode(name)) for name in seen.folders)
        raise DataError(
            f"{where}: its folders {names} hold images and what belongs to them, not classes: name "
            "the folder of images, with a list for it beside it"
        )
    if len(seen.folders) != 1:
        return
    only = os.path.join(os.fsencode(root), seen.folders[0])
    shown = printable(os.fsdecode(only))
    tables = [name for name in seen.files if os.path.splitext(name)[1].lower() in TABLES[:2]]
    if has_image(only, deep=False):
        if seen.images:
            raise DataError(
                f"{where}: {len(seen.images):,} images and one folder of images: no classes; name "
                f"{shown}, or put all images into one folder per class"
            )
        if tables:
            table = printable(os.path.join(root, os.fsdecode(tables[0])))
            raise DataError(
                f"{where}: one folder of images and a list: no class folders; name the list, {table}, "
                f"or name it {shown}{os.path.splitext(table)[1]} if its paths begin in that folder, "
                "and name the folder"
            )
        return
    try:
        tars = [name for name in glance(only).files if name.endswith(b".tar")]
    except OSError:
        tars = []
    if tars and not seen.images:
        raise DataError(
            f"{where}: its only folder holds tar files: one level too high; name {shown}"
        )
    if below := _level_of_classes(only, key):
        raise DataError(
            f"{where}: its only folder holds no images but folders of images: one level too high; "
            f"name {printable(os.fsdecode(below))}"
        )


def refuse_flat(root: str, key: str, seen: Glance) -> DataError:
    """The error for a folder of images without labels."""
    shown = printable(root.rstrip("/"))
    place = os.path.abspath(root)  # noqa: PTH100
    text = (
        f"{key}: {printable(root)}: {len(seen.images):,} images, but no class folders and no labels "
        f"for them; put them into one folder per class, or write the list {shown}.csv with lines "
        '"name,label" (hvdtrain data scan reads them without labels)'
    )
    above, own = os.path.split(place)
    try:
        beside = glance(os.fsencode(above))
    except OSError:
        return DataError(text)
    others = [name for name in beside.folders if name != os.fsencode(own)]
    if any(has_image(os.path.join(os.fsencode(above), name), deep=False) for name in others[:100]):
        text += f"; if {printable(own)} is one class of several, name {printable(above)}"
    lists = [name for name in beside.files if os.path.splitext(name)[1].lower() in TABLES]
    if lists:
        names = some([printable(os.fsdecode(name)) for name in lists])
        text += f"; beside it lies {names}, which is not named for this folder"
    return DataError(text)


def part_of(name: bytes) -> str:
    """`train`, `val` or `test` if a folder is called like this part of a dataset; else nothing."""
    words = [word.removesuffix(b"set") for word in re.split(rb"[^a-z]+", name.lower())]
    parts = [part for word in words for part, names in SPLITS.items() if word in names]
    others = [word for word in words if not any(word in names for names in SPLITS.values())]
    return parts[0] if len(parts) == 1 and _BESIDE_SPLIT.issuperset(others) else ""


def _splits(root: str, folders: list[bytes]) -> list[bytes]:
    """The folders that are parts of a dataset, if `root` holds such parts and not classes."""
    splits = [name for name in folders if part_of(name)]
    if not splits or len(splits) == len(folders):
        return splits
    kinds = len({part_of(name) for name in splits})
    paths = (os.path.join(os.fsencode(root), name) for name in splits)
    return splits if kinds > 1 and not any(has_image(p, deep=False) for p in paths) else []


def _likely(splits: list[bytes], key: str) -> str:
    for part in ("val", "test") if key == "data.val" else ("train",):
        for name in splits:
            if part_of(name) == part:
                return os.fsdecode(name)
    return os.fsdecode(splits[0])


def _level_of_classes(folder: bytes, key: str) -> bytes | None:
    """The folder below `folder` that holds several folders of images or parts of a dataset."""
    for _level in range(8):
        try:
            inner = glance(folder).folders
        except OSError:
            return None
        if splits := _splits(os.fsdecode(folder), inner):
            return os.path.join(folder, os.fsencode(_likely(splits, key)))
        with_images = [name for name in inner[:50] if has_image(os.path.join(folder, name))]
        if len(with_images) != 1:
            return folder if with_images else None
        folder = os.path.join(folder, with_images[0])
        if has_image(folder, deep=False):
            return None
    return None
