"""Images named in a list: a table of path,label, or a flat folder with a label file (ImageNet's val)."""

# ruff: noqa: PTH118

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np

from hvdtrain.config.data import Columns
from hvdtrain.errors import DataError
from pipelines.sources.base import Names, fingerprint, read_file
from pipelines.sources.classes import require_no_fractions
from pipelines.sources.left_out import LeftOut, printable
from pipelines.sources.listed import find_files
from pipelines.sources.table import Row, read_table
from pipelines.sources.tar_labels import class_names
from pipelines.sources.walk import glance, images_below

_KINDS = (".csv", ".tsv", ".txt")
_KAGGLE = "LOC_val_solution.csv"
_SYNSETS = ("synsets.txt", "synset_words.txt", "LOC_synset_mapping.txt")
"""Files whose line n begins with the name of class number n."""
_MAX_LABEL = 1000  # characters


def is_listing(path: str) -> bool:
    """Whether `path` is a file that lists images."""
    return path.lower().endswith(_KINDS) and Path(path).is_file()


def label_files(folder: str) -> list[str]:
    """The label files of a flat `folder`, the one to use first.

    A label file is for the folder it is named for: `FOLDER.csv` (.tsv, .txt) beside it or in it.
    `labels.csv` is for the folder it lies in, or for the only one that it lies beside. `val.csv`
    and Kaggle's `LOC_val_solution.csv` are also for a folder named like `validation` or `img_val`.
    """
    root = Path(os.path.abspath(folder))  # noqa: PTH100 - links are not resolved
    above = root.parent
    inside, beside = [root.name, "labels"], [root.name]
    for_val = _is_val(root.name)
    if for_val:
        inside.append("val")
        if not (above / "val").is_dir():
            beside.append("val")
    if _is_alone(root):
        beside.append("labels")
    names = [above / f"{name}{kind}" for name in beside for kind in _KINDS]
    names += [root / f"{name}{kind}" for name in inside for kind in _KINDS]
    if for_val:
        names += [root / _KAGGLE, above / _KAGGLE]
    return list(dict.fromkeys(str(file) for file in names if file.is_file()))


def _is_val(name: str) -> bool:
    return bool({"val", "valid", "validation"} & set(re.split(r"[^a-z]+", name.lower())))


def _is_alone(root: Path) -> bool:
    """Whether no other visible folder lies beside `root`."""
    try:
        return len(glance(os.fsencode(root.parent)).folders) <= 1
    except OSError:
        return False


class Listing:
    """The files named in a table, in its order: one `path,label` on each line.

    Paths are relative to the table. `table.py` says what a table may look like, `listed.py` which
    file a name stands for. Labels are class names, and the classes are the labels in the table,
    sorted. If all labels are numbers and a synset file lies next to the table (`synsets.txt`,
    `synset_words.txt` or `LOC_synset_mapping.txt`), the first word of its line n is the name of
    class n, from 0.
    """

    def __init__(
        self,
        path: str,
        key: str,
        folder: Path | None = None,
        columns: Columns | None = None,
        others: list[str] | None = None,
    ) -> None:
        """`folder`: a flat folder that the table is for; `others`: label files that are not used.

        Raises DataError naming a line that is not understood, or the first images that are missing.
        """
        beside = os.fsencode(Path(path).parent)
        self._root = os.fsencode(folder) if folder else beside
        where = f"{key}: {printable(path)}"
        rows = read_table(path, key, columns)
        if not rows:
            raise DataError(f'{where}: lists no images; expected lines of "path,label"')
        self.classes, self.labels = _classes([row.label for row in rows], path, where)
        names = [os.fsencode(row.path) for row in rows]
        names = find_files(self._root, names, where, beside)
        _require_one_label(rows, names, self.labels.tolist(), where)
        self.left_out = LeftOut()
        if folder is not None:
            _count_unlisted(self._root, names, [path, *(others or ())], key, self.left_out)
        for other in others or ():
            self.left_out.add("label files beside the one in use", other)
        self._names = Names.of(names)
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
        return os.path.join(self._root, self._names[i])


def _count_unlisted(
    root: bytes, names: list[bytes], tables: list[str], key: str, left_out: LeftOut
) -> None:
    """Count what is in the flat folder `root` and not in its list."""
    found = LeftOut()
    listed = {os.path.normpath(name) for name in names}
    for name in images_below(root, b"", key, found):
        if name not in listed:
            left_out.add("images that the list lacks", name)
    inside = {Path(table).name for table in tables if _is_in(table, root)} | set(_SYNSETS)
    for table in inside:
        if Path(os.fsdecode(root), table).is_file():
            found.take_back(Path(table).suffix.lower(), table)
    left_out.merge(found)


def _is_in(file: str, folder: bytes) -> bool:
    return os.path.abspath(os.path.dirname(file)) == os.path.abspath(os.fsdecode(folder))  # noqa: PTH100, PTH120


def _require_one_label(rows: list[Row], names: list[bytes], labels: list[int], where: str) -> None:
    """Raise DataError if an image is listed with several labels.

    `names`, `labels`: file and class of each row.
    """
    if len(set(names)) == len(names) and not any(b"./" in name for name in names):
        return
    row_of: dict[bytes, int] = {}
    first: dict[bytes, str] = {}
    for k, name in enumerate(names):
        file = os.path.normpath(name)
        known = row_of.setdefault(file, k)
        if labels[known] != labels[k] and file not in first:
            both = (f"{printable(rows[i].label[:80])} (line {rows[i].line})" for i in (known, k))
            first[file] = f"{printable(os.fsdecode(file))}: {' and '.join(both)}"
    if first:
        raise DataError(
            f"{where}: {len(first):,} images have several labels, first "
            f"{next(iter(first.values()))}; expected one label for each image"
        )


def _classes(labels: list[str], path: str, where: str) -> tuple[list[str], np.ndarray]:
    """Class names, and the class of every sample [len(labels)] int32."""
    names = set(labels)
    for name in names:
        _check(name, where)
    require_no_fractions(names, where)
    numbered = all(name.isascii() and name.isdecimal() for name in names)
    synsets = _synsets(Path(path).parent) if numbered else None
    if synsets is not None:
        largest = max(names, key=_number)
        if _number(largest)[:2] >= _number(str(len(synsets)))[:2]:
            raise DataError(
                f"{where}: label {largest[:40]}, but the synset file next to it has "
                f"{len(synsets)} lines, for labels from 0"
            )
        labels = [synsets[int(label)] for label in labels]
        classes = sorted(synsets)
    else:
        classes = sorted(names, key=_number) if numbered else sorted(names)
    number_of = {name: number for number, name in enumerate(classes)}
    return classes, np.array([number_of[label] for label in labels], dtype=np.int32)


def _number(text: str) -> tuple[int, str, str]:
    """A key that sorts digits like numbers, of any length."""
    digits = text.lstrip("0")
    return len(digits), digits, text


def _check(label: str, where: str) -> None:
    if len(label) > _MAX_LABEL:
        raise DataError(f"{where}: a label of {len(label):,} characters: {printable(label[:40])}…")
    try:
        label.encode()
    except UnicodeEncodeError:
        raise DataError(
            f"{where}: label {printable(label[:80])} is not UTF-8; save the list as UTF-8"
        ) from None
    if not label.isprintable():
        raise DataError(f"{where}: label {printable(label[:80])} has a control character")


def _synsets(folder: Path) -> list[str] | None:
    files = [folder / name for name in _SYNSETS if (folder / name).is_file()]
    return class_names(files[0], first_word=True) if files else None
