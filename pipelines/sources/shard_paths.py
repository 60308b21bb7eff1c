"""Which tar files a path stands for: a file, a pattern, or a folder."""

# ruff: noqa: PTH110, PTH112, PTH113, PTH207 - `Path` raises for a pattern longer than a path may be,
# and its `glob` takes no absolute pattern

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from itertools import product
from pathlib import Path

from hvdtrain.errors import DataError
from pipelines.sources import archives
from pipelines.sources.base import some
from pipelines.sources.left_out import LeftOut
from pipelines.sources.walk import SYSTEM_FOLDERS, has_image

CLASSES = "classes.txt"
_BRACES = re.compile(r"\{([^{}]*)\}")
_MOST = 1_000_000  # shards in a pattern
_DIGITS = 9  # in a number of a pattern


def is_shards(path: str) -> bool:
    """Whether `path` is a tar file, a pattern of tar files, or a folder of them.

    A file is recognised by its content, compressed ones too (`TarShards` refuses these). A folder
    with tar files is one of shards, unless a folder in it has images: then it has class folders,
    and the tar files are stray.
    """
    if os.path.isdir(path):
        files, folders, _others = _listed(path)
        return bool(files) and not any(
            has_image(os.fsencode(Path(path, name)))
            for name in folders
            if os.fsencode(name) not in SYSTEM_FOLDERS
        )
    if os.path.exists(path):
        return is_tar(path) or is_compressed(path) or bool(archives.kind(path))
    return _is_pattern(path) or is_tar(path) or is_compressed(path)


def shard_paths(path: str, key: str, left_out: LeftOut) -> list[str]:
    """The tar files at `path`, in order; what else is in a folder is counted in `left_out`.

    Raises DataError where there are none, one is missing or compressed, or `path` stands for too
    many.
    """
    if os.path.isdir(path):
        paths = _in_folder(path, left_out)
    elif os.path.exists(path) or not _is_pattern(path):
        paths = [path]
    else:
        paths = [shard for name in expanded(path, key) for shard in _matches(name, key)]
        if twice := [name for name, count in Counter(paths).items() if count > 1]:
            raise DataError(f"{key}: {path}: this pattern names {some(twice)} more than once")
    for shard in paths:
        if not os.path.isfile(shard):
            problem = "not a regular file" if os.path.exists(shard) else "no such file"
            raise DataError(f"{key}: {shard}: {problem}; expected tar shards")
        if refusal := archives.refusal(shard):
            raise DataError(f"{key}: {shard}: {refusal}")
    if not paths:
        raise DataError(f"{key}: {path}: no tar files in it")
    return paths


def _is_pattern(path: str) -> bool:
    return any(sign in path for sign in "*?[{")


def is_tar(name: str) -> bool:
    return name.lower().endswith(".tar")


def is_compressed(name: str) -> bool:
    return name.lower().endswith(archives.COMPRESSED)


def _listed(path: str) -> tuple[list[str], list[str], list[str]]:
    """Names in a folder, sorted: tar files (compressed too), visible folders, and all others."""
    files, folders, others = [], [], []
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                if not entry.name.startswith(".") and entry.is_dir():
                    folders.append(entry.name)
                elif entry.name.startswith(".") or not entry.is_file():
                    others.append(entry.name)
                elif is_tar(entry.name) or is_compressed(entry.name):
                    files.append(entry.name)
                else:
                    others.append(entry.name)
    except OSError:
        return [], [], []  # the source that lists the folder reports it
    return sorted(files), sorted(folders), sorted(others)


def _in_folder(path: str, left_out: LeftOut) -> list[str]:
    files, folders, others = _listed(path)
    plain = [name for name in files if is_tar(name)]
    stems = {name.lower().removesuffix(".tar") for name in plain}
    shards = []
    for name in files:
        twin = next((e for e in archives.COMPRESSED if name.lower().endswith(e)), None)
        if twin is not None and name.lower().removesuffix(twin) in stems:
            left_out.add("compressed copies of tar files", os.path.join(path, name))  # noqa: PTH118
        else:
            shards.append(os.path.join(path, name))  # noqa: PTH118
    for name in folders:
        left_out.add("folders", name)
    for name in others:
        if name != CLASSES and not name.startswith(".hvdtrain"):
            left_out.add(_reason(Path(path, name)), name)
    return shards


def _reason(file: Path) -> str:
    if file.name.startswith("."):
        return "hidden"
    if not file.is_file():
        return "dangling links" if file.is_symlink() else "no files"
    return file.suffix.lower()[:30] or "no extension"


def _matches(name: str, key: str) -> list[str]:
    """The file itself, or what a name with `*`, `?` or `[…]` matches, sorted."""
    if os.path.exists(name) or not any(sign in name for sign in "*?["):
        return [name]
    found = sorted(glob.glob(name))
    if not found:
        raise DataError(f"{key}: {name}: no file matches this pattern")
    return found


def expanded(pattern: str, key: str) -> list[str]:
    """All names of a pattern like `a-{00..12}-{x,y}.tar`, as in bash. Raises DataError."""
    parts = _BRACES.split(pattern)
    count = 1
    for part in parts[1::2]:
        count *= _count(part)
        if count > _MOST:
            raise DataError(f"{key}: {pattern}: stands for more than {_MOST:,} files")
    choices = [_choices(part) if k % 2 else [part] for k, part in enumerate(parts)]
    return ["".join(choice) for choice in product(*choices)]


def _range(text: str) -> tuple[str, str] | None:
    first, dots, last = text.partition("..")
    is_range = dots and text.isascii() and first.isdecimal() and last.isdecimal()
    return (first, last) if is_range else None


def _count(text: str) -> int:
    """How many names one pair of braces stands for; too many for a number of too many digits."""
    ends = _range(text)
    if ends is None:
        return text.count(",") + 1
    if max(map(len, ends)) > _DIGITS:
        return _MOST + 1
    return abs(int(ends[1]) - int(ends[0])) + 1


def _choices(text: str) -> list[str]:
    ends = _range(text)
    if ends is None:
        return text.split(",")
    first, last = int(ends[0]), int(ends[1])
    step = 1 if first <= last else -1
    return [f"{k:0{len(ends[0])}d}" for k in range(first, last + step, step)]
