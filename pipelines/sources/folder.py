"""Images in folders: one sub-folder per class."""

# ruff: noqa: PTH118, PTH122

from __future__ import annotations

import os

import numpy as np

from hvdtrain.errors import DataError
from pipelines.sources.base import EXTENSIONS, Names, fingerprint, read_file
from pipelines.sources.left_out import LeftOut, printable
from pipelines.sources.retries import RETRIES
from pipelines.sources.walk import FOLDER, IMAGE, images_below, kind, leave_out


class ImageFolder:
    """One sub-folder of image files per class, in the order of their names (ImageNet's layout).

    Links are followed. What is no image, hidden, or not in a class folder is counted in `left_out`. A
    class folder without images is refused, but left out of a validation set, which may lack classes.
    """

    def __init__(self, root: str, key: str) -> None:
        self._root = os.fsencode(root)
        self.left_out = LeftOut()
        self.classes: list[str] = []
        blocks, lengths, counts = [], [], []
        for folder in _class_folders(root, key, self.left_out):
            files = _images_of_class(self._root, folder, key, self.left_out)
            if not files:
                continue
            self.classes.append(os.fsdecode(folder))
            counts.append(len(files))
            lengths.append(np.fromiter(map(len, files), dtype=np.int64, count=len(files)))
            blocks.append(b"".join(files))
        if not counts:
            raise DataError(f"{key}: {printable(root)}: no images in it{_found(self.left_out)}")
        self.labels = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        self._names = Names(b"".join(blocks), np.cumsum(np.concatenate(lengths)))
        self.fingerprint = fingerprint(self.classes, self.labels, self._names)

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, i: int) -> str:
        """The path of sample `i`."""
        return os.fsdecode(self._path(i))

    def read(self, i: int) -> np.ndarray:
        """The bytes of file `i`, [bytes] uint8. Raises DataError naming it."""
        return read_file(self._path(i))

    def _path(self, i: int) -> bytes:
        folder = os.fsencode(self.classes[self.labels[i]])
        return os.path.join(self._root, folder, self._names[i])


class Unlabelled:
    """The images of a folder without labels: they can be scanned, not trained on."""

    def __init__(self, root: str, key: str) -> None:
        self._root = os.fsencode(root)
        self.left_out = LeftOut()
        names = images_below(self._root, b"", key, self.left_out)
        self.classes: list[str] = []
        self.labels = np.zeros(len(names), dtype=np.int32)
        self._names = Names.of(names)
        self.fingerprint = fingerprint(self.classes, self.labels, self._names)

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, i: int) -> str:
        """The path of sample `i`."""
        return os.fsdecode(os.path.join(self._root, self._names[i]))

    def read(self, i: int) -> np.ndarray:
        """The bytes of file `i`, [bytes] uint8. Raises DataError naming it."""
        return read_file(os.path.join(self._root, self._names[i]))


def _class_folders(root: str, key: str, left_out: LeftOut) -> list[bytes]:
    def entries() -> list[tuple[os.DirEntry[bytes], str]]:
        with os.scandir(os.fsencode(root)) as all_of_it:
            return [(entry, kind(entry)) for entry in all_of_it]

    try:
        found = RETRIES.read(root, entries)
        names = sorted(entry.name for entry, what in found if what == FOLDER)
        for entry, what in found:
            if what != FOLDER:
                leave_out(entry, _beside(entry, what), entry.name, left_out)
    except FileNotFoundError:
        problem = "no such folder"
    except NotADirectoryError:
        problem = "a file, not a folder"
    except OSError as error:
        where = f"{key}: {printable(root)}"
        raise DataError(f"{where}: cannot list the folder: {error.strerror}") from None
    else:
        if names:
            return names
        problem = f"no class folders in it{_found(left_out)}"
    raise DataError(
        f"{key}: {printable(root)}: {problem}; expected one sub-folder of images per class"
    )


def _beside(entry: os.DirEntry[bytes], what: str) -> str:
    """Why an entry of the root, which is no class folder, is left out."""
    if what == IMAGE:
        return "images outside class folders"
    if what == "dangling links" and os.path.splitext(entry.name)[1].lower() not in EXTENSIONS:
        return f"dangling class folder {os.fsdecode(entry.name)}"
    return what


def _images_of_class(root: bytes, folder: bytes, key: str, left_out: LeftOut) -> list[bytes]:
    own = LeftOut()
    files = images_below(os.path.join(root, folder), folder + b"/", key, own)
    if not files and key == "data.val":
        own.add("class folders without images", folder)
    elif not files:
        path = printable(os.fsdecode(os.path.join(root, folder)))
        raise DataError(f"{key}: {path}: a class folder without images{_found(own)}")
    left_out.merge(own)
    return files


def _found(left_out: LeftOut) -> str:
    """What there was in place of images."""
    return left_out.text().replace("left out: ", "; found ", 1)
