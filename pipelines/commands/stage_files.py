"""Which files staging copies, and which ones the copy has beside them."""

# ruff: noqa: PTH118, PTH114

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from hvdtrain.errors import DataError
from pipelines.sources.left_out import LeftOut, printable
from pipelines.sources.packed import DATASET
from pipelines.sources.walk import Chain, identity

LOCK = ".lock"
_OWN = re.compile(r"\.hvdtrain-.*|\..*\.hvdtrain-.*|\..*\.part")
"""Files that hvdtrain writes beside a dataset, and what an interrupted copy leaves."""


@dataclass(frozen=True)
class File:
    """A file to stage."""

    name: str
    """Below the dataset's folder."""
    size: int
    crc32: int | None
    """None: not known until the file is read."""


def check_places(source: Path, target: Path) -> None:
    """Raise DataError unless both are folders apart from each other."""
    if not source.is_dir():
        what = "a file; data stage copies folders" if source.is_file() else "no such folder"
        raise DataError(f"SRC: {printable(str(source))}: {what}")
    inner, outer = target.resolve(), source.resolve()
    shown = printable(str(target))
    if inner == outer:
        raise DataError(f"DST: {shown}: is SRC itself; name another folder")
    if outer in inner.parents:
        raise DataError(f"DST: {shown}: lies in SRC; name another folder")
    if inner in outer.parents:
        raise DataError(f"DST: {shown}: SRC lies in it; name another folder")


def files_of(source: Path, left_out: LeftOut) -> list[File]:
    """All files below a folder, sorted; links are followed.

    What cannot be copied is counted in `left_out`. Raises DataError for a folder that cannot be
    listed, a link that leads back, or a folder without any file.
    """
    files: list[File] = []
    pending: list[tuple[bytes, bytes, Chain]] = [(os.fsencode(source), b"", None)]
    try:
        while pending:
            path, inner, above = pending.pop()
            chain = (identity(path, above, "SRC"), above)
            with os.scandir(path) as entries:
                for entry in entries:
                    name = inner + entry.name
                    if _is_folder(entry):
                        pending.append((entry.path, name + b"/", chain))
                    elif reason := _obstacle(entry):
                        left_out.add(reason, name)
                    elif not _is_ours(name):
                        files.append(File(os.fsdecode(name), entry.stat().st_size, None))
    except OSError as error:
        shown = printable(os.fsdecode(error.filename or source))
        raise DataError(f"SRC: {shown}: cannot list the folder: {error.strerror}") from None
    if not files:
        raise DataError(f"SRC: {printable(str(source))}: an empty folder")
    return sorted(files, key=lambda file: file.name)


def _is_folder(entry: os.DirEntry[bytes]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _obstacle(entry: os.DirEntry[bytes]) -> str | None:
    """Why an entry that is no folder is not copied."""
    try:
        if entry.is_file():
            return None
    except OSError:  # a link to itself
        pass
    return "dangling links" if entry.is_symlink() else "pipes and devices"


def _is_ours(name: bytes) -> bool:
    """Whether a file is a lock, or the rest of an interrupted copy."""
    base = name.rpartition(b"/")[2]
    return name == os.fsencode(LOCK) or (base.startswith(b".") and base.endswith(b".part"))


def extra_files(target: Path, files: list[File]) -> list[str]:
    """The files of the copy that are not among `files`, sorted; links in it are not followed."""
    wanted = {file.name for file in files} | {DATASET, LOCK}
    folders = {str(parent) for file in files for parent in Path(file.name).parents}
    found: list[str] = []
    for place, inner, names in os.walk(target):
        links = [name for name in inner if os.path.islink(os.path.join(place, name))]
        for name in (*names, *links):
            relative = os.path.relpath(os.path.join(place, name), target)
            if relative not in wanted and not (name in links and relative in folders):
                found.append(relative)
    return sorted(name for name in found if not _OWN.fullmatch(os.path.basename(name)))  # noqa: PTH119


def delete(target: Path, names: list[str]) -> None:
    """Delete files of the copy, and the folders that are empty then. Raises OSError."""
    for name in names:
        (target / name).unlink(missing_ok=True)
        for folder in (target / name).parents:
            if folder == target:
                break
            with contextlib.suppress(OSError):
                folder.rmdir()
