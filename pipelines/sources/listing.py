"""Images named in a list: a table of path,label, or a flat folder with a label file (ImageNet's val)."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from hvdtrain.errors import DataError
from pipelines.sources.base import Names, fingerprint, read_file

_KINDS = (".csv", ".tsv", ".txt")
_BESIDE = ("labels.csv", "labels.txt", "val.csv", "val.txt", "LOC_val_solution.csv")
"""Label files in or next to a flat folder. val.txt is Caffe's, the last one is Kaggle's."""
_SYNSETS = ("synsets.txt", "synset_words.txt", "LOC_synset_mapping.txt")
"""Files whose line n begins with the name of class number n."""
_HEADERS = {"path", "file", "filename", "image", "name", "imageid"}


def is_listing(path: str) -> bool:
    """Whether `path` is a file that lists images."""
    return path.lower().endswith(_KINDS) and Path(path).is_file()


def label_file(folder: str) -> str | None:
    """The label file of a flat `folder`, or None.

    It is `FOLDER.csv` (or .tsv, .txt) next to it, or one of `labels.csv, labels.txt, val.csv,
    val.txt, LOC_val_solution.csv` in it or next to it.
    """
    root = Path(os.path.abspath(folder))  # noqa: PTH100 - links are not resolved
    candidates = [root.with_name(root.name + kind) for kind in _KINDS]
    candidates += [place / name for place in (root, root.parent) for name in _BESIDE]
    return next((str(file) for file in candidates if file.is_file()), None)


class Listing:
    """The files named in a table, in its order: one `path,label` on each line.

    Paths are relative to the table. A .csv has commas (quotes allowed), a .tsv tabs; in a .txt
    the label is the last word. A first line like `path,label` is ignored. Labels are class names,
    and the classes are the labels in the table, sorted. If all labels are numbers and a synset file
    lies next to the table (`synsets.txt`, `synset_words.txt` or `LOC_synset_mapping.txt`), the
    first word of its line n is the name of class n, from 0.
    """

    def __init__(self, path: str, key: str, folder: Path | None = None) -> None:
        """`folder`: what paths are relative to, if not the folder of the table.

        Raises DataError naming a line that is not understood.
        """
        self._root = os.fsencode(folder or Path(path).parent)
        files: list[bytes] = []
        labels: list[str] = []
        for file, label in _rows(path, key):
            files.append(os.fsencode(file))
            labels.append(label)
        if not files:
            raise DataError(f'{key}: {path}: lists no images; expected lines of "path,label"')
        self.classes, self.labels = _classes(labels, path, key)
        self._names = Names.of(files)
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
        return os.path.join(self._root, self._names[i])  # noqa: PTH118 - bytes


def _rows(path: str, key: str) -> Iterator[tuple[str, str]]:
    """(path, label) of every line."""
    try:
        with open(path, newline="", encoding="utf-8", errors="surrogateescape") as text:  # noqa: PTH123
            yield from _parsed(text, path, key)
    except OSError as error:
        raise DataError(f"{key}: {path}: cannot read: {error.strerror}") from None
    except csv.Error as error:
        raise DataError(f"{key}: {path}: not a table: {error}") from None


def _parsed(text: Iterator[str], path: str, key: str) -> Iterator[tuple[str, str]]:
    kaggle = False
    for number, cells in enumerate(_cells(text, path), 1):
        if not cells or cells == [""]:
            continue
        if number == 1 and len(cells) > 1 and cells[0].strip().lower() in _HEADERS:
            kaggle = [cell.strip() for cell in cells] == ["ImageId", "PredictionString"]
            continue
        if len(cells) < 2 or not cells[0].strip() or not cells[1].strip():
            line = ",".join(cells)[:80]
            raise DataError(f'{key}: {path}:{number}: expected "path,label", found "{line}"')
        file, label = cells[0].strip(), cells[1].strip()
        yield (f"{file}.JPEG", label.split()[0]) if kaggle else (file, label)


def _cells(text: Iterator[str], path: str) -> Iterator[list[str]]:
    if path.lower().endswith(".txt"):
        return (line.strip().rsplit(maxsplit=1) for line in text)
    return csv.reader(text, delimiter="\t" if path.lower().endswith(".tsv") else ",")


def _classes(labels: list[str], path: str, key: str) -> tuple[list[str], np.ndarray]:
    """Class names, and the class of every sample [len(labels)] int32."""
    names = set(labels)
    numbered = all(label.isdecimal() for label in names)
    synsets = _synsets(Path(path).parent) if numbered else None
    if synsets is not None:
        numbers = np.array([int(label) for label in labels], dtype=np.int64)
        if numbers.max() >= len(synsets):
            raise DataError(
                f"{key}: {path}: label {numbers.max()}, but the synset file next to it has "
                f"{len(synsets)} lines, for labels from 0"
            )
        labels = [synsets[number] for number in numbers.tolist()]
        classes = sorted(set(synsets))
    else:
        classes = sorted(names, key=int) if numbered else sorted(names)
    number_of = {name: number for number, name in enumerate(classes)}
    return classes, np.array([number_of[label] for label in labels], dtype=np.int32)


def _synsets(folder: Path) -> list[str] | None:
    for name in _SYNSETS:
        file = folder / name
        if file.is_file():
            lines = file.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
            return [line.split()[0] for line in lines if line.strip()]
    return None
