"""Finding the files that a list names: every folder of the list is read once."""

# ruff: noqa: PTH118, PTH119, PTH120, PTH122

from __future__ import annotations

import contextlib
import os
import unicodedata
from collections import defaultdict

from hvdtrain.errors import DataError
from pipelines.sources.base import EXTENSIONS, some
from pipelines.sources.left_out import printable
from pipelines.sources.retries import RETRIES


def find_files(root: bytes, files: list[bytes], where: str, beside: bytes) -> list[bytes]:
    r"""The names of all `files`, relative to `root`, as they are on the disk.

    A name without ending is the one image with that name and an ending; `\` separates folders if
    no file has it in its name; Unicode may be composed or not. `beside`: the folder of the list.
    Raises DataError with how many are missing and the first of them.
    """
    files = _with_slashes(root, files)
    by_folder: dict[bytes, list[int]] = defaultdict(list)
    for i, file in enumerate(files):
        by_folder[os.path.dirname(file)].append(i)
    missing: list[int] = []
    for inner, ids in by_folder.items():
        folder = _Folder(os.path.join(root, inner))
        for i in ids:
            base = os.path.basename(files[i])
            if base in folder.files:
                continue
            name = folder.similar(base, where)
            if name is None:
                missing.append(i)
            else:
                files[i] = os.path.join(inner, name)
    if missing:
        raise DataError(
            _missing(root, [files[i] for i in sorted(missing)], len(files), where, beside)
        )
    return files


class _Folder:
    """The files in one folder."""

    def __init__(self, path: bytes) -> None:
        self.files: set[bytes] = set()
        self._path = path
        self._stems: dict[str, list[bytes]] | None = None
        self._composed: dict[str, bytes] = {}

        def once() -> set[bytes]:
            with os.scandir(path) as entries:
                return {entry.name for entry in entries if _is_file(entry)}

        with contextlib.suppress(OSError, ValueError):  # its files are missing
            self.files = RETRIES.read(path, once)

    def similar(self, name: bytes, where: str) -> bytes | None:
        """The file that `name`, which is no file itself, stands for; None if there is none."""
        if self._stems is None:
            self._stems = defaultdict(list)
            for file in self.files:
                stem, extension = os.path.splitext(file)
                if extension.lower() in EXTENSIONS:
                    self._stems[_composed(stem)].append(file)
                self._composed[_composed(file)] = file
        composed = self._composed.get(_composed(name))
        if composed is not None:
            return composed
        found = self._stems.get(_composed(name), [])
        if len(found) > 1:
            shown = printable(os.fsdecode(os.path.join(self._path, name)))
            names = some([printable(os.fsdecode(file)) for file in sorted(found)])
            raise DataError(f"{where}: {shown}: several images have this name: {names}")
        return found[0] if found else None


def _is_file(entry: os.DirEntry[bytes]) -> bool:
    try:
        return entry.is_file()
    except OSError:
        return False


def _composed(name: bytes) -> str:
    return unicodedata.normalize("NFC", os.fsdecode(name))


def _with_slashes(root: bytes, files: list[bytes]) -> list[bytes]:
    first = next((file for file in files if b"\\" in file), None)
    if first is None or os.path.lexists(os.path.join(root, first)):
        return list(files)
    return [file.replace(b"\\", b"/") for file in files]


def _missing(root: bytes, missing: list[bytes], count: int, where: str, beside: bytes) -> str:
    names = some([printable(os.fsdecode(file))[:200] for file in missing])
    text = f"{where}: {len(missing):,} of {count:,} images are not there: {names}"
    first = missing[0]
    if root != beside and os.path.isfile(os.path.join(beside, first)):  # noqa: PTH113
        return f"{text}; its paths begin beside the list: name the list itself"
    if os.path.isfile(first):  # noqa: PTH113
        return f"{text}; paths are relative to the list's folder, not to the current one"
    if not os.path.isabs(first):  # noqa: PTH117
        text += f"; looked for in {printable(os.fsdecode(root or b'.'))}"
    if not os.path.splitext(first)[1]:
        text += "; if it is the name of a column, name both: data.columns={path: …, label: …}"
    return text
